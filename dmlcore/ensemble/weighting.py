"""What a weighting is: terms of several losses in, one number out. The built-in ones are plugins."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dmlcore.config import build_options
from dmlcore.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """A weighting without options of its own."""


class Weighting(nn.Module, abc.ABC):
    """How the terms of an ensemble are combined. Subclasses set `name` and `Options` and write `forward` and `weights`.

    Learnable weights are parameters of the module; the ensemble puts them into an optimiser group of their own.

    Args:
        initial: `[L]` the weights asked for, all >= 0 and not all 0; what they mean is the weighting's to say.
        options: an instance of `Options`, or None for the defaults.
        given: options by name instead of `options`.
    """

    name: ClassVar[str]
    Options: ClassVar[type] = NoOptions
    initial: Tensor

    def __init__(self, initial: Tensor, options: Any = None, **given: Any) -> None:
        super().__init__()
        self.options: Any = options if options is not None else build_options(self.Options, given, self.name)
        self.register_buffer("initial", initial.clone().float())

    @abc.abstractmethod
    def forward(self, terms: Tensor) -> Tensor:
        """The combined loss.

        Args:
            terms: `[L]` the losses' values, differentiable.

        Returns:
            Scalar.
        """

    @property
    @abc.abstractmethod
    def weights(self) -> Tensor:
        """`[L]` the effective weights now, detached."""


def initial_weights(weights: Any, count: int) -> Tensor:
    """The weights asked for as a tensor `[count]`; None gives ones.

    Raises:
        ConfigError: a wrong number of weights, a negative or non-finite one, or all zero.
    """
    if weights is None:
        return torch.ones(count)
    try:
        found = torch.as_tensor(weights, dtype=torch.float32).flatten()
    except (TypeError, ValueError, RuntimeError):
        raise ConfigError(f"weights must be {count} numbers, got {weights!r}") from None
    if len(found) != count:
        raise ConfigError(f"weights has {len(found)} numbers for {count} losses")
    if not bool(torch.isfinite(found).all()) or bool((found < 0).any()) or not bool((found > 0).any()):
        raise ConfigError(f"weights must be finite, >= 0 and not all 0, got {found.tolist()}")
    return found
