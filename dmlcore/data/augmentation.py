"""Random changes of image batches for training. Every random number comes from the generator that is passed in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional


def _between(low: float, high: float, count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator) * (high - low) + low


def _warped(images: Tensor, matrices: Tensor) -> Tensor:
    grid = functional.affine_grid(matrices, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _flipped(images: Tensor, generator: torch.Generator) -> Tensor:
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


@dataclass(frozen=True)
class ShiftAugmentation:
    """Small shifts, turns, slants and changes of size: for drawings, characters and small images.

    Attributes:
        shift: largest shift, as a fraction of the side.
        turn: largest rotation, degrees.
        slant: largest horizontal shear, as a slope.
        scale: largest change of width and height, each on its own, as a factor above 1.
        flip: mirror half of the images left to right. Wrong for characters.
    """

    shift: float = 0.08
    turn: float = 8.0
    slant: float = 0.15
    scale: float = 1.15
    flip: bool = False
    by_sample: ClassVar[bool] = True

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Changed images.

        Args:
            images: [B, C, H, W] float32.
            generator: on the CPU.
        """
        count = len(images)
        angle = _between(-self.turn, self.turn, count, generator) * (math.pi / 180)
        slant = _between(-self.slant, self.slant, count, generator)
        log_scale = math.log(self.scale)
        wide = _between(-log_scale, log_scale, count, generator).exp()
        high = _between(-log_scale, log_scale, count, generator).exp()
        shift = (torch.rand(count, 2, generator=generator) * 2 - 1) * (2 * self.shift)  # the grid spans -1..1
        cos, sin = angle.cos(), angle.sin()
        rows = [cos * wide, (slant * cos - sin) * high, shift[:, 0], sin * wide, (slant * sin + cos) * high, shift[:, 1]]
        changed = _warped(images, torch.stack(rows, 1).view(count, 2, 3).to(images.device))
        return _flipped(changed, generator) if self.flip else changed


@dataclass(frozen=True)
class CropAugmentation:
    """A random part of the image, resized to full size: for photographs (as RandomResizedCrop of torchvision).

    Attributes:
        area: smallest part, as a fraction of the image's area.
        aspect: largest width to height of the part, and the inverse of the smallest.
        flip: mirror half of the images left to right.
    """

    area: float = 0.3
    aspect: float = 4 / 3
    flip: bool = True
    by_sample: ClassVar[bool] = True

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Changed images.

        Args:
            images: [B, C, H, W] float32.
            generator: on the CPU.
        """
        count = len(images)
        side = _between(self.area, 1.0, count, generator).sqrt()
        stretch = _between(-math.log(self.aspect), math.log(self.aspect), count, generator).mul(0.5).exp()
        wide, high = (side * stretch).clamp(max=1), (side / stretch).clamp(max=1)
        centre = torch.rand(count, 2, generator=generator) * 2 - 1
        zero = torch.zeros(count)
        rows = [wide, zero, centre[:, 0] * (1 - wide), zero, high, centre[:, 1] * (1 - high)]
        changed = _warped(images, torch.stack(rows, 1).view(count, 2, 3).to(images.device))
        return _flipped(changed, generator) if self.flip else changed
