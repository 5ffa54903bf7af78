"""No trunk at all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

import dmlcore
from dmlcore.models import Trunk

LONGEST = 4096  # of an embedding by default: the linear map has its square of weights


@dataclass(frozen=True)
class IdentityOptions:
    """The identity has no options."""


class Identity(Trunk):
    """No trunk: the head sees the features themselves, or the pixels in a row."""

    name = "identity"
    Options = IdentityOptions
    accepts = frozenset(("features", "images"))
    default_for = frozenset(("features",))

    def __init__(self, options: Any, sample_shape: tuple[int, ...]) -> None:
        super().__init__(options, sample_shape)
        self.features = math.prod(sample_shape)

    @classmethod
    def preset(cls, options: Any, sample_shape: tuple[int, ...]) -> dict[str, Any]:
        """Features of a good network are changed little: a linear map that begins as the identity, slowly trained. Before its
        first step the embedding ranks as the features do. `docs/reports/features.md` has the measurements."""
        if len(sample_shape) != 1:
            return {}
        return {"embedding_dim": min(sample_shape[0], LONGEST), "compress": 0, "head_start": "principal", "learning_rate": 5e-4}

    def forward(self, samples: Tensor) -> Tensor:
        """Samples as rows [B, F]."""
        return samples.flatten(1)


@dmlcore.hookimpl
def dmlcore_models() -> list[type]:
    return [Identity]
