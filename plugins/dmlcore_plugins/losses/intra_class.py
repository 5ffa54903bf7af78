"""What varies within a class: the margin loss over triplets of one class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import dmlcore
from dmlcore.losses import Comparison
from dmlcore.losses.draws import drawn, pair_draws
from dmlcore_plugins.losses.class_shared import NEGATIVE_SALT, TripletOptions, TripletPerAnchorLoss, Triplets


class IntraClass(TripletPerAnchorLoss):
    """`relu(d_ap - beta + margin) + relu(beta - d_an + margin)` over triplets of one class, `y_a = y_p = y_n`, divided by the
    number of triplets with a term.

    A loss that tells classes apart draws all samples of a class together. This one keeps room for what differs between them. It
    is meant for a head of its own beside such a loss.

    Each anchor has one triplet, drawn evenly. Its samples are different, so that a class needs three in a batch. With
    `replacement` the positive and the negative are drawn from the whole class, the anchor among them. The random number of a
    pair is a hash: see `dmlcore.losses.draws`. So the same batch in any order draws the same.

    Source: Milbich, Roth, Bharadhwaj, Sinha, Bengio, Ommer, Cohen, "DiVA: Diverse Visual Feature Aggregation for Deep Metric
    Learning", ECCV 2020, section 3.1, the intra-class features. Their code draws with replacement, from batches with two
    samples of a class. Deviation: it draws as many triplets as there are samples, and the anchors too.
    """

    name = "intra_class"
    title = "Intra-class loss of DiVA"
    paper = "Milbich et al., ECCV 2020"

    @dataclass(frozen=True, kw_only=True)
    class Options(TripletOptions):
        """Options of `intra_class`."""

        replacement: bool = False
        """Let the samples of a triplet coincide, as the authors' code does. Then two samples of a class are enough."""

    @classmethod
    def least_samples(cls, options: Any) -> int:
        return 2 if options.replacement else 3

    def triplets(self, comparison: Comparison, d: Tensor) -> Triplets:
        references, seed = comparison.other_vectors, self.options.seed
        same, _ = comparison.masks()  # [A, N], of the anchor's class
        counted = same.any(1) if self.options.replacement else same.sum(1) > 1
        columns = torch.arange(same.shape[1], device=same.device)
        own = comparison.own_index
        if self.options.replacement and own is not None:
            same = same | (columns == own[:, None])
        positive = drawn(pair_draws(comparison.anchors, references, comparison.other_labels, seed), same)
        remaining = same if self.options.replacement else same & (columns != positive[:, None])
        negative = drawn(pair_draws(comparison.anchors, references, comparison.other_labels, seed + NEGATIVE_SALT), remaining)
        return Triplets(positive, negative, counted)


@dmlcore.hookimpl
def dmlcore_losses() -> list[type]:
    return [IntraClass]
