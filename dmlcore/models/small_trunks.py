"""Small trunks that train in minutes on a CPU: convolutions for small images, an MLP for features, and no trunk at all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dmlcore.config import check_range
from dmlcore.errors import ConfigError
from dmlcore.models.trunks import Trunk

_STRIDED_FROM = 48  # images with a shorter side of this many pixels are halved by the first convolution
_POOLED_FROM = 4  # smaller maps are not pooled any more, so that any image can be taken


@dataclass(frozen=True)
class ConvOptions:
    """Options of the small convolutional trunk."""

    channels: tuple[int, ...] = (32, 64, 128, 256)
    """Channels of each block; every block halves height and width."""
    norm: Literal["batch", "none"] = "batch"
    """What normalises after each convolution: the batch, or nothing, for training that takes a few steps or samples only."""

    def __post_init__(self) -> None:
        if not self.channels or min(self.channels) < 1:
            raise ConfigError(f"channels are {self.channels}, but must be one or more positive numbers")


class Conv(Trunk):
    """Blocks of convolution, max pooling, batch normalisation and ReLU; then the mean and the maximum over the places.

    Pooling before normalising makes a training step a third cheaper on a CPU than the usual order.
    """

    name = "conv"
    Options = ConvOptions
    accepts = frozenset(("images",))

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
        self.features = 2 * before

    def forward(self, samples: Tensor) -> Tensor:
        """Features [B, 2 * channels] of images [B, C, H, W] in 0..1."""
        places = self.blocks(samples.to(memory_format=torch.channels_last) - 0.5)  # [B, C', h, w]
        return torch.cat([places.mean((2, 3)), places.amax((2, 3))], 1)


@dataclass(frozen=True)
class MlpOptions:
    """Options of the MLP."""

    hidden: int = 256
    """Hidden units."""
    dropout: float = 0.0
    """Fraction of hidden units left out at random while training."""

    def __post_init__(self) -> None:
        check_range("hidden", self.hidden, least=1)
        check_range("dropout", self.dropout, least=0, below=1)


class Mlp(Trunk):
    """Hidden ReLU units beside the input itself, so that what the features already know is not lost."""

    name = "mlp"
    Options = MlpOptions
    accepts = frozenset(("features",))

    def __init__(self, options: MlpOptions, sample_shape: tuple[int, ...]) -> None:
        super().__init__(options, sample_shape)
        self.hidden = nn.Linear(math.prod(sample_shape), options.hidden)
        self.dropout = nn.Dropout(options.dropout)
        self.features = options.hidden + math.prod(sample_shape)

    def forward(self, samples: Tensor) -> Tensor:
        """Features [B, hidden + F] of features [B, F]."""
        return torch.cat([self.dropout(self.hidden(samples).relu()), samples], 1)


@dataclass(frozen=True)
class IdentityOptions:
    """The identity has no options."""


class Identity(Trunk):
    """No trunk: the head sees the features themselves, or the pixels in a row."""

    name = "identity"
    Options = IdentityOptions
    accepts = frozenset(("features", "images"))

    def __init__(self, options: Any, sample_shape: tuple[int, ...]) -> None:
        super().__init__(options, sample_shape)
        self.features = math.prod(sample_shape)

    def forward(self, samples: Tensor) -> Tensor:
        """Samples as rows [B, F]."""
        return samples.flatten(1)
