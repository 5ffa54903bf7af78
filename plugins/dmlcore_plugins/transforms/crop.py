"""Random parts of images."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.data import CropAugmentation, Transform


class Crop(Transform):
    """A random part of the image, resized to full size: for photographs."""

    name = "crop"
    by_sample = True

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


@dmlcore.hookimpl
def dmlcore_transforms() -> list[type]:
    return [Crop]
