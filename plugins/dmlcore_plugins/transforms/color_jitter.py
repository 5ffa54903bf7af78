"""Changed brightness and colours."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.data import Transform, change_each, library_change


class ColorJitter(Transform):
    """Brightness, contrast, saturation and hue of each image changed by chance, as ColorJitter of torchvision."""

    name = "color_jitter"

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options of `color_jitter`."""

        brightness: float = 0.25
        """Largest change of the brightness, as a share of it."""
        contrast: float = 0.25
        """Largest change of the contrast, as a share of it."""
        saturation: float = 0.25
        """Largest change of the saturation, as a share of it."""
        hue: float = 0.0
        """Largest turn of the hue, of a whole turn, in 0..0.5."""

        def __post_init__(self) -> None:
            for name in ("brightness", "contrast", "saturation"):
                check_range(name, getattr(self, name), least=0)
            check_range("hue", self.hue, least=0, most=0.5)

    def __init__(self, options: Any = None, **named: Any) -> None:
        super().__init__(options, **named)
        self._change = library_change("ColorJitter", **asdict(self.options))

    def __call__(self, samples: Tensor, generator: torch.Generator) -> Tensor:
        return change_each(self._change, samples, generator)


@dmlcore.hookimpl
def dmlcore_transforms() -> list[type]:
    return [ColorJitter]
