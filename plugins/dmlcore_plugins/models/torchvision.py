"""Any classification network of torchvision as a trunk: the classifier layer is taken off. torchvision is imported when the
first such trunk is asked for, and only here.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import dmlcore
from dmlcore.errors import ConfigError, DataError, suggestion
from dmlcore.files import code_in, expanded
from dmlcore.models import Trunk, without_prefixes

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_PREFIX = "torchvision/"  # before the name of a network that another trunk is called by
_CLASSES = 1000  # of torchvision's classifiers
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # classifiers used only to train for ImageNet
_WRAPPERS = ("state_dict", "model", "model_state_dict")  # keys under which training scripts store weights


@dataclass(frozen=True)
class TorchvisionOptions:
    """Options of the torchvision trunk."""

    arch: str = "resnet18"
    """A classification network of torchvision, such as resnet18, mobilenet_v3_small, convnext_tiny, vit_b_16."""
    weights: str = "none"
    """none: drawn at random; default: torchvision's best for the network (downloaded once); or a .pth or .safetensors file."""


class TorchvisionTrunk(Trunk):
    """A classification network of torchvision up to its last layer. Grey images are repeated in three channels. The
    normalisation its weights expect is part of it.
    """

    name = "torchvision"
    Options = TorchvisionOptions
    accepts = frozenset(("images",))
    names_note = "Trunks of torchvision go by their name there, such as resnet18."

    mean: Tensor
    std: Tensor

    def __init__(self, options: TorchvisionOptions, sample_shape: tuple[int, ...]) -> None:
        super().__init__(options, sample_shape)
        height, width = sample_shape[1:]
        self.network = _create(options, min(height, width))
        _remove_classifier(self.network, options.arch)
        if options.weights not in ("none", "default"):
            _load_weights(self.network, expanded(options.weights), options.arch)
        _, mean, std = _expected(options.arch)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.features = self._count_features(height, width)

    @classmethod
    def claims(cls, name: str) -> dict[str, Any] | None:
        """The network of a name of torchvision, with or without `torchvision/` before it."""
        if name.startswith(_PREFIX):
            return {"arch": name.removeprefix(_PREFIX)}
        try:
            return {"arch": name} if name in architectures() else None
        except ConfigError as error:
            raise ConfigError(f"If it is one of torchvision's: {error}") from None

    @classmethod
    def further_names(cls) -> Sequence[str]:
        """The classification networks of torchvision."""
        return architectures()

    @classmethod
    def image_size(cls, options: TorchvisionOptions) -> int:
        """What the network's published weights were evaluated at, pixels."""
        import_torchvision()
        _check_arch(options.arch)
        return _expected(options.arch)[0]

    def forward(self, samples: Tensor) -> Tensor:
        """Features [B, features] of images [B, C, H, W] in 0..1."""
        images = (samples.expand(-1, 3, -1, -1) - self.mean) / self.std  # [B, 3, H, W]
        return _rows(self.network(images))

    def _count_features(self, height: int, width: int) -> int:
        was_training = self.network.training
        self.network.eval()
        try:
            with torch.no_grad():
                return _rows(self.network(torch.zeros(1, 3, height, width))).shape[1]
        except (RuntimeError, AssertionError, ValueError) as error:
            reason = str(error).splitlines()[0]
            arch = self.options.arch
            raise ConfigError(
                f"'{arch}' cannot take images of {height} x {width} pixels ({reason}). Give an image"
                f" size of {_expected(arch)[0]}, or a network for small images such as resnet18"
            ) from error
        finally:
            self.network.train(was_training)


def import_torchvision() -> Any:
    """The module `torchvision.models`.

    Raises:
        ConfigError: torchvision is missing, or does not fit the installed torch; the message has the remedy.
    """
    try:
        return importlib.import_module("torchvision.models")
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] == "torchvision":
            raise ConfigError("torchvision is not installed. Run `pip install torchvision`, or use the model conv") from None
        raise ConfigError(f"torchvision cannot be imported: {error}. Install what is missing, or use the model conv") from error
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"torchvision does not work with the installed torch {torch.__version__} ({reason}). Install"
            f" both from the same place: `pip install --force-reinstall torchvision`, or use conv"
        ) from error


@functools.cache
def architectures() -> tuple[str, ...]:
    """Names of torchvision's classification networks (not of its quantised ones).

    Raises:
        ConfigError: torchvision cannot be imported.
    """
    models = import_torchvision()
    return tuple(models.list_models(module=models))


def _check_arch(arch: str) -> None:
    if arch not in architectures():
        raise ConfigError(f"torchvision has no classification network '{arch}'.{suggestion(arch, architectures())}")


