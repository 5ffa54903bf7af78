"""Parts of images wiped out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.data import Transform, change_each, library_change
from dmlcore.errors import ConfigError


class RandomErasing(Transform):
    """A rectangle of some images made black, as RandomErasing of torchvision.

    Source: Zhong, Zheng, Kang, Li, Yang, "Random Erasing Data Augmentation", AAAI 2020.
    """

    name = "random_erasing"

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options of `random_erasing`."""

        share: float = 0.5
        """Share of images that lose a rectangle, in 0..1."""
        area: tuple[float, ...] = (0.02, 0.33)
        """Smallest and largest rectangle, as fractions of the image's area."""
        ratio: tuple[float, ...] = (0.3, 3.3)
        """Smallest and largest height to width of the rectangle."""

        def __post_init__(self) -> None:
            check_range("share", self.share, least=0, most=1)
            for name in ("area", "ratio"):
                values = getattr(self, name)
                if len(values) != 2 or not 0 < values[0] <= values[1] or (name == "area" and values[1] > 1):
                    raise ConfigError(f"{name} is {', '.join(map(str, values))}, but must be two rising numbers above 0")

    def __init__(self, options: Any = None, **named: Any) -> None:
        super().__init__(options, **named)
        area, ratio = tuple(self.options.area), tuple(self.options.ratio)
        self._change = library_change("RandomErasing", p=self.options.share, scale=area, ratio=ratio)

    def __call__(self, samples: Tensor, generator: torch.Generator) -> Tensor:
        return change_each(self._change, samples, generator)


@dmlcore.hookimpl
def dmlcore_transforms() -> list[type]:
    return [RandomErasing]
