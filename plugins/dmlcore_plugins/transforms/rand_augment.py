"""Some of fourteen changes by chance, all of one strength."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.data import Transform, change_each, library_change


class RandAugment(Transform):
    """Some of fourteen changes of each image, drawn by chance and of one strength, as RandAugment of torchvision.

    Source: Cubuk, Zoph, Shlens, Le, "RandAugment: Practical Automated Data Augmentation with a Reduced Search Space",
    NeurIPS 2020.
    """

    name = "rand_augment"

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options of `rand_augment`."""

        count: int = 2
        """Changes of each image, one after the other."""
        magnitude: int = 9
        """How strong they are, of 30."""

        def __post_init__(self) -> None:
            check_range("count", self.count, least=1)
            check_range("magnitude", self.magnitude, least=0, most=30)

    def __init__(self, options: Any = None, **named: Any) -> None:
        super().__init__(options, **named)
        self._change = library_change("RandAugment", num_ops=self.options.count, magnitude=self.options.magnitude)

    def __call__(self, samples: Tensor, generator: torch.Generator) -> Tensor:
        return change_each(self._change, samples, generator, as_bytes=True)


@dmlcore.hookimpl
def dmlcore_transforms() -> list[type]:
    return [RandAugment]
