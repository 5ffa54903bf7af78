"""Any image network of timm (PyTorch Image Models) as a trunk, without its classifier. timm is imported when the first such
trunk is asked for, and only here.
"""

from __future__ import annotations

import contextlib
import functools
import io
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import dmlcore
from dmlcore.errors import ConfigError, first_line, suggestion
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

_FILES = ("model.safetensors", "pytorch_model.bin")  # of timm's repositories on the Hugging Face hub
_FILTERS = ("checkpoint_filter_fn", "_filter_fn")  # of timm's modules: they convert published weights


@dataclass(frozen=True)
class TimmOptions(PretrainedOptions):
    """Options of the timm trunk."""

    arch: str = "resnet18"
    """A network of timm, such as resnet50, convnext_tiny or vit_small_patch16_dinov3. Behind a dot stands which of its
    published weights are meant, as in resnet50.a1_in1k."""


class TimmTrunk(PretrainedTrunk):
    """A network of timm without its classifier."""

    name = "timm"
    Options = TimmOptions
    accepts = frozenset(("images",))
    names_option = "arch"

    def __init__(self, options: TimmOptions, sample_shape: tuple[int, ...]) -> None:
        super().__init__(options, sample_shape)
        expected = _expected(options.arch)
        file = _weights_file(options, expected)
        self.network = _create(options.arch, expected, sample_shape[1:])
        if file is not None:
            heads = expected.classifier or ()
            load_weights(
                self.network,
                file,
                options.arch,
                ignored=tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads)),
                adapt=functools.partial(_converted, network=self.network),
            )
        if options.pool == "cls" and not getattr(self.network, "num_prefix_tokens", 0):
            raise ConfigError(
                f"'{options.arch}' has no token of the whole image, so its pooling cannot be cls: take avg or gem"
            )
        self.pool = None if options.pool == "auto" else Pool(options.pool)
        self.expect(expected.mean, expected.std)
        self.adapt()
        self.features = self.count_features(torch.zeros(1, *sample_shape), self.image_size(options))

    @classmethod
    def image_size(cls, options: TimmOptions) -> int:
        """What the network's published weights were made for, pixels."""
        return _expected(options.arch).input_size[-1]

    @classmethod
    def interpolation(cls, options: TimmOptions) -> Literal["bilinear", "bicubic"]:
        """How images were resized for the network's published weights."""
        return "bicubic" if _expected(options.arch).interpolation == "bicubic" else "bilinear"

    def forward(self, samples: Tensor) -> Tensor:
        """Features [B, features] of images [B, C, H, W] in 0..1."""
        images = self.normalised(samples)
        if self.pool is None:
            return self.network(images)
        network: Any = self.network
        places = rows_of(network.forward_features(images), getattr(network, "output_fmt", "") == "NHWC")  # [B, N, C]
        own = getattr(network, "num_prefix_tokens", 0)  # of the whole image: the class, and registers
        return self.pool(places if self.options.pool == "cls" else places[:, own:])


def _timm() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return import_library("timm", "timm")


@functools.cache
def _expected(arch: str) -> Any:
    """timm's `PretrainedCfg`: how images were prepared for the published weights, and where these are.

    Raises:
        ConfigError: timm is missing, or has no such network or no such weights of it.
    """
    timm = _timm()
    name, _, tag = arch.partition(".")
    if not timm.is_model(name):
        raise ConfigError(f"timm has no network '{name}'.{suggestion(name, timm.list_models())}")
    tags = timm.models.list_pretrained(f"{name}.*")
    if tag and arch not in tags:
        raise ConfigError(f"timm has no weights '{tag}' of '{name}'.{suggestion(arch, tags)}")
    return timm.get_pretrained_cfg(arch)


def _weights_file(options: TimmOptions, expected: Any) -> Path | None:
    """The file of the weights. None: they are drawn at random, or follow."""
    if options.is_drawn or do_weights_follow():
        return None
    if options.has_file:
        return Path(options.weights)
    if not (expected.hf_hub_id or expected.url):
        raise ConfigError(f"timm has no pretrained weights of '{options.arch}'. Say --timm.weights none, or give a file")
    for name in (expected.hf_hub_filename,) if expected.hf_hub_filename else _FILES:
        file = expected.hf_hub_id and _in_hub_cache(expected.hf_hub_id, name)
        if file:
            return Path(file)
    file = in_torch_cache(expected.url) if expected.url else None
    if file is None:
        raise not_here(options.arch, "timm", f"python -c \"import timm; timm.create_model('{options.arch}', pretrained=True)\"")
    return file


def _in_hub_cache(repository: str, name: str) -> str | None:
    hub = import_library("huggingface_hub", "huggingface_hub")
    identity, _, revision = repository.partition("@")
    file = hub.try_to_load_from_cache(identity, name, revision=revision or None)
    return file if isinstance(file, str) else None


def _create(arch: str, expected: Any, size: tuple[int, ...]) -> nn.Module:
    # Networks with positions of their own are built for the size that the data have.
    settings: dict[str, Any] = {"img_size": size} if expected.fixed_input_size else {}
    with _quiet():
        try:
            return _timm().create_model(arch, pretrained=False, num_classes=0, **settings)
        except (TypeError, AssertionError, ValueError, RuntimeError) as error:
            side = expected.input_size[-1]
            raise ConfigError(
                f"'{arch}' cannot be built for images of {size[0]} x {size[1]} pixels ({first_line(error)})."
                f" Give an image size of {side}"
            ) from error


def _converted(weights: dict[str, Any], network: nn.Module) -> dict[str, Any]:
    """Published weights as this version of timm names them, with positions for this size of images."""
    module = sys.modules[type(network).__module__]
    convert = next((getattr(module, name) for name in _FILTERS if hasattr(module, name)), None)
    with _quiet():
        return weights if convert is None else convert(weights, network)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep remarks of timm's modules off the terminal."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


@dmlcore.hookimpl
def dmlcore_models() -> list[type]:
    return [TimmTrunk]
