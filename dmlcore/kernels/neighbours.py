"""Ranks of positives by the compiled extensions, on the CPU and on CUDA. The plain definition: `dmlcore.evaluation.plain`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dmlcore.kernels import cuda_neighbours, extension

NUMBER_TYPES = (torch.float32, torch.float64)


def why_not(embeddings: Tensor) -> str:
    """Why these embeddings cannot be ranked by the extension; empty if they can."""
    return extension.why_not(embeddings.device.type)


def rank_positives(
    queries: Tensor,
    query_labels: Tensor,
    references: Tensor | None,
    reference_labels: Tensor | None,
    ks: Sequence[int],
    metric: str,
    *,
    memory: int = 0,
    few: int = 0,
) -> Tensor:
    """What every query finds. See `dmlcore.evaluation.plain.rank_positives`, whose values and order of ties it has.

    Args:
        queries: [Q, D] float32 or float64, finite.
        query_labels: [Q] int64.
        references: [N, D] of the same type; None: every query against all other queries.
        reference_labels: [N] int64, or None; all on one device.
        ks: numbers of nearest references, each at least 1.
        metric: "cosine", "dot" or "euclidean".
        memory: bytes for the positives' similarities and counts; more positives are taken in turns. 0: 64 MiB on the CPU,
            512 MiB on a GPU, where it includes what sorting takes.
        few: up to so many positives per query each is compared, more are searched. 0: as measured best on the CPU, 16 on a GPU.

    Returns:
        [5 + len(ks), Q] float64, on the queries' device.
    """
    if queries.device.type == "cuda":
        return cuda_neighbours.rank_positives(
            queries, query_labels, references, reference_labels, ks, metric, memory=memory, few=few
        )
    values = torch.empty(5 + len(ks), len(queries), dtype=torch.float64)
    query_side = _Side(queries, query_labels)
    reference_side = None if references is None or reference_labels is None else _Side(references, reference_labels)
    sides = query_side.place, None if reference_side is None else reference_side.place
    module = extension.cpu()
    assert module is not None
    is_double = queries.dtype == torch.float64
    module.rank_positives(
        is_double, *sides, queries.shape[1], metric, list(ks), values.data_ptr(), torch.get_num_threads(), memory, few
    )
    return values


class _Side:
    """Vectors and labels, held while the extension knows where they are."""

    def __init__(self, vectors: Tensor, labels: Tensor) -> None:
        self._held = vectors.detach().contiguous(), labels.contiguous()
        self.place = self._held[0].data_ptr(), self._held[1].data_ptr(), len(vectors)


class PartedRanking:
    """The same on the CPU where references come in parts, which need not be in memory together.

    For each of `runs` runs of queries: `begin`, then for every part `positives`, then for every part `count`, then `conclude`.

    Args:
        queries: [Q, D] float32 or float64, finite.
        query_labels: [Q] int64.
        lengths: [Q] int64, references of a query's label in all parts, without the query itself.
        rows: references in all parts.
        with_itself: the queries are a part too.
        metric: "cosine", "dot" or "euclidean".
        memory: bytes for the positives' similarities and counts of a run.
    """

    def __init__(
        self, queries: Tensor, query_labels: Tensor, lengths: Tensor, rows: int, with_itself: bool, metric: str, memory: int
    ) -> None:
        module = extension.cpu()
        assert module is not None
        self._queries = len(queries)
        side, lengths = _Side(queries, query_labels), lengths.contiguous()
        self._ranking = module.PartedRanking(
            is_double=queries.dtype == torch.float64,
            queries=side.place,
            lengths=lengths.data_ptr(),
            with_itself=with_itself,
            rows=rows,
            width=queries.shape[1],
            metric=metric,
            threads=torch.get_num_threads(),
            memory=memory,
        )
        self.runs: int = self._ranking.runs

    def begin(self, run: int) -> None:
        """Begin with the queries of a run."""
        self._ranking.begin(run)

    def positives(self, part: tuple[Tensor, Tensor] | None) -> None:
        """Take the positives of a part: its vectors [n, D] and labels [n]; None: the queries themselves."""
        self._enter(part)
        self._ranking.positives()

    def count(self, part: tuple[Tensor, Tensor] | None) -> None:
        """Count the negatives of a part, after the positives of all."""
        self._enter(part)
        self._ranking.count()

    def conclude(self, ks: Sequence[int], values: Tensor) -> None:
        """Write the columns of the run's queries of [5 + len(ks), Q] float64, which are zeros before."""
        assert values.shape == (5 + len(ks), self._queries) and values.is_contiguous()
        self._ranking.conclude(list(ks), values.data_ptr())

    def _enter(self, part: tuple[Tensor, Tensor] | None) -> None:
        side = None if part is None else _Side(*part)
        self._ranking.enter(None if side is None else side.place)  # which copies what it needs
