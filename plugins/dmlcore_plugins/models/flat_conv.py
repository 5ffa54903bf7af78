"""Convolutions whose last maps are laid side by side, as the small networks of publications on few shots have them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

import dmlcore
from dmlcore.errors import ConfigError
from dmlcore.models import Trunk


@dataclass(frozen=True)
class FlatConvOptions:
    """Options of the flat convolutional trunk."""

    channels: tuple[int, ...] = (32, 32)
    """Channels of each convolution of 3 x 3."""
    pooled: tuple[int, ...] = (2,)
    """Numbers of the convolutions, from 1, that a max pooling of 2 x 2 follows."""
    norm: Literal["none", "batch", "centred"] = "none"
    """What normalises after each convolution: nothing, the batch, or the batch without a learned scale."""

    def __post_init__(self) -> None:
        if not self.channels or min(self.channels) < 1:
            raise ConfigError(f"channels are {self.channels}, but must be one or more positive numbers")
        if not set(self.pooled) <= set(range(1, len(self.channels) + 1)):
            raise ConfigError(f"pooled are {self.pooled}, but must be numbers of convolutions, from 1 to {len(self.channels)}")


class CentredNorm(nn.BatchNorm2d):
    """Batch normalisation with a learned shift and no scale: a linear map behind a ReLU can take the scale over."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.register_parameter("weight", None)

    def reset_parameters(self) -> None:
        self.reset_running_stats()
        nn.init.zeros_(self.bias)


class FlatConv(Trunk):
    """Convolutions of stride 1 that keep height and width, each with its normalisation, a ReLU and perhaps a max pooling. All
    places of the last map are the features, so a head knows where something is. Odd sides are rounded up when pooled.

    Source: Scott, Ridgeway, Mozer, "Adapted Deep Embeddings", NeurIPS 2018, networks of the authors' public code. The fully
    connected layer behind them is the embedding head. Their order of the features is by place, ours by channel.
    """

    name = "flat_conv"
    Options = FlatConvOptions
    accepts = frozenset(("images",))

    def __init__(self, options: FlatConvOptions, sample_shape: tuple[int, ...]) -> None:
        super().__init__(options, sample_shape)
        before, height, width = sample_shape
        layers: list[nn.Module] = []
        for number, channels in enumerate(options.channels, 1):
            layers.append(nn.Conv2d(before, channels, 3, padding=1))
            if options.norm != "none":
                layers.append(nn.BatchNorm2d(channels) if options.norm == "batch" else CentredNorm(channels))
            layers.append(nn.ReLU())
            if number in options.pooled:
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
                height, width = -(-height // 2), -(-width // 2)
            before = channels
        self.blocks = nn.Sequential(*layers)
        self.features = before * height * width

    def forward(self, samples: Tensor) -> Tensor:
        """Features [B, channels * height * width] of images [B, C, H, W] in 0..1."""
        return self.blocks(samples).flatten(1)


@dmlcore.hookimpl
def dmlcore_models() -> list[type]:
    return [FlatConv]
