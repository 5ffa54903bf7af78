"""A small convolutional trunk, which trains in minutes on a CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import dmlcore
from dmlcore.config import check_range
from dmlcore.errors import ConfigError
from dmlcore.models import Pool, Trunk, rows_of

_STRIDED_FROM = 48  # images with a shorter side of this many pixels are halved by the first convolution
_POOLED_FROM = 4  # smaller maps are not pooled any more, so that any image can be taken


@dataclass(frozen=True)
class ConvOptions:
    """Options of the small convolutional trunk."""

    channels: tuple[int, ...] = (32, 64, 128, 256)
    """Channels of each block; every block halves height and width."""
    norm: Literal["batch", "none"] = "batch"
    """What normalises after each convolution: the batch, or nothing, for training that takes a few steps or samples only."""

    pool: Literal["auto", "avg", "max", "avg+max", "gem"] = "auto"
    """What makes one vector of the features at all places: their avg, max, avg+max (the sum of both) or gem (generalised mean),
    or auto: avg and max side by side, which is twice as long."""

    pooled_blocks: int = 1
    """The last so many blocks of which features are pooled, side by side."""

    def __post_init__(self) -> None:
        if not self.channels or min(self.channels) < 1:
            raise ConfigError(f"channels are {self.channels}, but must be one or more positive numbers")
        check_range("pooled_blocks", self.pooled_blocks, least=1, most=len(self.channels))


class MaxPool(nn.MaxPool2d):
    """Maxima of squares of 2 x 2 places. Without gradients on a CPU a third as long: PyTorch's own looks for places too."""

    def forward(self, places: Tensor) -> Tensor:
        is_graph = torch.compiler.is_compiling() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        if torch.is_grad_enabled() or is_graph or not places.is_cpu:
            return nn.functional.max_pool2d(places, 2)
        height, width = (2 * (side // 2) for side in places.shape[2:])
        rows = torch.maximum(places[:, :, 0:height:2], places[:, :, 1:height:2])  # [B, C, h, W]
        return torch.maximum(rows[..., 0:width:2], rows[..., 1:width:2])


class Conv(Trunk):
    """Blocks of convolution, max pooling, batch normalisation and ReLU, then the mean and the maximum over the places, or
    another pooling.

    Pooling before normalising makes a training step a third cheaper on a CPU than the usual order.
    """

    name = "conv"
    Options = ConvOptions
    accepts = frozenset(("images",))
    default_for = frozenset(("images",))

    @classmethod
    def preset(cls, options: ConvOptions, sample_shape: tuple[int, ...]) -> dict[str, Any]:
        """Such a small network learns at a high rate. `docs/reports/defaults.md` has the measurements."""
        return {"learning_rate": 4e-3}

    def __init__(self, options: ConvOptions, sample_shape: tuple[int, ...]) -> None:
        super().__init__(options, sample_shape)
        before, height, width = sample_shape
        side = min(height, width)
        stride = 2 if side >= _STRIDED_FROM else 1
        layers: list[nn.Module] = []
        self.ends: list[int] = []  # of the blocks among the layers
        for channels in options.channels:
            normalises = options.norm == "batch"
            layers.append(nn.Conv2d(before, channels, 3, stride=stride, padding=1, bias=not normalises))
            side = -(-side // stride)
            if side >= _POOLED_FROM:
                layers.append(MaxPool(2))
                side //= 2
            layers += [nn.BatchNorm2d(channels), nn.ReLU()] if normalises else [nn.ReLU()]
            before, stride = channels, 1
            self.ends.append(len(layers))
        self.blocks = nn.Sequential(*layers)
        self.pool = None if options.pool == "auto" else Pool(options.pool)
        pooled = options.channels[-options.pooled_blocks :]
        self.block_features = tuple(2 * channels if self.pool is None else channels for channels in pooled)
        self.features = sum(self.block_features)
        self.computes_again = False  # the blocks, in the backward pass

    def checkpoint_gradients(self) -> None:
        self.computes_again = True

    def forward(self, samples: Tensor) -> Tensor:
        """Features [B, 2 * channels], or [B, channels] by another pooling, of images [B, C, H, W] in 0..1. The channels are
        those of the pooled blocks together."""
        places = samples.to(memory_format=torch.channels_last) - 0.5
        computes_again = self.computes_again and torch.is_grad_enabled()
        pooled: list[Tensor] = []
        start, first_pooled = 0, len(self.ends) - self.options.pooled_blocks
        for block, end in enumerate(self.ends):
            layers = self.blocks[start:end]
            places = checkpoint(layers, places, use_reentrant=False) if computes_again else layers(places)  # [B, C', h, w]
            if block >= first_pooled:
                pooled += self._pool(places)
            start = end
        return torch.cat(pooled, 1) if len(pooled) > 1 else pooled[0]

    def _pool(self, places: Tensor) -> list[Tensor]:
        return [places.mean((2, 3)), places.amax((2, 3))] if self.pool is None else [self.pool(rows_of(places))]


@dmlcore.hookimpl
def dmlcore_models() -> list[type]:
    return [Conv]
