"""RMSprop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

import dmlcore
from dmlcore.config import check_range
from dmlcore.training import Optimizer, uncompiled


class RMSprop(Optimizer):
    """Steps along the gradient over the root of a running mean of its square.

    Source: Tieleman, Hinton, lecture 6.5 of "Neural Networks for Machine Learning", 2012.
    """

    name = "rmsprop"

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options of `rmsprop`."""

        alpha: float = 0.99
        """Decay of the running mean, in [0, 1)."""
        momentum: float = 0.0
        """Share of the last step that is kept, in [0, 1)."""
        eps: float = 1e-8
        """Added to the denominator, > 0."""

        def __post_init__(self) -> None:
            check_range("alpha", self.alpha, least=0, below=1)
            check_range("momentum", self.momentum, least=0, below=1)
            check_range("eps", self.eps, above=0)

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        options = self.options
        return uncompiled(torch.optim.RMSprop)(groups, alpha=options.alpha, momentum=options.momentum, eps=options.eps)


@dmlcore.hookimpl
def dmlcore_optimizers() -> list[type]:
    return [RMSprop]
