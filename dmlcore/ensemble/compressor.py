"""What a compressor is: wide embeddings in, narrow ones out. The built-in ones are plugins; how they are fitted to distances
lives in `matching.py`, principal axes in `principal.py`."""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dmlcore.config import build_options
from dmlcore.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """A compressor without options of its own."""


class Compressor(nn.Module, abc.ABC):
    """A map from `width` to `out` dimensions, learnt from embeddings of training data. Subclasses set `name` and `Options`,
    write `forward`, and either `fit` (learnt once, after training) or `online_loss` (a step after every step of the model).

    Everything learnt is a parameter or a buffer of fixed shape, so that a state dict restores it.

    Args:
        width: dimensions of the embeddings, >= 1.
        out: dimensions wanted, in `[1, width]`.
        options: an instance of `Options`, or None for the defaults.
        given: options by name instead of `options`.

    Raises:
        ConfigError: `out` is below 1 or above `width`, an unknown option or a value out of range.
    """

    name: ClassVar[str]
    Options: ClassVar[type] = NoOptions
    is_ordered: ClassVar[bool] = False
    """Whether the first d numbers of what it gives are what it would give if it compressed to d."""
    uses_labels: ClassVar[bool] = False
    """Whether `learn` compares samples of one class, so that whole classes are drawn for it and not single samples."""
    is_fitted: Tensor

    def __init__(self, width: int, out: int, options: Any = None, **options_by_name: Any) -> None:
        super().__init__()
        if not 1 <= out <= width:
            raise ConfigError(f"{self.name}: cannot compress {width} dimensions to {out}; give a number from 1 to {width}")
        if options is not None and options_by_name:
            raise ConfigError(f"{self.name}: give either an Options object or options by name, not both")
        self.width, self.out = width, out
        self.options: Any = options if options is not None else build_options(self.Options, options_by_name, self.name)
        self.register_buffer("is_fitted", torch.tensor(False))

    @property
    def is_online(self) -> bool:
        """Whether it is trained by `online_loss`, a step after every step of the model, instead of by `fit`."""
        return False

    def online_optimiser(self) -> torch.optim.Optimizer:
        """What steps where it `is_online`: Adam, at the rate of the option `learning_rate`."""
        return torch.optim.Adam(self.parameters(), lr=self.options.learning_rate)

    def fit(self, embeddings: Tensor, labels: Tensor, *, seed: int = 0) -> None:
        """Learn the map. Does nothing where `is_online`.

        The same arguments give the same map; the global random state is neither read nor moved. Memory beyond the embeddings
        does not grow with `N`.

        Args:
            embeddings: `[N, width]` floating point, finite, `N >= 1`; best those of the training data.
            labels: `[N]` int64, for compressors that use them.
            seed: of everything random.

        Raises:
            ConfigError: a wrong shape or dtype, no embeddings, or some that are not finite.
        """
        if self.is_online:
            return
        if embeddings.ndim != 2 or embeddings.shape[1] != self.width or not embeddings.is_floating_point():
            got = f"{list(embeddings.shape)} of {embeddings.dtype}"
            raise ConfigError(f"{self.name}: embeddings must be a floating point matrix [N, {self.width}], got {got}")
        if len(embeddings) == 0 or labels.shape != embeddings.shape[:1]:
            got = f"{len(embeddings)} embeddings and labels of shape {list(labels.shape)}"
            raise ConfigError(f"{self.name}: needs at least one embedding and a label for each, got {got}")
        if not all(bool(torch.isfinite(piece).all()) for piece in embeddings.split(1 << 16)):
            raise ConfigError(f"{self.name}: some embeddings are not finite; see where training went wrong")
        with torch.inference_mode(False), torch.no_grad():
            self.learn(embeddings, labels, seed)
            self.is_fitted.fill_(True)

    def learn(self, embeddings: Tensor, labels: Tensor, seed: int) -> None:
        """What `fit` does after its checks, without gradients. For subclasses to write where they are not online."""
        raise NotImplementedError(f"compressor '{self.name}' is trained online, or must write learn()")

    def refine(self, embeddings: Tensor, labels: Tensor, score: Callable[[], float], *, seed: int = 0) -> dict[str, float]:
        """At the end of a run, with its best weights: try several maps and keep the one with the highest score. Most have one
        map, and do nothing.

        Args:
            embeddings, labels, seed: as of `fit`.
            score: of the present map, on data that it was not fitted to.

        Returns:
            The score of each map by its name, the one that is kept first; empty: nothing was tried.
        """
        return {}

    def online_loss(self, z: Tensor) -> Tensor:
        """What one optimiser step lowers, for a compressor that `is_online`.

        Args:
            z: `[B, width]`; no gradient reaches it.

        Returns:
            Scalar.
        """
        raise NotImplementedError(f"compressor '{self.name}' is learnt by fit(), not online")

    def check_fitted(self) -> None:
        """Refuse to compress before the map is learnt. A graph that is compiled or exported does not look: what a tensor holds
        would decide its form. Who makes one calls this before.

        Raises:
            ConfigError: `fit` was not called, nor a state loaded of one that was fitted.
        """
        if not torch.compiler.is_compiling() and not bool(self.is_fitted):
            raise ConfigError(f"compressor '{self.name}' is not fitted; call fit(embeddings, labels) or load a fitted state")

    @abc.abstractmethod
    def forward(self, z: Tensor) -> Tensor:
        """The narrow embeddings.

        Args:
            z: `[B, width]` floating point.

        Returns:
            `[B, out]` in the dtype of what was learnt, not normalised.

        Raises:
            ConfigError: it is learnt by `fit` and was not.
        """
