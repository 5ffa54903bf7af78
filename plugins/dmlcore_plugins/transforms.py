"""The built-in transforms: two for images, and noise for anything."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.data import CropAugmentation, ShiftAugmentation, Transform


class Shift(Transform):
    """Small shifts, turns, slants and changes of size: for drawings, characters and small images."""

    name = "shift"

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


class Crop(Transform):
    """A random part of the image, brought back to full size: for photographs."""

    name = "crop"

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options of `crop`."""

        area: float = 0.3
        """Smallest part, as a fraction of the image's area, in (0, 1]."""
        aspect: float = 4 / 3
        """Largest width to height of the part, and the inverse of the smallest, >= 1."""
        flip: bool = True
        """Mirror half of the images left to right."""

        def __post_init__(self) -> None:
            check_range("area", self.area, above=0, most=1)
            check_range("aspect", self.aspect, least=1)

    def __call__(self, samples: Tensor, generator: torch.Generator) -> Tensor:
        return CropAugmentation(**asdict(self.options))(samples, generator)


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
    return [Shift, Crop, Noise]
