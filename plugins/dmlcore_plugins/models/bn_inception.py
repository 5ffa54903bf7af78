"""BN-Inception as a trunk: the network of many publications on metric learning. It is built here, and its layers have the names
of the published weights file, so no other library is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import dmlcore
from dmlcore.errors import ConfigError
from dmlcore.models import (
    Pool,
    PretrainedOptions,
    PretrainedTrunk,
    do_weights_follow,
    in_torch_cache,
    load_weights,
    not_here,
    rows_of,
)

_URL = "http://data.lip6.fr/cadene/pretrainedmodels/bn_inception-52deb4733.pth"
_MEAN = (128 / 255, 117 / 255, 104 / 255)  # of red, green and blue; the weights expect 0..255 with the mean taken off
_STD = (1 / 255, 1 / 255, 1 / 255)
_CLASSIFIERS = ("last_linear.", "fc.")
_FEATURES = 1024
_SIDE = 227  # of pictures in the publications
_LEAST = 32  # pixels


class _Block(NamedTuple):
    """Channels of an inception block. A block without `plain` halves height and width."""

    plain: int
    """Of the 1x1 convolution."""
    single: tuple[int, int]
    """Of the 3x3 convolution: reduced to, and out."""
    double: tuple[int, int, int]
    """Of the two 3x3 convolutions in a row: reduced to, and out of each."""
    pool: Literal["avg", "max"]
    projected: int
    """Of the 1x1 convolution behind the pooling."""


_BLOCKS = {
    "3a": _Block(64, (64, 64), (64, 96, 96), "avg", 32),
    "3b": _Block(64, (64, 96), (64, 96, 96), "avg", 64),
    "3c": _Block(0, (128, 160), (64, 96, 96), "max", 0),
    "4a": _Block(224, (64, 96), (96, 128, 128), "avg", 128),
    "4b": _Block(192, (96, 128), (96, 128, 128), "avg", 128),
    "4c": _Block(160, (128, 160), (128, 160, 160), "avg", 128),
    "4d": _Block(96, (128, 192), (160, 192, 192), "avg", 128),
    "4e": _Block(0, (128, 192), (192, 256, 256), "max", 0),
    "5a": _Block(352, (192, 320), (160, 224, 224), "avg", 128),
    "5b": _Block(352, (192, 320), (192, 224, 224), "max", 128),
}


@dataclass(frozen=True)
class BnInceptionOptions(PretrainedOptions):
    """Options of BN-Inception."""


class BnInception(PretrainedTrunk):
    """BN-Inception, which takes blue, green and red in 0..255 inside. Samples stay as everywhere, red, green and blue in 0..1.

    Source: Ioffe, Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift",
    ICML 2015, figure 5, as Caffe's users have trained it: block 5b pools by the maximum, 3c and 4e have stride 2.
    """

    network: BnInceptionNetwork
    name = "bn_inception"
    Options = BnInceptionOptions
    accepts = frozenset(("images",))

    def __init__(self, options: BnInceptionOptions, sample_shape: tuple[int, ...]) -> None:
        super().__init__(options, sample_shape)
        if options.pool == "cls":
            raise ConfigError("BN-Inception has no token of the whole image, so its pooling cannot be cls: take avg or gem")
        height, width = sample_shape[1:]
        if any(side < _LEAST or _side_after_pooling(side) % 4 for side in (height, width)):
            raise ConfigError(
                f"BN-Inception cannot take images of {height} x {width} pixels: its halved maps would differ in size. Give an"
                f" image size of {_SIDE}, or a multiple of 32"
            )
        file = _weights_file(options)
        self.network = BnInceptionNetwork()
        if file is not None:
            load_weights(self.network, file, "BN-Inception", ignored=_CLASSIFIERS, adapt=_in_rows)
        self.pool = Pool("avg" if options.pool == "auto" else options.pool)
        self.expect(_MEAN, _STD)
        self.adapt()
        self.features = _FEATURES

    @classmethod
    def image_size(cls, options: BnInceptionOptions) -> int:
        """What publications on metric learning cut."""
        return _SIDE

    def checkpoint_gradients(self) -> None:
        self.network.is_checkpointed = True

    def forward(self, samples: Tensor) -> Tensor:
        """Features [B, 1024] of images [B, C, H, W] in 0..1."""
        return self.pool(rows_of(self.network(self.normalised(samples).flip(1))))


class BnInceptionNetwork(nn.Module):
    """The convolutions, under the names of the published file: pixels [B, 3, H, W] to a map [B, 1024, H / 32, W / 32]."""

    def __init__(self) -> None:
        super().__init__()
        self.is_checkpointed = False
        self._add("conv1_7x7_s2", 3, 64, 7, stride=2)
        self._add("conv2_3x3_reduce", 64, 64, 1)
        self._add("conv2_3x3", 64, 192, 3)
        width = 192
        for name, block in _BLOCKS.items():
            width = self._add_block(f"inception_{name}", width, block)

    def forward(self, pixels: Tensor) -> Tensor:
        """A map of features, of pixels as the weights expect them."""
        places = _halved(self._layer("conv1_7x7_s2", pixels))  # [B, 64, H / 4, W / 4]
        places = _halved(self._layer("conv2_3x3", self._layer("conv2_3x3_reduce", places)))  # [B, 192, H / 8, W / 8]
        for name in _BLOCKS:
            if self.is_checkpointed and torch.is_grad_enabled():
                places = checkpoint(self.block, name, places, use_reentrant=False)
            else:
                places = self.block(name, places)
        return places

    def block(self, name: str, places: Tensor) -> Tensor:
        """What an inception block makes of a map.

        Args:
            name: `3a` to `5b`.
            places: [B, C, H, W].
        """
        block, start = _BLOCKS[name], f"inception_{name}"
        single = self._layer(f"{start}_3x3", self._layer(f"{start}_3x3_reduce", places))
        double = self._layer(f"{start}_double_3x3_1", self._layer(f"{start}_double_3x3_reduce", places))
        double = self._layer(f"{start}_double_3x3_2", double)
        if not block.plain:
            return torch.cat([single, double, _halved(places)], 1)
        if block.pool == "avg":
            pooled = functional.avg_pool2d(places, 3, 1, 1, ceil_mode=True)
        else:
            pooled = functional.max_pool2d(places, 3, 1, 1, ceil_mode=True)
        plain, projected = self._layer(f"{start}_1x1", places), self._layer(f"{start}_pool_proj", pooled)
        return torch.cat([plain, single, double, projected], 1)

    def _layer(self, name: str, places: Tensor) -> Tensor:
        return getattr(self, f"{name}_bn")(getattr(self, name)(places)).relu()

    def _add(self, name: str, before: int, channels: int, side: int, stride: int = 1) -> None:
        self.add_module(name, nn.Conv2d(before, channels, side, stride, padding=side // 2))
        self.add_module(f"{name}_bn", nn.BatchNorm2d(channels))

    def _add_block(self, start: str, before: int, block: _Block) -> int:
        stride = 1 if block.plain else 2
        if block.plain:
            self._add(f"{start}_1x1", before, block.plain, 1)
        self._add(f"{start}_3x3_reduce", before, block.single[0], 1)
        self._add(f"{start}_3x3", block.single[0], block.single[1], 3, stride)
        self._add(f"{start}_double_3x3_reduce", before, block.double[0], 1)
        self._add(f"{start}_double_3x3_1", block.double[0], block.double[1], 3)
        self._add(f"{start}_double_3x3_2", block.double[1], block.double[2], 3, stride)
        if block.plain:
            self._add(f"{start}_pool_proj", before, block.projected, 1)
        return block.plain + block.single[1] + block.double[2] + (block.projected if block.plain else before)


def _side_after_pooling(side: int) -> int:
    """The side of the map before block 3a. A block with stride 2 halves it by convolution, rounded up, and by pooling, rounded
    down, so it must be even in both of them."""
    return -(-side // 2) // 2 // 2


def _halved(places: Tensor) -> Tensor:
    return functional.max_pool2d(places, 3, 2, ceil_mode=True)


def _weights_file(options: BnInceptionOptions) -> Path | None:
    """The file of the weights. None: they are drawn at random, or follow."""
    if options.is_drawn or do_weights_follow():
        return None
    if options.has_file:
        return Path(options.weights)
    file = in_torch_cache(_URL)
    if file is None:
        code = f"import torch; torch.hub.load_state_dict_from_url('{_URL}')"
        raise not_here("BN-Inception", "bn_inception", f'python -c "{code}"')
    return file


def _in_rows(weights: dict[str, Any]) -> dict[str, Any]:
    """Weights of the first edition of the file, whose batch normalisation had a row of numbers for each layer."""
    return {name: value.flatten() if value.ndim == 2 and "_bn." in name else value for name, value in weights.items()}


@dmlcore.hookimpl
def dmlcore_models() -> list[type]:
    return [BnInception]
