"""Prototypical loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import dmlcore
from dmlcore.errors import ConfigError
from dmlcore.losses import Comparison, LossOptions, RowLoss, Rows, squared_euclidean_distances


class Prototypical(RowLoss):
    """`cross_entropy(-|x - p_c|^2, label)` over the classes `c`, mean over queries; `p_c` is the mean of the raw embeddings of
    class `c` in the support set.

    The references are the support set. Without any the batch is its own: a sample is compared with the mean of the others of
    its class and with the means of all other classes, so a sample that is alone in its class is no query, though it is a
    prototype for the rest. The same holds for a query that `own` finds among the references. Queries of classes without a
    prototype do not count; a query's class alone among the prototypes gives 0.

    Takes one label per sample: a class has a mean, a relation between pairs has none.

    Deviation: the paper has no loss without a support set.

    Source: Snell, Swersky, Zemel, "Prototypical Networks for Few-shot Learning", NeurIPS 2017, eq. 1 and 2.
    """

    name = "prototypical"
    title = "Prototypical loss"
    paper = "Snell et al., NeurIPS 2017"
    aliases = ("PrototypicalLoss", "prototypical_networks")
    normalise = (False, False)
    needs_norms = True
    reshapes = True
    streams = True  # a query's value depends on the prototypes alone
    needs_vectors = True  # prototypes are means of references

    @dataclass(frozen=True, kw_only=True)
    class Options(LossOptions):
        """Options of `prototypical`."""

    def functor_call(self) -> str:
        return "it compares with the means of classes, few columns that are no samples: there is no pass over pairs to fuse"

    def plain_matrices(self, comparison: Comparison) -> int:
        return 6

    def reshaped(self, comparison: Comparison) -> Comparison:
        if comparison.relation is not None:
            raise ConfigError("prototypical compares with the mean of a class and needs one label per sample, no relation")
        return comparison

    def row_values(self, similarities: Tensor, positive: Tensor, negative: Tensor) -> Rows:
        raise NotImplementedError("the loss is not defined on pairs; `dense_rows` is its definition")

    def dense_rows(self, comparison: Comparison) -> Rows:
        queries, own = comparison.anchors, comparison.own_index
        support, support_labels = comparison.other_vectors, comparison.other_labels
        if not len(support) or not len(queries):
            return Rows(*(queries.sum() * torch.zeros(2, 1, len(queries)).to(queries)))
        classes, dense = torch.unique(support_labels, return_inverse=True)  # [C], [N]
        counts = torch.bincount(dense, minlength=len(classes)).to(support)  # [C]
        sums = support.new_zeros(len(classes), support.shape[1]).index_add(0, dense, support)  # [C, D]
        squares = squared_euclidean_distances(queries, sums / counts[:, None], normalise=False)  # [A, C]
        there = torch.ones_like(squares, dtype=torch.bool)
        if own is not None:
            rows = torch.nonzero(own >= 0)[:, 0]
            own_rows = own[rows]
            column, left = dense[own_rows], counts[dense[own_rows]] - 1
            means = (sums[column] - support[own_rows]) / left.clamp_min(1)[:, None]  # without the query itself
            squares = squares.index_put((rows, column), (queries[rows] - means).square().sum(1))
            there = there.index_put((rows, column), left > 0)
        place = torch.searchsorted(classes, comparison.labels.contiguous()).clamp_max(len(classes) - 1)  # [A]
        counted = (classes[place] == comparison.labels) & there.gather(1, place[:, None])[:, 0]
        logits = torch.where(there, -squares, torch.finfo(squares.dtype).min)
        values = torch.logsumexp(logits, 1) - logits.gather(1, place[:, None])[:, 0]
        values = torch.where(counted, values, torch.zeros_like(values))
        return Rows(values[None], counted.to(values)[None])


@dmlcore.hookimpl
def dmlcore_losses() -> list[type]:
    return [Prototypical]
