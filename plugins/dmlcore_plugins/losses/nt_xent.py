"""Normalised temperature-scaled cross-entropy, and what other losses of its shape share with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.errors import ConfigError
from dmlcore.kernels import FunctorCall
from dmlcore.losses import Comparison, PairLoss, PairOptions, Rows, masked_logsumexp


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


def first_pairs(comparison: Comparison) -> Comparison:
    """One pair of each class: its first anchor, with the first reference of the class that is not this anchor itself.

    In a batch that is compared with itself these are the first two samples of the class. Further samples take no part, nor
    does a class without a pair.

    Args:
        comparison: with one label per sample.

    Returns:
        C anchors against C references, in the order of their labels.

    Raises:
        ConfigError: a relation instead of labels.
    """
    if comparison.relation is not None:
        raise ConfigError("pairs = 'one_per_class' needs one label per sample; it takes no label matrix and no relation")
    labels, other_labels, own = comparison.labels, comparison.other_labels, comparison.own_index
    classes, anchors = _first_of_classes(labels)
    if own is not None and len(other_labels):
        # an anchor's own reference gets a label that no anchor has
        own = own[anchors]
        free = torch.cat([labels, other_labels]).max() + 1
        other_labels = other_labels.index_put((own[own >= 0],), free)
    other_classes, references = _first_of_classes(other_labels)
    has_pair, is_paired = torch.isin(classes, other_classes), torch.isin(other_classes, classes)
    anchors, references, classes = anchors[has_pair], references[is_paired], classes[has_pair]
    # 0, or NaN where a sample that takes no part is not finite: it must not go unnoticed
    unseen = (comparison.anchors.detach() * 0).sum() + (comparison.other_vectors.detach() * 0).sum()
    return Comparison(comparison.anchors[anchors] + unseen, classes, comparison.other_vectors[references], classes)


def _first_of_classes(labels: Tensor) -> tuple[Tensor, Tensor]:
    """The classes in order, and where the first sample of each is: two int64 `[C]`."""
    ordered, rows = labels.sort(stable=True)
    is_first = torch.ones_like(ordered, dtype=torch.bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    return ordered[is_first], rows[is_first]


@dataclass(frozen=True, kw_only=True)
class PairedOptions(PairOptions):
    """Options of losses that can take one pair per class."""

    pairs: Literal["all", "one_per_class"] = "all"
    """Which pairs of anchor and positive count: `all`, or one of each class: its first sample with its second, compared with
    the second samples of the other classes."""

    def __post_init__(self) -> None:
        if self.pairs == "one_per_class" and self.miner is not None:
            raise ConfigError("pairs = 'one_per_class' leaves a miner nothing to choose; leave out one of them")
        if self.pairs == "one_per_class" and self.reduction == "none":
            raise ConfigError("pairs = 'one_per_class' has a value per class, so reduction 'none' cannot give one per sample")


class NtXent(PairLoss):
    """`log(1 + sum_n exp((s_n - s_p) / temperature))`, mean over all pairs of anchor and positive.

    That is the cross-entropy of choosing the positive among itself and all negatives of its anchor; other positives of the
    anchor take no part. A positive of an anchor without negatives has the value 0.

    `pairs = "one_per_class"`: the first sample of each class is an anchor, the second its positive, and the second samples of
    the other classes are its negatives, in the order of the batch. With `temperature = 0.04` that is the normalised N-pair loss
    of Zhang, Li, Zhang, "Deep Metric Learning with Spherical Embedding", NeurIPS 2020, as in its public code. A class with one
    sample takes no part, nor do a third and further samples of a class.

    Source: Sohn, "Improved Deep Metric Learning with Multi-class N-pair Loss Objective", NIPS 2016, section 3.1 (the form);
    Chen, Kornblith, Norouzi, Hinton, "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020, eq. 1.
    """

    name = "nt_xent"
    title = "NT-Xent: normalised temperature-scaled cross-entropy"
    paper = "Sohn, NIPS 2016; Chen et al., ICML 2020"
    aliases = ("NTXentLoss", "ntxent", "InfoNCE", "info_nce")
    reshapes = True

    @dataclass(frozen=True, kw_only=True)
    class Options(PairedOptions):
        """Options of `nt_xent`."""

        temperature: float = 0.07
        """Divisor of the similarities, > 0."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_range("temperature", self.temperature, above=0)

    def reshaped(self, comparison: Comparison) -> Comparison:
        return first_pairs(comparison) if self.options.pairs == "one_per_class" else comparison

    def row_values(self, similarities: Tensor, positive: Tensor, negative: Tensor) -> Rows:
        logits = similarities / self.options.temperature
        return positives_against_negatives(logits, logits, positive, negative)

    def functor_call(self) -> FunctorCall:
        return FunctorCall("nt_xent", (1 / self.options.temperature, 1.0, 0.0))


@dmlcore.hookimpl
def dmlcore_losses() -> list[type]:
    return [NtXent]
