"""Small shifts, turns and slants of images."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.data import ShiftAugmentation, Transform


class Shift(Transform):
    """Small shifts, turns, slants and changes of size: for drawings, characters and small images."""

    name = "shift"
    by_sample = True

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options of `shift`."""

        shift: float = 0.08
        """Largest shift, as a fraction of the side."""
        turn: float = 8.0
        """Largest rotation, degrees."""
        slant: float = 0.15
        """Largest horizontal shear, as a slope."""
        scale: float = 1.15
        """Largest change of width and height, each on its own, as a factor of at least 1."""
        flip: bool = False
        """Mirror half of the images left to right; wrong for characters."""

        def __post_init__(self) -> None:
            for name in ("shift", "turn", "slant"):
                check_range(name, getattr(self, name), least=0)
            check_range("scale", self.scale, least=1)

    def __call__(self, samples: Tensor, generator: torch.Generator) -> Tensor:
        return ShiftAugmentation(**asdict(self.options))(samples, generator)


@dmlcore.hookimpl
def dmlcore_transforms() -> list[type]:
    return [Shift]