def _expected(arch: str) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """Side in pixels, mean and deviation of the channels that the default weights were made for."""
    default = import_torchvision().get_model_weights(arch).DEFAULT
    settings = getattr(default.transforms, "keywords", {})
    return settings.get("crop_size", 224), settings.get("mean", _IMAGENET_MEAN), settings.get("std", _IMAGENET_STD)


def _create(options: TorchvisionOptions, side: int) -> nn.Module:
    _check_arch(options.arch)
    models = import_torchvision()
    settings: dict[str, Any] = {}
    if options.arch in ("googlenet", "inception_v3"):
        settings = {"aux_logits": False}
        if options.weights != "default":
            settings["init_weights"] = False  # torchvision's own draw takes a minute
        if options.weights not in ("none", "default"):
            settings["transform_input"] = True  # torchvision's weights of these two expect pixels in -1..1
    if options.arch.startswith("vit_") and options.weights == "none":
        settings["image_size"] = side
    if options.arch == "maxvit_t" and side != 224:
        settings["input_size"] = (side, side)
    try:
        return models.get_model(options.arch, weights="DEFAULT" if options.weights == "default" else None, **settings)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a damaged download fails its hash
        raise ConfigError(
            f"the weights of '{options.arch}' cannot be loaded ({error}). Download them elsewhere and give"
            f" the file as torchvision.weights, or set it to none"
        ) from error
    except ValueError as error:
        raise ConfigError(f"'{options.arch}' cannot be built for images of {side} pixels: {error}") from error


def _remove_classifier(network: nn.Module, arch: str) -> None:
    for name, layer in reversed(list(network.named_modules())):
        outputs = layer.out_features if isinstance(layer, nn.Linear) else getattr(layer, "out_channels", None)
        if outputs == _CLASSES and isinstance(layer, (nn.Linear, nn.Conv2d)):
            parent, _, attribute = name.rpartition(".")
            setattr(network.get_submodule(parent), attribute, nn.Identity())
            return
    raise ConfigError(f"'{arch}' of torchvision has no classifier layer that could be taken off")


def _rows(output: Any) -> Tensor:
    logits = getattr(output, "logits", output)  # googlenet and inception give several outputs while training
    return logits.flatten(1)


def _load_weights(network: nn.Module, file: Path, arch: str) -> None:
    weights = _read_weights(file)
    for wrapper in _WRAPPERS:
        if isinstance(weights.get(wrapper), Mapping):
            weights = weights[wrapper]
    expected = network.state_dict()
    try:
        weights = without_prefixes(weights, expected)
    except ConfigError as error:
        raise ConfigError(f"the weights in '{file}' cannot be assigned: {error}") from None
    missing = sorted(name for name in expected if name not in weights and not name.endswith("num_batches_tracked"))
    wrong = sorted(name for name, value in expected.items() if name in weights and _shape(weights[name]) != value.shape)
    if missing or wrong:
        lacks = f"lacks {len(missing)} of {len(expected)} entries, the first is '{missing[0]}'" if missing else ""
        problem = lacks or f"has another shape of '{wrong[0]}'"
        raise ConfigError(f"the weights in '{file}' are not of '{arch}': the file {problem}")
    left = [name for name in weights if name not in expected and not name.startswith(_AUXILIARY)]
    if len(left) > 2:  # the classifier itself is one weight and one bias
        raise ConfigError(
            f"the weights in '{file}' are not of '{arch}': the file has {len(left)} entries too many, such as '{left[0]}'"
        )
    network.load_state_dict({name: value for name, value in weights.items() if name in expected}, strict=False)


def _shape(value: Any) -> Any:
    return getattr(value, "shape", None)


def _read_weights(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise DataError(
            f"there is no weights file '{file}': torchvision.weights is none, default, or a .pth or .safetensors file"
        )
    try:
        if file.suffix == ".safetensors":
            return importlib.import_module("safetensors.torch").load_file(file)
        weights = torch.load(file, map_location="cpu", weights_only=True)
    except ModuleNotFoundError:
        raise ConfigError("reading .safetensors needs the package safetensors: `pip install safetensors`") from None
    except Exception as error:  # the two libraries raise many types, several of them bare RuntimeError or UnpicklingError
        holds = f"holds code ({code}), which is never run" if (code := code_in(error, file)) else "cannot be read"
        raise DataError(f"the weights file '{file}' {holds}. A state dict of tensors is needed") from error
    if not isinstance(weights, Mapping):
        raise DataError(f"the weights file '{file}' holds a {type(weights).__name__}, but a state dict of tensors is needed")
    return dict(weights)


@dmlcore.hookimpl
def dmlcore_models() -> list[type]:
    return [TorchvisionTrunk]
