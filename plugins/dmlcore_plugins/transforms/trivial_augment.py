"""One of fourteen changes by chance, of a strength by chance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import dmlcore
from dmlcore.data import Transform, change_each, library_change


class TrivialAugmentWide(Transform):
    """One change of each image, drawn by chance with its strength, as TrivialAugmentWide of torchvision.

    Source: Müller, Hutter, "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation", ICCV 2021.
    """

    name = "trivial_augment"

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options of `trivial_augment`."""

    def __init__(self, options: Any = None, **named: Any) -> None:
        super().__init__(options, **named)
        self._change = library_change("TrivialAugmentWide")

    def __call__(self, samples: Tensor, generator: torch.Generator) -> Tensor:
        return change_each(self._change, samples, generator, as_bytes=True)


@dmlcore.hookimpl
def dmlcore_transforms() -> list[type]:
    return [TrivialAugmentWide]
