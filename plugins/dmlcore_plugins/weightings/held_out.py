"""Weights learnt on classes outside the training step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.ensemble import Weighting
from dmlcore.ensemble.shares import Equaliser, floored_shares, project_simplex


class HeldOut(Weighting):
    """`sum_i w_i (lbar / lbar_i) l_i` with `w` moved by what each loss does for classes it has not seen.

    Every `every` steps the ensemble holds back a fraction `classes` of the batch's classes, takes each loss's gradient on the
    others, and hands `learn` the cosine `a_i` of that loss's step and the direction in which the validation loss of the held
    back classes falls. The weights follow by exponentiated gradient: `w_i <- w_i exp(rate a_i) / sum_j w_j exp(rate a_j)`,
    then the nearest point with `w >= floor`. Equal alignments change nothing. Of all weightings this is the one whose signal
    is generalisation; cosines have no scale, and the terms count in units of their means over all batches so far, so the
    weights do not depend on the scale of any loss.

    `weights` are `w_i lbar / lbar_i`; `importances` are `w_i`.

    Source: the step of Kivinen and Warmuth, "Exponentiated Gradient versus Gradient Descent for Linear Predictors",
    Information and Computation 1997, on a one-step lookahead as in Ren et al., "Learning to Reweight Examples for Robust Deep
    Learning", ICML 2018, with losses for examples and held-out classes for clean data. The cosine in place of the inner
    product, the equalisation and the floor are ours.

    Raises:
        ConfigError: an initial weight, scaled to sum 1, is not above the floor.
    """

    name = "held_out"
    title = "Weights learnt on held-out classes"
    paper = "after Ren et al., ICML 2018; Kivinen and Warmuth, 1997"
    looks_ahead = True

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options of `held_out`."""

        rate: float = 0.1
        """Step of the weights, >= 0; 0 keeps the initial ones."""
        every: int = 20
        """Training steps between two looks at held-out classes, >= 1."""
        floor: float | None = None
        """Smallest weight, >= 0 and below every initial weight; none: 1 / (4 L) for L losses."""
        classes: float = 0.25
        """Fraction of a batch's classes that are held back, in (0, 1)."""
        loss: str = "smooth_ap"
        """The loss on held-out classes, by name; one that compares samples with samples."""

        def __post_init__(self) -> None:
            check_range("rate", self.rate, least=0)
            check_range("every", self.every, least=1)
            check_range("floor", self.floor, least=0, below=1)
            check_range("classes", self.classes, above=0, below=1)

    shares: Tensor
    steps: Tensor

    def __init__(self, initial: Tensor, options: Any = None, **options_by_name: Any) -> None:
        super().__init__(initial, options, **options_by_name)
        shares, self.floor = floored_shares(self.prior, self.options.floor)
        self.register_buffer("shares", shares)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.equaliser = Equaliser(len(initial))

    def due(self) -> bool:
        """True in training before every `every`-th step, the first one excepted: an untrained trunk has nothing to tell."""
        if not self.training:
            return False
        steps = int(self.steps)
        return steps > 0 and steps % self.options.every == 0

    @torch.no_grad()
    def learn(self, alignments: Tensor) -> None:
        if not self.training:
            return
        logits = self.shares.log() + self.options.rate * alignments.to(self.shares).clamp(-1, 1)
        shares = project_simplex(torch.softmax(logits, 0), self.floor)
        # alignments of nothing, as of a batch with too few classes or one that is not finite, are all 0
        tells = torch.isfinite(alignments).all() & (alignments != 0).any()
        self.shares.copy_(torch.where(tells.to(shares.device), shares, self.shares))

    def forward(self, terms: Tensor) -> Tensor:
        if self.training:
            self.equaliser.update(terms)
            self.steps += torch.isfinite(terms).all()
        return (self.weights.to(terms) * terms).sum()

    @property
    def weights(self) -> Tensor:
        return self.shares * self.equaliser.factors

    @property
    def importances(self) -> Tensor:
        return self.shares.clone()


@dmlcore.hookimpl
def dmlcore_weightings() -> list[type]:
    return [HeldOut]
