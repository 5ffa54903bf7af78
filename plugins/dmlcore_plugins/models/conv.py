"""A small convolutional trunk, which trains in minutes on a CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint_sequential

import dmlcore
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

    def __post_init__(self) -> None:
        if not self.channels or min(self.channels) < 1:
            raise ConfigError(f"channels are {self.channels}, but must be one or more positive numbers")


class Conv(Trunk):
    """Blocks of convolution, max pooling, batch normalisation and ReLU, then the mean and the maximum over the places, or
    another pooling.

    Pooling before normalising makes a training step a third cheaper on a CPU than the usual order.
    """

    name = "conv"
    Options = ConvOptions
    accepts = frozenset(("images",))
    default_for = frozenset(("images",))

    def __init__(self, options: ConvOptions, sample_shape: tuple[int, ...]) -> None:
        super().__init__(options, sample_shape)
        before, height, width = sample_shape
        side = min(height, width)
        stride = 2 if side >= _STRIDED_FROM else 1
        layers: list[nn.Module] = []
        for channels in options.channels:
            normalises = options.norm == "batch"
            layers.append(nn.Conv2d(before, channels, 3, stride=stride, padding=1, bias=not normalises))
            side = -(-side // stride)
            if side >= _POOLED_FROM:
                layers.append(nn.MaxPool2d(2))
                side //= 2
            layers += [nn.BatchNorm2d(channels), nn.ReLU()] if normalises else [nn.ReLU()]
            before, stride = channels, 1
        self.blocks = nn.Sequential(*layers)
        self.pool = None if options.pool == "auto" else Pool(options.pool)
        self.features = 2 * before if self.pool is None else before
        self.segments = 0  # of the blocks that are computed again in the backward pass

    def checkpoint_gradients(self) -> None:
        self.segments = len(self.options.channels)

    def forward(self, samples: Tensor) -> Tensor:
        """Features [B, 2 * channels], or [B, channels] by another pooling, of images [B, C, H, W] in 0..1."""
        pixels = samples.to(memory_format=torch.channels_last) - 0.5
        if self.segments and torch.is_grad_enabled():
            places = checkpoint_sequential(self.blocks, self.segments, pixels, use_reentrant=False)
        else:
            places = self.blocks(pixels)  # [B, C', h, w]
        if self.pool is not None:
            return self.pool(rows_of(places))
        return torch.cat([places.mean((2, 3)), places.amax((2, 3))], 1)


@dmlcore.hookimpl
def dmlcore_models() -> list[type]:
    return [Conv]
