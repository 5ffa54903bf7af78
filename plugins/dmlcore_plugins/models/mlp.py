"""A multi-layer perceptron for features."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import dmlcore
from dmlcore.config import check_range
from dmlcore.models import Trunk


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


@dmlcore.hookimpl
def dmlcore_models() -> list[type]:
    return [Mlp]
