"""Gradients of the losses at the embedding, freed of what opposes each other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.ensemble import Weighting


def surgery(gram: list[list[float]], order: list[list[int]]) -> list[list[float]]:
    """The projected gradients as sums of the given ones.

    Args:
        gram: `L` rows of the inner products of `L` gradients.
        order: for each gradient the others in the order in which it is projected; those left out do not count.

    Returns:
        `L` rows of coefficients >= 0: gradient i becomes `sum_j coefficients[i][j] g_j`, and its own coefficient stays 1.
    """
    negligible = 1e-12 * max(row[i] for i, row in enumerate(gram))
    rows = []
    for i, sequence in enumerate(order):
        coefficients = [float(i == j) for j in range(len(gram))]
        for j in sequence:
            opposing = sum(coefficient * gram[k][j] for k, coefficient in enumerate(coefficients))
            if opposing < 0 and gram[j][j] > negligible:
                coefficients[j] -= opposing / gram[j][j]
        rows.append(coefficients)
    return rows


class PCGrad(Weighting):
    """`sum_j f_j l_j` with the factors `f` that make its gradient at the embedding `sum_i p_i PCGrad(g)_i`.

    Gradient surgery: for each loss, its gradient `g_i` at the embedding is projected on the normal plane of every other `g_j`
    that it opposes, one after the other. Each projection adds a multiple of `g_j`, so the result is a sum of the `g_j` whose
    factors follow from their inner products alone, and no further backward pass is needed. `f_j >= p_j`, the weights asked
    for scaled to sum 1, with equality where nothing opposes. Scaling a loss scales its own part only, as in a plain sum.

    The surgery is that of the embedding: behind it, the trunk sees the repaired gradient; proxies and other numbers a loss
    owns see its factor. Gradients shorter than a millionth of the longest are not projected on. A loss with initial weight 0
    stays out. Nothing is learnt; the factors are computed in double precision on the host.

    `weights` are `f_j`; `importances` are `p_j`, since conflicts of one step say nothing about a loss's worth.

    Source: Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020, algorithm 1, at the embedding instead of in
    all shared parameters, and with a prior.
    """

    name = "pcgrad"
    title = "PCGrad: gradient surgery"
    paper = "Yu et al., NeurIPS 2020"
    aliases = ("pc_grad", "gradient_surgery")
    reads_gradients = True

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options of `pcgrad`."""

        order: Literal["random", "given"] = "random"
        """In which order a gradient is projected: at random as in the paper, drawn anew at each step, or that of the losses."""
        seed: int = 0
        """Seed of the random order."""

        def __post_init__(self) -> None:
            check_range("seed", self.seed, least=0)

    factors: Tensor
    state: Tensor

    def __init__(self, initial: Tensor, options: Any = None, **options_by_name: Any) -> None:
        super().__init__(initial, options, **options_by_name)
        self.register_buffer("factors", self.prior.clone())
        self.register_buffer("state", torch.Generator().manual_seed(self.options.seed).get_state())  # uint8

    def _order(self, members: list[int]) -> list[list[int]]:
        """Per loss the members it is projected on; none for a loss that stays out."""
        orders = [[other for other in members if other != i] if i in members else [] for i in range(len(self.initial))]
        if self.options.order == "given":
            return orders
        generator = torch.Generator()
        generator.set_state(self.state.cpu())
        drawn = [[order[k] for k in torch.randperm(len(order), generator=generator).tolist()] for order in orders]
        self.state.copy_(generator.get_state())
        return drawn

    @torch.no_grad()
    def observe(self, gram: Tensor, terms: Tensor) -> None:
        if not self.training:
            return
        rows = gram.double().cpu().tolist()
        if not all(math.isfinite(product) for row in rows for product in row):
            return  # the factors and the order of the last step stay
        prior = self.prior.tolist()
        members = [i for i, share in enumerate(prior) if share > 0]
        coefficients = torch.tensor(surgery(rows, self._order(members)), dtype=torch.float64)
        self.factors.copy_(torch.tensor(prior, dtype=torch.float64) @ coefficients)

    def forward(self, terms: Tensor) -> Tensor:
        return (self.weights.to(terms) * terms).sum()

    @property
    def weights(self) -> Tensor:
        return self.factors.clone()

    @property
    def importances(self) -> Tensor:
        return self.prior


@dmlcore.hookimpl
def dmlcore_weightings() -> list[type]:
    return [PCGrad]
