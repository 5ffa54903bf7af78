"""The mean of the losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import dmlcore
from dmlcore.ensemble import Weighting
from dmlcore.errors import ConfigError


class Uniform(Weighting):
    """`mean_i l_i`: every loss weighs `1 / L`; nothing is learnt. The control without a choice.

    Raises:
        ConfigError: unequal weights are asked for.
    """

    name = "uniform"
    title = "The mean of the losses"
    aliases = ("EW", "equal_weighting")

    def __init__(self, initial: Tensor, options: Any = None, **options_by_name: Any) -> None:
        super().__init__(initial, options, **options_by_name)
        if bool((initial != initial[0]).any()):
            raise ConfigError(f"uniform weighs all losses alike, got weights {initial.tolist()}; 'fixed' takes them as given")

    def forward(self, terms: Tensor) -> Tensor:
        return terms.mean()

    @property
    def weights(self) -> Tensor:
        return torch.full_like(self.initial, 1 / len(self.initial))


@dmlcore.hookimpl
def dmlcore_weightings() -> list[type]:
    return [Uniform]
