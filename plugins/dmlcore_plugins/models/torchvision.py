"""Any classification network of torchvision as a trunk: the classifier layer is taken off. torchvision is imported when the
first such trunk is asked for, and only here.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import dmlcore
from dmlcore.errors import ConfigError, suggestion
from dmlcore.models import (
    Pool,
    PretrainedOptions,
    PretrainedTrunk,
    do_weights_follow,
    import_library,
    in_torch_cache,
    load_weights,
    not_here,
    rows_of,
)

_CLASSES = 1000  # of torchvision's classifiers
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # classifiers used only to train for ImageNet
_OLD_DENSE = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")  # names in the published weights of DenseNet


@dataclass(frozen=True)
class TorchvisionOptions(PretrainedOptions):
    """Options of the torchvision trunk."""

    arch: str = "resnet18"
    """A classification network of torchvision, such as resnet18, mobilenet_v3_small, convnext_tiny, vit_b_16."""


class TorchvisionTrunk(PretrainedTrunk):
    """A classification network of torchvision up to its last layer. Grey images are repeated in three channels. The
    normalisation its weights expect is part of it.
    """

    name = "torchvision"
    Options = TorchvisionOptions
    accepts = frozenset(("images",))
    names_option = "arch"

    def __init__(self, options: TorchvisionOptions, sample_shape: tuple[int, ...]) -> None:
        super().__init__(options, sample_shape)
        height, width = sample_shape[1:]
        models = _models()
        _check_arch(options.arch)
        file = _weights_file(options)
        self.network = _create(models, options, min(height, width), is_drawn=options.is_drawn)
        _remove_classifier(self.network, options.arch)
        if file is not None:
            load_weights(self.network, file, options.arch, ignored=_AUXILIARY, adapt=_renamed)
        if options.pool != "auto":
            _replace_pooling(self.network, options)
        expected = _expected(options.arch)
        self.expect(expected.get("mean"), expected.get("std"))
        self.adapt()
        self.features = self.count_features(torch.zeros(1, *sample_shape), self.image_size(options))

    @classmethod
    def image_size(cls, options: TorchvisionOptions) -> int:
        """What the network's published weights were evaluated at, pixels."""
        _check_arch(options.arch)
        return _expected(options.arch).get("crop_size", 224)

    @classmethod
    def interpolation(cls, options: TorchvisionOptions) -> Literal["bilinear", "bicubic"]:
        """How images were resized for the network's published weights."""
        _check_arch(options.arch)
        how = str(getattr(_expected(options.arch).get("interpolation"), "value", ""))
        return "bicubic" if how == "bicubic" else "bilinear"

    def forward(self, samples: Tensor) -> Tensor:
        """Features [B, features] of images [B, C, H, W] in 0..1."""
        output = self.network(self.normalised(samples))
        return getattr(output, "logits", output).flatten(1)  # googlenet and inception give several outputs while training


def _models() -> Any:
    return import_library("torchvision.models", "torchvision")


@functools.cache
def architectures() -> tuple[str, ...]:
    """Names of torchvision's classification networks (not of its quantised ones).

    Raises:
        ConfigError: torchvision cannot be imported.
    """
    models = _models()
    return tuple(models.list_models(module=models))


def _check_arch(arch: str) -> None:
    if arch not in architectures():
        raise ConfigError(f"torchvision has no classification network '{arch}'.{suggestion(arch, architectures())}")


def _expected(arch: str) -> dict[str, Any]:
    """How images were prepared for the published weights: `crop_size`, `interpolation`, and for some `mean` and `std`."""
    return getattr(_models().get_model_weights(arch).DEFAULT.transforms, "keywords", {})


def _weights_file(options: TorchvisionOptions) -> Path | None:
    """The file of the weights. None: they are drawn at random, or follow."""
    if options.is_drawn or do_weights_follow():
        return None
    if options.has_file:
        return Path(options.weights)
    file = in_torch_cache(_models().get_model_weights(options.arch).DEFAULT.url)
    if file is None:
        code = f"import torchvision; torchvision.models.get_model('{options.arch}', weights='DEFAULT')"
        raise not_here(options.arch, "torchvision", f'python -c "{code}"')
    return file


def _create(models: Any, options: TorchvisionOptions, side: int, *, is_drawn: bool) -> nn.Module:
    settings: dict[str, Any] = {}
    if options.arch in ("googlenet", "inception_v3"):
        # torchvision's own draw takes a minute. Its weights of these two expect pixels in -1..1.
        settings = {"aux_logits": False, "init_weights": False, **({} if is_drawn else {"transform_input": True})}
    if options.arch.startswith("vit_") and is_drawn:
        settings["image_size"] = side
    if options.arch == "maxvit_t" and side != 224:
        settings["input_size"] = (side, side)
    try:
        return models.get_model(options.arch, weights=None, **settings)
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


def _renamed(weights: dict[str, Any]) -> dict[str, Any]:
    """Weights of an older version of torchvision by their present names."""
    return {_OLD_DENSE.sub(r"\1\2", name): value for name, value in weights.items()}


class _MapPool(nn.Module):
    """Pools a map [B, C, H, W] to [B, C, 1, 1], as the layer does that it stands for."""

    def __init__(self, how: Literal["avg", "max", "avg+max", "gem"]) -> None:
        super().__init__()
        self.pool = Pool(how)

    def forward(self, features: Tensor) -> Tensor:
        return self.pool(rows_of(features))[..., None, None]


def _replace_pooling(network: nn.Module, options: TorchvisionOptions) -> None:
    layer = getattr(network, "avgpool", None)
    if options.pool == "cls" or not isinstance(layer, nn.AdaptiveAvgPool2d) or layer.output_size not in (1, (1, 1)):
        raise ConfigError(
            f"the pooling of '{options.arch}' of torchvision cannot be '{options.pool}': it is for networks whose last layer"
            f" averages a map, such as resnet18, and is avg, max, avg+max or gem there. Many networks of timm take all of them"
        )
    network.avgpool = _MapPool(options.pool)  # type: ignore[arg-type]  # not auto, not cls


@dmlcore.hookimpl
def dmlcore_models() -> list[type]:
    return [TorchvisionTrunk]
