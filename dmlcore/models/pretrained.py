"""What trunks of other libraries share: options, the normalisation of images, and what a run keeps of them."""

from __future__ import annotations

import dataclasses
import importlib
import math
import os
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dmlcore.config import check_range
from dmlcore.errors import ConfigError, first_line
from dmlcore.files import expanded, make_folder
from dmlcore.models.adapters import add_adapters, merge_adapters, own_weights
from dmlcore.models.checkpointing import checkpoint_stages
from dmlcore.models.pooling import Pooling
from dmlcore.models.trunks import Trunk
from dmlcore.models.weight_files import do_weights_follow, write_weights

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
PUBLISHED, AT_RANDOM = "pretrained", "none"
KEPT = "weights.pt"
_Options = TypeVar("_Options", bound="PretrainedOptions")


_AXES = 512  # numbers of an embedding that keep what the features of a large trunk say


@dataclass(frozen=True)
class PretrainedOptions:
    """Options of every trunk of another library."""

    weights: str = PUBLISHED
    """pretrained: the published ones, out of this computer's cache; none: drawn at random; or a .pth, .pt or .safetensors
    file."""
    pool: Pooling = "auto"
    """What makes one vector of the features at all places: their avg, max, avg+max (the sum of both) or gem (generalised
    mean), the cls token, or auto: what the network was made for."""
    lora: int = 0
    """Rank of adapters beside the layers, which are trained instead of the network's own weights; 0: none."""
    mean: tuple[float, ...] | None = None
    """Mean of red, green and blue in 0..1 that is taken off the pixels (default: as the weights expect it)."""
    std: tuple[float, ...] | None = None
    """Deviation of red, green and blue that pixels are divided by (default: as the weights expect it)."""

    def __post_init__(self) -> None:
        check_range("lora", self.lora, least=0)
        if not self.weights:
            raise ConfigError(f"weights is empty, but must be {PUBLISHED}, {AT_RANDOM} or a file")
        if self.has_file:  # a run must find the file from any working folder
            object.__setattr__(self, "weights", os.path.abspath(expanded(self.weights)))
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None and (len(values) != 3 or not all(map(math.isfinite, values))):
                raise ConfigError(f"{name} has {len(values)} numbers, but must have 3 finite ones: red, green, blue")
        if self.std is not None and min(self.std) <= 0:
            raise ConfigError(f"std is {self.std}, but must be above 0")

    @property
    def is_drawn(self) -> bool:
        """Whether the weights are drawn at random."""
        return self.weights == AT_RANDOM

    @property
    def has_file(self) -> bool:
        """Whether `weights` names a file."""
        return self.weights not in (PUBLISHED, AT_RANDOM)


_CHECKPOINTING: dict[str, dict[str, Any]] = {
    "set_grad_checkpointing": {"enable": True},
    "gradient_checkpointing_enable": {"gradient_checkpointing_kwargs": {"use_reentrant": False}},
}
"""Methods by which networks of libraries keep few activations, and their arguments."""


