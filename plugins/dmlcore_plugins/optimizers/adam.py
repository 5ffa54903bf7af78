"""Adam."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

import dmlcore
from dmlcore.training import Optimizer, uncompiled
from dmlcore_plugins.optimizers.adamw import AdamW, is_on_cpu


class Adam(Optimizer):
    """Steps by running means of the gradient and of its square. The decay of the weights is part of the gradient.

    Source: Kingma, Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015.
    """

    name = "adam"

    @dataclass(frozen=True, kw_only=True)
    class Options(AdamW.Options):
        """Options of `adam`."""

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        o = self.options
        return uncompiled(torch.optim.Adam)(groups, betas=o.betas, eps=o.eps, fused=is_on_cpu(groups))


@dmlcore.hookimpl
def dmlcore_optimizers() -> list[type]:
    return [Adam]
