"""Normalised temperature-scaled cross-entropy, and what other losses of its shape share with it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.kernels import FunctorCall
from dmlcore.losses import PairLoss, PairOptions, Rows, masked_logsumexp


def positives_against_negatives(logits: Tensor, targets: Tensor, positive: Tensor, negative: Tensor) -> Rows:
    """`softplus(logsumexp_n(logits_n) - targets_p)` summed over each anchor's positives, counted by them.

    One log-sum per anchor serves all its positives: nothing of size positives x negatives is built.

    Args:
        logits: `[A, N]`, of the negatives.
        targets: `[A, N]`, of the positives.
        positive, negative: `[A, N]` bool.

    Returns:
        Values and counts `[1, A]`; an anchor without negatives has the value 0 for each of its positives.
    """
    excess = masked_logsumexp(logits, negative)[:, None] - targets  # [A, N]
    costs = torch.logaddexp(excess, torch.zeros_like(excess))
    values = torch.where(positive, costs, torch.zeros_like(costs)).sum(1)
    return Rows(values[None], positive.sum(1).to(values)[None])


class NtXent(PairLoss):
    """`log(1 + sum_n exp((s_n - s_p) / temperature))`, mean over all pairs of anchor and positive.

    That is the cross-entropy of choosing the positive among itself and all negatives of its anchor; other positives of the
    anchor take no part. A positive of an anchor without negatives has the value 0.

    Source: Sohn, "Improved Deep Metric Learning with Multi-class N-pair Loss Objective", NIPS 2016, section 3.1 (the form);
    Chen, Kornblith, Norouzi, Hinton, "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020, eq. 1.
    """

    name = "nt_xent"
    title = "NT-Xent: normalised temperature-scaled cross-entropy"
    paper = "Sohn, NIPS 2016; Chen et al., ICML 2020"
    aliases = ("NTXentLoss", "ntxent", "InfoNCE", "info_nce")

    @dataclass(frozen=True, kw_only=True)
    class Options(PairOptions):
        """Options of `nt_xent`."""

        temperature: float = 0.07
        """Divisor of the similarities, > 0."""

        def __post_init__(self) -> None:
            check_range("temperature", self.temperature, above=0)

    def row_values(self, similarities: Tensor, positive: Tensor, negative: Tensor) -> Rows:
        logits = similarities / self.options.temperature
        return positives_against_negatives(logits, logits, positive, negative)

    def functor_call(self) -> FunctorCall:
        return FunctorCall("nt_xent", (1 / self.options.temperature, 1.0, 0.0))


@dmlcore.hookimpl
def dmlcore_losses() -> list[type]:
    return [NtXent]
