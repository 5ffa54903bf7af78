"""Adam with decoupled weight decay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

import dmlcore
from dmlcore.config import check_range
from dmlcore.training import Optimizer, uncompiled


class AdamW(Optimizer):
    """Adam whose decay of the weights is apart from the gradient.

    Source: Loshchilov, Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
    """

    name = "adamw"

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options of `adamw`."""

        betas: tuple[float, ...] = (0.9, 0.999)
        """Decay of the two running means of the gradient, each in [0, 1)."""
        eps: float = 1e-8
        """Added to the denominator, > 0."""

        def __post_init__(self) -> None:
            check_betas(self.betas)
            check_range("eps", self.eps, above=0)

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        o = self.options
        return uncompiled(torch.optim.AdamW)(groups, betas=o.betas, eps=o.eps, fused=is_on_cpu(groups))


def is_on_cpu(groups: list[dict[str, Any]]) -> bool | None:
    """Whether all parameters are on the CPU, where one loop over each is half the time of torch's default. None: take that."""
    return all(p.is_cpu and p.is_floating_point() for group in groups for p in group["params"]) or None


def check_betas(betas: tuple[float, ...]) -> None:
    """Refuse what are no two decays.

    Raises:
        ConfigError: they are not.
    """
    check_range("the number of betas", len(betas), least=2, most=2)
    for beta in betas:
        check_range("betas", beta, least=0, below=1)


@dmlcore.hookimpl
def dmlcore_optimizers() -> list[type]:
    return [AdamW]
