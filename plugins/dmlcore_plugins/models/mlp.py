"""A multi-layer perceptron for features."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import dmlcore
from dmlcore.config import check_range
from dmlcore.models import Trunk

LONGEST = 4096  # of an embedding by default: fitting its start takes the square of it in float64


@dataclass(frozen=True)
class MlpOptions:
    """Options of the MLP."""

    hidden: int = 256
    """Hidden units."""
    dropout: float = 0.0
    """Fraction of hidden units left out at random while training."""
    skip: bool = True
    """Put the input itself beside the hidden units, so that what it already knows is not lost."""

    def __post_init__(self) -> None:
        check_range("hidden", self.hidden, least=1)
        check_range("dropout", self.dropout, least=0, below=1)


class Mlp(Trunk):
    """Hidden ReLU units, and unless `skip` is off the input itself beside them."""

    name = "mlp"
    Options = MlpOptions
    accepts = frozenset(("features",))

    def __init__(self, options: MlpOptions, sample_shape: tuple[int, ...]) -> None:
        super().__init__(options, sample_shape)
        self.hidden = nn.Linear(math.prod(sample_shape), options.hidden)
        self.dropout = nn.Dropout(options.dropout)
        self.features = options.hidden + (math.prod(sample_shape) if options.skip else 0)

    @classmethod
    def preset(cls, options: MlpOptions, sample_shape: tuple[int, ...]) -> dict[str, Any]:
        """Features of a good network are changed little. The embedding begins as the principal axes of features and random
        hidden units, so before the first step it ranks nearly as the features do. Later it learns what no linear map could. It
        is as long as the features, and at least as the hidden units. It learns in few steps, so it is evaluated often.
        `docs/reports/features.md` has the measurements."""
        if not options.skip:
            return {}
        length = min(max(options.hidden, math.prod(sample_shape)), LONGEST)
        return {"embedding_dim": length, "compress": 0, "head_start": "principal", "learning_rate": 1e-3, "eval_every": 25}

    def forward(self, samples: Tensor) -> Tensor:
        """Features [B, hidden + F] of features [B, F], or [B, hidden] without `skip`."""
        hidden = self.dropout(self.hidden(samples).relu())
        return torch.cat([hidden, samples], 1) if self.options.skip else hidden


@dmlcore.hookimpl
def dmlcore_models() -> list[type]:
    return [Mlp]