class PretrainedTrunk(Trunk):
    """A network of another library without its classifier. Images are normalised here, and grey ones repeated in three
    channels. A subclass sets `network` and `features`, and calls `expect` and `adapt`.
    """

    network: nn.Module
    mean: Tensor
    std: Tensor
    options: Any

    @classmethod
    def preset(cls, options: PretrainedOptions, sample_shape: tuple[int, ...]) -> dict[str, Any]:
        """A trained trunk is changed slowly, below a head that begins as the principal axes of its features."""
        if options.is_drawn:
            return {}
        return {"embedding_dim": _AXES, "compress": 0, "head_start": "principal", "learning_rate": 1e-4}

    def expect(self, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
        """Set what images are normalised by, where the options say nothing else.

        Args:
            mean: of the three channels in 0..1. None: ImageNet's.
            std: their deviation. None: ImageNet's.
        """
        self.register_buffer("mean", torch.tensor(self.options.mean or tuple(mean or _IMAGENET_MEAN)).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(self.options.std or tuple(std or _IMAGENET_STD)).view(3, 1, 1))

    def normalised(self, images: Tensor) -> Tensor:
        """What the network takes [B, 3, H, W] of images [B, C, H, W] in 0..1."""
        return (images.expand(-1, 3, -1, -1) - self.mean) / self.std

    def adapt(self) -> None:
        """Add the adapters that the options ask for. To be called when the network has its weights."""
        if self.options.lora:
            add_adapters(self.network, self.options.lora)

    def checkpoint_gradients(self) -> None:
        """By the library's own means, or else stage by stage."""
        network: Any = self.network
        for name, arguments in _CHECKPOINTING.items():
            if hasattr(network, name):
                try:
                    getattr(network, name)(**arguments)
                except (AssertionError, NotImplementedError, ValueError) as error:  # it has the method, and refuses
                    raise ConfigError(f"'{self.name}' has no gradient checkpointing for this network ({error})") from None
                return
        checkpoint_stages(network)

    def merge(self) -> None:
        """Make what the adapters have learnt part of the network's weights."""
        if self.options.lora:
            merge_adapters(self.network)
            self.options = dataclasses.replace(self.options, lora=0)

    def count_features(self, samples: Tensor, expected_side: int) -> int:
        """The columns of `forward`, found by calling it on one sample.

        Args:
            samples: [1, ...].
            expected_side: of the images that the network was made for, pixels, for the message.

        Raises:
            ConfigError: it cannot take samples of this size.
        """
        was_training = self.training
        self.eval()
        try:
            with torch.no_grad():
                return self(samples).shape[1]
        except (RuntimeError, AssertionError, ValueError) as error:
            height, width = samples.shape[-2:]
            raise ConfigError(
                f"'{self.options.arch}' cannot take images of {height} x {width} pixels ({first_line(error)})."
                f" Give an image size of {expected_side}, or a network for small images such as resnet18"
            ) from error
        finally:
            self.train(was_training)

    def keep(self, folder: Path) -> None:
        """Write the weights that training starts from, if they are not drawn from the seed."""
        if not self.options.is_drawn and not do_weights_follow():
            make_folder(folder)
            write_weights(folder / KEPT, own_weights(self.network))

    def shared_options(self) -> Any:
        """The options without the places of files."""
        return dataclasses.replace(self.options, weights=PUBLISHED) if self.options.has_file else self.options

    @classmethod
    def kept(cls, options: _Options, folder: Path) -> _Options:
        """Options by which the weights come from the run's folder."""
        file = folder / KEPT
        return dataclasses.replace(options, weights=str(file)) if file.is_file() else options

    @abstractmethod
    def forward(self, samples: Tensor) -> Tensor:
        """Features [B, features] of samples [B, ...]."""


def import_library(module: str, package: str) -> Any:
    """A module of a library that trunks are taken from.

    Args:
        module: its name.
        package: as pip knows it.

    Raises:
        ConfigError: it is missing, or does not fit the installed torch; the message has the remedy.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] == module.split(".")[0]:
            raise ConfigError(f"{package} is not installed. Run `pip install {package}`, or use a built-in model") from None
        raise ConfigError(f"{package} cannot be imported: {error}. Install what is missing, or use a built-in model") from error
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        reason = first_line(error)
        raise ConfigError(
            f"{package} does not work with the installed torch {torch.__version__} ({reason}). Install"
            f" both from the same place: `pip install --force-reinstall {package}`"
        ) from error


def not_here(arch: str, option: str, command: str) -> ConfigError:
    """The error about published weights that this computer has not got.

    Args:
        arch: the network.
        option: the trunk's name, before its options.
        command: what fetches them.
    """
    return ConfigError(
        f"the pretrained weights of '{arch}' are not on this computer, and training fetches nothing. Fetch them once by"
        f" `{command}`, or give a file or {AT_RANDOM} as --{option}.weights"
    )
