"""Sharpness-aware minimisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

import dmlcore
from dmlcore.config import check_range
from dmlcore.training import Optimizer, uncompiled
from dmlcore_plugins.optimizers.adamw import AdamW


class SAM(Optimizer):
    """Takes the gradient at `w + rho g / |g|`, uphill of the weights `w` of the model, and steps with it from `w`. So it looks
    for weights around which the loss is low. A step takes two passes, and thus twice the time.

    `adaptive`: at `w + rho t^2 g / |t g|` with `t = |w| + eta`, which does not depend on the scale of the weights.

    Source: Foret, Kleiner, Mobahi, Neyshabur, "Sharpness-Aware Minimization for Efficiently Improving Generalization", ICLR
    2021, eq. 2 and 3; Kwon, Kim, Park, Choi, "ASAM: Adaptive Sharpness-Aware Minimization", ICML 2021. Weights of losses, such
    as proxies, stay where they are.
    """

    name = "sam"
    climbs = True

    @dataclass(frozen=True, kw_only=True)
    class Options(AdamW.Options):
        """Options of `sam`."""

        rho: float = 0.05
        """How far the weights are moved, > 0. With `adaptive` about ten times as much is usual."""
        adaptive: bool = False
        """Move each weight by its own size (ASAM)."""
        eta: float = 0.01
        """Added to the size of a weight with `adaptive`, >= 0."""
        base: Literal["adamw", "sgd"] = "adamw"
        """What steps with the gradient: AdamW with `betas` and `eps`, or gradient descent with `momentum`."""
        momentum: float = 0.9
        """Of `sgd`, in [0, 1)."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_range("rho", self.rho, above=0)
            check_range("eta", self.eta, least=0)
            check_range("momentum", self.momentum, least=0, below=1)

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        options = self.options
        if options.base == "sgd":
            return uncompiled(torch.optim.SGD)(groups, momentum=options.momentum)
        return uncompiled(torch.optim.AdamW)(groups, betas=options.betas, eps=options.eps)

    def perturbation(self, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
        gradients = [p.grad for p in parameters if p.grad is not None]
        scales = [p.abs() + self.options.eta for p in parameters] if self.options.adaptive else None
        moved = gradients if scales is None else [s * g for s, g in zip(scales, gradients, strict=True)]
        # A gradient of 0 leaves the weights where they are.
        rate = self.options.rho / nn.utils.get_total_norm(moved).clamp_min(torch.finfo(gradients[0].dtype).tiny)
        return [way * rate if scales is None else scale * way * rate for way, scale in zip(moved, scales or moved, strict=True)]


@dmlcore.hookimpl
def dmlcore_optimizers() -> list[type]:
    return [SAM]
