"""What every trunk is: a module from samples to features. The kinds of trunks have modules of their own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn


class Trunk(nn.Module, ABC):
    """Base of everything `--model` can name. A plugin registers subclasses by the hook `dmlcore_models`.

    A trunk does its own normalisation: images come as float32 in 0..1, features as they are in the file.

    Args:
        options: an instance of `Options`.
        sample_shape: of one sample, (C, H, W) with C = 1 or 3, or (F,).

    Attributes:
        features: columns of what `forward` returns; set by the constructor.
    """

    name: ClassVar[str]
    Options: ClassVar[type]
    accepts: ClassVar[frozenset[str]]
    """Kinds of data it takes: `images`, `features`."""
    default_for: ClassVar[frozenset[str]] = frozenset()
    """Kinds of data for which it is the trunk where none is named; for each, one trunk says so. Not inherited."""
    names_note: ClassVar[str] = ""
    """A sentence about the further names it goes by, for messages about a name that no trunk has; empty: it has none."""
    features: int

    def __init__(self, options: Any, sample_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.options = options
        self.sample_shape = sample_shape

    @classmethod
    def claims(cls, name: str) -> dict[str, Any] | None:
        """The options that follow from another name by which `--model` means this trunk; None: the name is not one of its own.
        A subclass claims none unless it says so itself.

        Args:
            name: what the user wrote, such as the name of a network in the library that this trunk wraps.

        Raises:
            ConfigError: it might be one of its names, but the library that knows cannot be loaded.
        """
        return None

    @classmethod
    def further_names(cls) -> Sequence[str]:
        """Names that `claims` accepts, for suggestions."""
        return ()

    @classmethod
    def image_size(cls, options: Any) -> int:
        """Side to which image files of different sizes are best brought for this trunk, pixels."""
        return 64

    @classmethod
    def preset(cls, options: Any, sample_shape: tuple[int, ...]) -> dict[str, Any]:
        """Settings of a run, by key, that suit this trunk and hold where the user leaves them open: `learning_rate`,
        `embedding_dim`, `compress`, `head_start`. A trunk that knows something already should not unlearn it.

        Args:
            options: an instance of `Options`.
            sample_shape: of one sample.
        """
        return {}

    @abstractmethod
    def forward(self, samples: Tensor) -> Tensor:
        """Features [B, features] of samples [B, *sample_shape] float32."""
