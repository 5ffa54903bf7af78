"""Normal noise on images or features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.data import Transform


class Noise(Transform):
    """Normal noise on every number: the simplest augmentation of features."""

    name = "noise"
    accepts = frozenset(("images", "features"))

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options of `noise`."""

        deviation: float = 0.1
        """Standard deviation of the noise, relative to that of the batch, >= 0."""

        def __post_init__(self) -> None:
            check_range("deviation", self.deviation, least=0)

    def __call__(self, samples: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(samples.shape, generator=generator).to(samples)
        return samples + self.options.deviation * samples.std(correction=0) * noise


@dmlcore.hookimpl
def dmlcore_transforms() -> list[type]:
    return [Noise]
