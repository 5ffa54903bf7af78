"""What a transform is: a random change of training batches, chosen by name. The built-in ones are plugins,
and their arithmetic is in `augmentation`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dmlcore.config import build_options
from dmlcore.errors import ConfigError, PluginError


@dataclass(frozen=True, kw_only=True)
class TransformOptions:
    """A transform without options of its own."""


class Transform(ABC):
    """Base of everything `--transforms` can name. A plugin registers subclasses by the hook `dmlcore_transforms`.

    Args:
        options: an instance of `Options`, or None for the defaults.
        named: options by name instead of `options`.
    """

    name: ClassVar[str]
    Options: ClassVar[type] = TransformOptions
    accepts: ClassVar[frozenset[str]] = frozenset(("images",))
    """Kinds of data it can change: `images`, `features`."""
    by_sample: ClassVar[bool] = False
    """Whether a sample's change depends on no other sample of the batch, but for the random numbers drawn. Then each of several
    processes reads its own samples only."""

    def __init__(self, options: Any = None, **named: Any) -> None:
        if options is not None and named:
            raise ConfigError(f"{self.name}: give either an Options object or options by name, not both")
        self.options: Any = options if options is not None else build_options(self.Options, named, self.name)

    @abstractmethod
    def __call__(self, samples: Tensor, generator: torch.Generator) -> Tensor:
        """Changed samples. The argument stays as it is.

        Args:
            samples: `[B, C, H, W]` float32 in 0..1, or `[B, F]` float32.
            generator: on the CPU. All random numbers come from it, so that a resumed run draws the same ones.

        Returns:
            Samples of the same shape and dtype.
        """


class Transforms:
    """Several transforms one after the other, as the augmentation of a data set.

    Args:
        transforms: in their order.
        kind: `images`, `features` or `texts`.

    Raises:
        ConfigError: one of them cannot change this kind of data.
    """

    def __init__(self, transforms: Sequence[Transform], kind: str) -> None:
        for transform in transforms:
            if kind not in transform.accepts:
                raise ConfigError(
                    f"the transform '{transform.name}' changes {' and '.join(sorted(transform.accepts))}, but the data are"
                    f" {kind}"
                )
        self.transforms = list(transforms)
        self.by_sample = all(transform.by_sample for transform in self.transforms)

    def __call__(self, samples: Tensor, generator: torch.Generator) -> Tensor:
        """Changed samples `[B, ...]`.

        Raises:
            PluginError: a transform gave something else than samples of the same shape.
        """
        for transform in self.transforms:
            changed = transform(samples, generator)
            if not isinstance(changed, Tensor) or changed.shape != samples.shape or changed.dtype != samples.dtype:
                got = f"{list(changed.shape)} of {changed.dtype}" if isinstance(changed, Tensor) else type(changed).__name__
                raise PluginError(
                    f"the transform '{transform.name}' made {got} of samples {list(samples.shape)} of {samples.dtype};"
                    f" it must keep shape and dtype"
                )
            samples = changed
        return samples
