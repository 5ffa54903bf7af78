"""Mirrored images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.data import Transform


class Flip(Transform):
    """Some images mirrored left to right. Wrong for characters."""

    name = "flip"

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options of `flip`."""

        share: float = 0.5
        """Share of images that are mirrored, in 0..1."""

        def __post_init__(self) -> None:
            check_range("share", self.share, least=0, most=1)

    def __call__(self, samples: Tensor, generator: torch.Generator) -> Tensor:
        is_mirrored = torch.rand(len(samples), generator=generator) < self.options.share
        return torch.where(is_mirrored.to(samples.device)[:, None, None, None], samples.flip(3), samples)


@dmlcore.hookimpl
def dmlcore_transforms() -> list[type]:
    return [Flip]
