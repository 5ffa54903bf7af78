"""A linear map trained to keep distances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.ensemble import Compressor, fit_by_distances, principal_axes


class Linear(Compressor):
    """`(z - mean) @ weight.T`, started at PCA and trained after the fact on `B^2 |D(g) / sum D(g) - D(z) / sum D(z)|_F` of
    batches, `D` the squared Euclidean distances of all pairs.

    Where PCA loses least of the distances' sum, this matches each pair's share of it. Scaling all embeddings changes no cosine
    of the results.

    Source: the objective of WEDL_C (Zabihzadeh, Alitbi, Mousavirad, "Ensemble of Loss Functions to Improve Generalizability of
    Deep Metric Learning methods", 2021) on a linear map. Deviation: the map, its start, and training after the fact are ours.
    """

    name = "linear"

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options of `linear`."""

        steps: int = 1000
        """Optimiser steps, >= 0; 0 stays at PCA."""
        batch: int = 256
        """Embeddings in a step, >= 2."""
        learning_rate: float = 1e-3
        """Of the first step, > 0; it falls to 0 as a cosine."""

        def __post_init__(self) -> None:
            check_range("steps", self.steps, least=0)
            check_range("batch", self.batch, least=2)
            check_range("learning_rate", self.learning_rate, above=0)

    mean: Tensor
    weight: Tensor

    def __init__(self, width: int, out: int, options: Any = None, **options_by_name: Any) -> None:
        super().__init__(width, out, options, **options_by_name)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("weight", torch.zeros(out, width))  # a buffer: no optimiser of the model's moves it

    def learn(self, embeddings: Tensor, labels: Tensor, seed: int) -> None:
        principal = principal_axes(embeddings)
        self.mean.copy_(principal.mean)
        self.weight.copy_(principal.axes[: self.out])
        weight = self.weight.clone().requires_grad_()
        fit_by_distances(lambda z: (z - self.mean) @ weight.T, [weight], embeddings, seed=seed, **vars(self.options))
        self.weight.copy_(weight)

    def forward(self, z: Tensor) -> Tensor:
        self.check_fitted()
        return (z.to(self.weight.dtype) - self.mean) @ self.weight.T  # [B, out]


@dmlcore.hookimpl
def dmlcore_compressors() -> list[type]:
    return [Linear]
