"""The published compressor of WEDL_C."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import dmlcore
from dmlcore.config import check_range
from dmlcore.ensemble import Compressor, distance_matching, fit_by_distances
from dmlcore.errors import ConfigError


class LinTanhLin(Compressor):
    """`Linear(width -> hidden)`, tanh, `Linear(hidden -> out)`, trained on `B^2 |D(g) / sum D(g) - D(z) / sum D(z)|_F`, `D` the
    squared Euclidean distances of all pairs of a batch.

    With `online` a step follows every step of the model, on the same batch (Adam, learning rate 1e-3, is the published
    optimiser); otherwise all steps come after the model's training, from new weights drawn by the seed. Only the target, not
    the map, is free of the embeddings' scale, for the tanh has one of its own.

    Source: Zabihzadeh, Alitbi, Mousavirad, "Ensemble of Loss Functions to Improve Generalizability of Deep Metric Learning
    methods", 2021, as in the authors' code. There heads of `d` dimensions give `hidden = out = 2 d`. Deviation: `out` and
    `hidden` are free, and training may come afterwards, with a learning rate that falls to 0.
    """

    name = "lin_tanh_lin"

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options of `lin_tanh_lin`."""

        hidden: int | None = None
        """Hidden units, >= 1; `none`: 2 out."""
        online: bool = True
        """Train beside the model, as published; false: after it."""
        steps: int = 2000
        """Optimiser steps after the fact, >= 0; online, the model's."""
        batch: int = 256
        """Embeddings in a step after the fact, >= 2."""
        learning_rate: float = 1e-3
        """Of every step online, > 0; after the fact of the first, falling to 0 as a cosine."""
        eps: float = 1e-8
        """Of Adam online, added to the denominator, > 0. The published code has 0.01."""
        weight_decay: float = 0.0
        """Of Adam online, as a part of the gradient, >= 0. The published code has 1e-4."""

        def __post_init__(self) -> None:
            check_range("eps", self.eps, above=0)
            check_range("weight_decay", self.weight_decay, least=0)
            if not self.online and (self.eps != 1e-8 or self.weight_decay):
                raise ConfigError("eps and weight_decay are for training online, but online is false. Leave them out")
            check_range("hidden", self.hidden, least=1)
            check_range("steps", self.steps, least=0)
            check_range("batch", self.batch, least=2)
            check_range("learning_rate", self.learning_rate, above=0)

    def __init__(self, width: int, out: int, options: Any = None, **options_by_name: Any) -> None:
        super().__init__(width, out, options, **options_by_name)
        hidden = self.options.hidden or 2 * out
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, out))

    @property
    def is_online(self) -> bool:
        return self.options.online

    def online_optimiser(self) -> torch.optim.Optimizer:
        o = self.options
        return torch.optim.Adam(self.parameters(), lr=o.learning_rate, eps=o.eps, weight_decay=o.weight_decay)

    def online_loss(self, z: Tensor) -> Tensor:
        z = z.detach()
        return distance_matching(self(z), z)

    def learn(self, embeddings: Tensor, labels: Tensor, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                bound = layer.in_features**-0.5  # the distribution of nn.Linear, drawn on the CPU for any device
                for parameter in (layer.weight, layer.bias):
                    parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
        o = self.options
        fit_by_distances(
            self.layers,
            self.layers.parameters(),
            embeddings,
            steps=o.steps,
            batch=o.batch,
            learning_rate=o.learning_rate,
            seed=seed,
        )

    def forward(self, z: Tensor) -> Tensor:
        if not self.is_online:
            self.check_fitted()
        return self.layers(z.to(next(self.layers.parameters()).dtype))  # [B, out]


@dmlcore.hookimpl
def dmlcore_compressors() -> list[type]:
    return [LinTanhLin]
