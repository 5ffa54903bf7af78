"""No trunk at all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

import dmlcore
from dmlcore.models import Trunk


@dataclass(frozen=True)
class IdentityOptions:
    """The identity has no options."""


class Identity(Trunk):
    """No trunk: the head sees the features themselves, or the pixels in a row."""

    name = "identity"
    Options = IdentityOptions
    accepts = frozenset(("features", "images"))

    def __init__(self, options: Any, sample_shape: tuple[int, ...]) -> None:
        super().__init__(options, sample_shape)
        self.features = math.prod(sample_shape)

    def forward(self, samples: Tensor) -> Tensor:
        """Samples as rows [B, F]."""
        return samples.flatten(1)


@dmlcore.hookimpl
def dmlcore_models() -> list[type]:
    return [Identity]
