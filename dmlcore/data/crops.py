"""Which part of a photograph is seen: one drawn at random for training, the middle for tests. No pixels are read here.

Sizes and places are in pixels of the whole picture, as it is displayed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dmlcore.errors import ConfigError

_SIDES = (224, 227)  # of ImageNet's networks, whose tests begin at 256 pixels
_RESIZED = 256
_ATTEMPTS = 10  # parts that are drawn until one lies within the picture

Box = tuple[float, float, float, float]
"""Left, top, right and bottom."""


@dataclass(frozen=True)
class RandomCrop:
    """A random part of the whole picture, which is then resized to the square that the model takes.

    Attributes:
        scale: smallest and largest part, as fractions of the picture's area, in (0, 1].
        ratio: smallest and largest width to height of the part, > 0.
        flip: mirror half of the pictures left to right.

    Source: the parts are drawn as by RandomResizedCrop of torchvision, after Szegedy et al., "Going Deeper with Convolutions",
    CVPR 2015, section 6. The random numbers are others.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Random numbers of some pictures: float64 [count, 23] in [0, 1). As many are drawn whatever the pictures' sizes."""
        return torch.rand(count, 2 * _ATTEMPTS + 3, generator=generator, dtype=torch.float64)

    def is_mirrored(self, draws: Tensor) -> bool:
        """Whether a picture is mirrored, of its random numbers [23]."""
        return self.flip and bool(draws[-1] < 0.5)

    def box(self, draws: Tensor, width: int, height: int) -> Box:
        """The part of a picture that is seen, of its random numbers [23]: whole pixels."""
        numbers = draws.tolist()
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for attempt in range(_ATTEMPTS):
            area = width * height * (self.scale[0] + (self.scale[1] - self.scale[0]) * numbers[attempt])
            ratio = math.exp(low + (high - low) * numbers[_ATTEMPTS + attempt])
            wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < wide <= width and 0 < tall <= height:
                left = int(numbers[-3] * (width - wide + 1))
                top = int(numbers[-2] * (height - tall + 1))
                return left, top, left + wide, top + tall
        wide = min(width, round(height * self.ratio[1]))  # the largest part in the middle that has a ratio in the range
        tall = min(height, round(width / self.ratio[0]))
        left, top = (width - wide) // 2, (height - tall) // 2
        return left, top, left + wide, top + tall


def middle_box(width: int, height: int, size: tuple[int, int], resize: int) -> Box:
    """The part of a picture that a test sees: its middle, once the shorter side has been brought to `resize`.

    Resizing the part alone reads the same places of the picture as Resize and CenterCrop of torchvision, one after the other.

    Args:
        width, height: of the picture.
        size: height and width of what is seen, pixels.
        resize: pixels, no less than `size`.
    """
    if width <= height:
        resized = resize, int(resize * height / width)
    else:
        resized = int(resize * width / height), resize
    left, top = round((resized[0] - size[1]) / 2), round((resized[1] - size[0]) / 2)
    wide, high = width / resized[0], height / resized[1]  # pixels of the picture for one of the view
    return (
        left * wide,
        top * high,
        min((left + size[1]) * wide, float(width)),
        min((top + size[0]) * high, float(height)),
    )


def resize_for_test(side: int, resize: int | None) -> int:
    """The shorter side to which pictures are brought before the middle of `side` pixels is cut.

    Args:
        side: of what the model takes, pixels.
        resize: asked for, or None: 256 for sides from 224 to 227 pixels, else 8/7 of the side.

    Raises:
        ConfigError: less than the side.
    """
    if resize is None:
        return _RESIZED if _SIDES[0] <= side <= _SIDES[1] else round(side * _RESIZED / _SIDES[0])
    if resize < side:
        raise ConfigError(f"resize is {resize}, but must be at least the side of the images, {side} pixels")
    return resize
