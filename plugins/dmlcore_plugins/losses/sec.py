"""Spherical embedding constraint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.losses import LossOptions, NormLoss


class Sec(NormLoss):
    """`weight * mean((|x| - mu)^2)` over the raw embeddings: norms should be alike. Labels do not matter.

    `mu`, a constant for the gradient, is the mean norm of the batch (`rho = 1`) or its running mean
    `mu <- (1 - rho) mu + rho * mean` (`rho < 1`), which starts at the first batch's mean, moves at every `forward` in training
    mode before it is used, and is kept in `state_dict`. A batch whose mean is not finite does not move it; nor does
    `reference`, so that after a `forward` both give the same value. The gradient is radial:
    `2 weight / B (|x| - mu) x / |x|`, and 0 at a zero vector. The paper's factor eta is the weight.

    Source: Zhang, Li, Zhang, "Deep Metric Learning with Spherical Embedding", NeurIPS 2020: the term `L_sec`, its mean norm
    over the batch and the moving average of it.
    """

    name = "sec"
    title = "Spherical embedding constraint"
    paper = "Zhang et al., NeurIPS 2020"
    aliases = ("spherical_embedding_constraint",)
    mu: Tensor

    @dataclass(frozen=True, kw_only=True)
    class Options(LossOptions):
        """Options of `sec`."""

        weight: float = 1.0
        """Factor, >= 0, beside that of an ensemble: the paper's eta."""
        rho: float = 1.0
        """Share of the batch in the running mean of the norms, in (0, 1]; 1 takes the batch alone."""

        def __post_init__(self) -> None:
            check_range("weight", self.weight, least=0)
            check_range("rho", self.rho, above=0, most=1)

    def __init__(self, options: Any = None, **options_by_name: Any) -> None:
        super().__init__(options, **options_by_name)
        if self.options.rho < 1:
            self.register_buffer("mu", torch.tensor(torch.nan))  # until the first batch

    def values(self, embeddings: Tensor, update: bool) -> Tensor:
        norms = torch.linalg.vector_norm(embeddings, dim=1)  # [B]
        centre = norms.detach().mean()
        if self.options.rho < 1:
            running_mean = self.mu.to(centre)
            if update and len(norms):
                moved = torch.where(
                    torch.isnan(running_mean), centre, running_mean + self.options.rho * (centre - running_mean)
                )
                running_mean = torch.where(torch.isfinite(centre), moved, running_mean)
                self.mu.copy_(running_mean)
            centre = torch.where(torch.isnan(running_mean), centre, running_mean)
        return self.options.weight * (norms - centre).square()


@dmlcore.hookimpl
def dmlcore_losses() -> list[type]:
    return [Sec]
