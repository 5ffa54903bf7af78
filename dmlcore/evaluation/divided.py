"""Ranks of positives where every process holds some of the queries and of the references: the numbers of one process."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed

from dmlcore.data.label_sets import LabelSets
from dmlcore.evaluation import plain
from dmlcore.evaluation.centring import centred
from dmlcore.evaluation.relevance import Labels
from dmlcore.kernels import neighbours
from dmlcore.kernels.neighbours import PartedRanking
from dmlcore.ranks import Group, gathered, summed
from dmlcore.ranks.dividing import DividedRows

MEMORY = 64 << 20
"""Bytes for similarities of positives that a process takes at least; else as many as its vectors have."""


def rank_positives(
    queries: DividedRows,
    query_labels: Labels,
    references: DividedRows | None,
    reference_labels: Labels | None,
    ks: Sequence[int],
    metric: str,
    own: Tensor | None = None,
) -> Tensor:
    """What every query finds. See `dmlcore.evaluation.plain.rank_positives`, of whose forms it takes that of one
    process, so that the numbers are the same to the last bit. All ranks call it.

    Vectors go from rank to rank in a ring where the CPU extension ranks them: a rank holds its queries, its references, and two
    parts of the other ranks' references. Elsewhere every rank holds all vectors, and compares some queries.

    Args:
        queries: [Q, D] float32 or float64, finite.
        query_labels: of all Q queries.
        references: [N, D]; None: every query against all other queries.
        reference_labels: of all N references, or None.
        ks: numbers of nearest references, each at least 1.
        metric: "cosine", "dot" or "euclidean".
        own: of all queries, as there.

    Returns:
        [5 + len(ks), Q] float64, on every rank.
    """
    is_by_label = own is None and not neighbours.why_not(queries.own)
    group, share = queries.layout.group, (queries.layout.group.rank, queries.layout.group.size)
    if isinstance(query_labels, Tensor) and not isinstance(reference_labels, LabelSets) and is_by_label:
        if queries.own.device.type == "cpu":
            return _in_a_ring(queries, query_labels, references, reference_labels, ks, metric)
        x, theirs, metric = _whole(queries, references, metric)
        return neighbours.rank_positives(x, query_labels, theirs, reference_labels, ks, metric)
    x, theirs, metric = _whole(queries, references, metric)
    return summed(plain.rank_positives(x, query_labels, theirs, reference_labels, ks, metric, own, share), group)


def _whole(queries: DividedRows, references: DividedRows | None, metric: str) -> tuple[Tensor, Tensor | None, str]:
    return centred(queries.whole(), None if references is None else references.whole(), metric)


def _in_a_ring(
    queries: DividedRows,
    query_labels: Tensor,
    references: DividedRows | None,
    reference_labels: Tensor | None,
    ks: Sequence[int],
    metric: str,
) -> Tensor:
    theirs, their_labels = queries if references is None else references, query_labels
    if reference_labels is not None:
        their_labels = reference_labels
    group, layout = queries.layout.group, theirs.layout
    x, moved, metric = centred(queries.own, None if references is None else references.own, metric, layout)
    theirs = DividedRows(x if moved is None else moved, layout)
    labels = query_labels[queries.layout.own]
    ordered = their_labels.sort().values
    lengths = torch.searchsorted(ordered, labels, right=True) - torch.searchsorted(ordered, labels)
    with_itself = references is None
    memory = max(MEMORY, x.numel() * x.element_size())
    ranking = PartedRanking(x, labels, lengths - int(with_itself), len(theirs), with_itself, metric, memory)
    values = torch.zeros(5 + len(ks), len(x), dtype=torch.float64)
    of_rank = their_labels.split(list(layout.sizes))
    for run in range(_most(ranking.runs, group)):
        is_here = run < ranking.runs
        if is_here:
            ranking.begin(run)
        for act in (ranking.positives, ranking.count):
            for owner, rows in theirs.around():
                if is_here and len(rows):
                    act(None if with_itself and owner == group.rank else (rows, of_rank[owner]))
        if is_here:
            ranking.conclude(ks, values)
    return gathered([values.T.contiguous()], queries.layout)[0].T.contiguous()


def _most(number: int, group: Group) -> int:
    """The largest number of all ranks."""
    value = torch.tensor(number)
    distributed.all_reduce(value, distributed.ReduceOp.MAX, group=group.process_group)
    return int(value)
