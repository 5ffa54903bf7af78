"""Pairs of changes that were found to suit photographs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import dmlcore
from dmlcore.data import Transform, change_each, library_change


class AutoAugment(Transform):
    """One of 25 pairs of changes of each image, which were found on ImageNet, as AutoAugment of torchvision.

    Source: Cubuk, Zoph, Mane, Vasudevan, Le, "AutoAugment: Learning Augmentation Policies from Data", CVPR 2019.
    """

    name = "auto_augment"

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options of `auto_augment`."""

    def __init__(self, options: Any = None, **named: Any) -> None:
        super().__init__(options, **named)
        self._change = library_change("AutoAugment")

    def __call__(self, samples: Tensor, generator: torch.Generator) -> Tensor:
        return change_each(self._change, samples, generator, as_bytes=True)


@dmlcore.hookimpl
def dmlcore_transforms() -> list[type]:
    return [AutoAugment]
