"""What every trunk is: a module from samples to features. The kinds of trunks have modules of their own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from dmlcore.errors import ConfigError


class Trunk(nn.Module, ABC):
    """Base of everything `--model` can name. A plugin registers subclasses by the hook `dmlcore_models`.

    A trunk does its own normalisation: images come as float32 in 0..1, features as they are in the file, texts as bytes.

    Args:
        options: an instance of `Options`.
        sample_shape: of one sample, (C, H, W) with C = 1 or 3, or (F,), or (bytes,) of texts.

    Attributes:
        features: columns of what `forward` returns; set by the constructor.
        block_features: columns of each block of the network in these, the deepest last, where the features of several blocks
            stand side by side; set by the constructor. Empty: they are one piece.
    """

    name: ClassVar[str]
    Options: ClassVar[type]
    accepts: ClassVar[frozenset[str]]
    """Kinds of data it takes: `images`, `features`, `texts`."""
    default_for: ClassVar[frozenset[str]] = frozenset()
    """Kinds of data for which it is the trunk where none is named; for each, one trunk says so. Not inherited."""
    names_option: ClassVar[str] = ""
    """The option that stands for a network of a library: with `arch`, `--model NAME/resnet18` is this trunk with
    `arch = resnet18`. So a trunk owns all names that begin with its own and a slash. Empty: it owns no such names."""
    features: int
    block_features: tuple[int, ...] = ()

    def __init__(self, options: Any, sample_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.options = options
        self.sample_shape = sample_shape

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

    @classmethod
    def interpolation(cls, options: Any) -> Literal["bilinear", "bicubic"]:
        """How image files are best resized for this trunk."""
        return "bilinear"

    def keep(self, folder: Path) -> None:
        """Write what the trunk was made of and what its run needs to build it again, such as published weights or files of a
        tokenizer, into the run's folder. Most trunks are made of their options only, and write nothing.

        Args:
            folder: for the trunk alone; it may not exist yet.
        """

    def checkpoint_gradients(self) -> None:
        """Let the trunk keep few activations for the backward pass, and compute the others again.

        Raises:
            ConfigError: it cannot.
        """
        raise ConfigError(f"the model '{self.name}' has no gradient checkpointing. Leave --gradient-checkpointing out")

    def merge(self) -> None:
        """Called once training is over and the trunk is only used: what was trained beside its weights becomes part of them."""

    def shared_options(self) -> Any:
        """The options as a model has them that is given away: without places on this computer, which `keep` makes needless."""
        return self.options

    def graph_inputs(self, samples: Tensor) -> dict[str, Tensor]:
        """What an exported graph takes in place of samples, by name, each [B, ...]. A trunk whose `forward` does what no graph
        can, such as splitting texts into words, gives what comes after that."""
        return {"samples": samples}

    def graph_forward(self, *inputs: Tensor) -> Tensor:
        """Features [B, features] of what `graph_inputs` gave."""
        return self(*inputs)

    def sentence_modules(self, folder: Path) -> list[dict[str, Any]] | None:
        """Write the trunk as modules of sentence-transformers that need no code of dmlcore. None: it cannot be written so.

        Args:
            folder: of the model, for a sub-folder per module.

        Returns:
            A `path` and a `type` for each, as its `modules.json` lists them.
        """
        return None

    @classmethod
    def kept(cls, options: Any, folder: Path) -> Any:
        """The options by which the trunk is built out of what `keep` wrote.

        Args:
            options: of the run.
            folder: as for `keep`.
        """
        return options

    @abstractmethod
    def forward(self, samples: Tensor) -> Tensor:
        """Features [B, features] of samples [B, *sample_shape]: float32, or uint8 for texts (`dmlcore.data.texts_of`)."""
