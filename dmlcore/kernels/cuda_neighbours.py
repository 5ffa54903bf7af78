"""Ranks of positives on a CUDA device: PyTorch orders by class and sorts, `csrc/cuda/neighbours.h` multiplies and counts.

Device memory beside the input: one arranged copy of the vectors, 9 + K numbers per query, and `MEMORY` for the positives.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from dmlcore.errors import ConfigError
from dmlcore.kernels import extension

MEMORY = 512 << 20
"""Bytes for the similarities of the positives of a run of queries, their counts and what sorting them takes."""

SORTING = 48  # bytes per positive of places and owners, with the sort's own
MOST_ROWS = 1 << 30


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
    module: ModuleType | None = None,
) -> Tensor:
    """What every query finds; see `dmlcore.kernels.neighbours.rank_positives`.

    Everything runs in the current stream of the queries' device. The host waits for the number of positives, on which the
    memory depends, and, where they do not fit at once, for where to cut; with references, for the queries that have any.

    Args:
        queries, query_labels, references, reference_labels, ks, metric: on one device; see there.
        memory: bytes for positives; 0: `MEMORY`. A query's own positives are always taken together.
        few: up to so many positives per query each is compared, more are searched; at most 16; 0: 16.
        module: the binding; another than `dmlcore._cuda` only in tests, where an emulator runs the kernels on CPU tensors.

    Returns:
        [5 + len(ks), Q] float64 on the queries' device.

    Raises:
        ConfigError: no extension, or more than 2^30 rows.
    """
    module = module or extension.cuda()
    if module is None:
        raise ConfigError(extension.why_not("cuda"))
    if max(len(queries), 0 if references is None else len(references)) > MOST_ROWS:
        raise ConfigError("more than 2^30 rows cannot be ranked on a GPU; split the queries and the references")
    with torch.cuda.device(queries.device) if queries.device.type == "cuda" else nullcontext():
        return _Ranker(queries, query_labels, references, reference_labels, metric, memory, few, module).run(ks)


class _Ranker:
    def __init__(
        self,
        queries: Tensor,
        query_labels: Tensor,
        references: Tensor | None,
        reference_labels: Tensor | None,
        metric: str,
        memory: int,
        few: int,
        module: ModuleType,
    ) -> None:
        self.device, self.dtype, self.columns = queries.device, queries.dtype, len(queries)
        self.kind: Any = module.Ranking64 if queries.dtype == torch.float64 else module.Ranking32
        self.stride, self.width = module.ranking_stride(queries.shape[1]), queries.shape[1]
        few = min(few or module.most_compared, module.most_compared)
        labels, self.order = torch.sort(query_labels, stable=True)  # [Q]
        if references is None or reference_labels is None:
            own, their_labels, their_order = 1, labels, self.order
        else:
            own = 0
            their_labels, their_order = torch.sort(reference_labels, stable=True)  # [N]
        self.first = torch.searchsorted(their_labels, labels)  # [Q]
        self.last = torch.searchsorted(their_labels, labels, right=True)  # [Q]
        if not own:  # queries without any reference of their class find nothing
            present = self.last > self.first
            self.order, self.first, self.last = self.order[present], self.first[present], self.last[present]
        counts = self.last - self.first - own  # [Q]
        self.starts = torch.cat((counts.new_zeros(1), counts.cumsum(0)))  # [Q + 1]
        largest = counts.max() if len(counts) else counts.new_zeros(())
        total, most = torch.stack((self.starts[-1], largest)).tolist()
        self.runs = self._runs(total, max(memory or MEMORY, 1) // (6 * queries.element_size() + SORTING))
        x, x_halves = self._arranged(queries, self.order, metric)
        r, r_halves = (x, x_halves) if references is None else self._arranged(references, their_order, metric)
        self.held = (x, x_halves, r, r_halves)  # the ranking holds their addresses
        self.ranking = self.kind(
            queries=x.data_ptr(),
            query_halves=0 if x_halves is None else x_halves.data_ptr(),
            query_rows=len(x),
            references=r.data_ptr(),
            reference_halves=0 if r_halves is None else r_halves.data_ptr(),
            reference_rows=len(r),
            width=self.width,
            first=self.first.data_ptr(),
            last=self.last.data_ptr(),
            starts=self.starts.data_ptr(),
            few=few,
            searches=most > few,
        )

    def run(self, ks: Sequence[int]) -> Tensor:
        values = torch.zeros(5 + len(ks), self.columns, dtype=torch.float64, device=self.device)
        ks_there = torch.tensor(list(ks), dtype=torch.int64, device=self.device)
        for q0, q1, cells in self.runs:
            thresholds = torch.empty(cells, dtype=self.dtype, device=self.device)
            counts = torch.zeros(cells, dtype=torch.int32, device=self.device)
            self.ranking.take(q0, q1, thresholds.data_ptr(), counts.data_ptr())
            self.ranking.positives(self._stream())
            thresholds.copy_(self._sorted(thresholds, q0, q1))
            self.ranking.count(self._stream())
            self.ranking.conclude(
                self.order.data_ptr(), ks_there.data_ptr(), len(ks), self.columns, values.data_ptr(), self._stream()
            )
        return values

    def _runs(self, total: int, most_cells: int) -> list[tuple[int, int, int]]:
        """The first and last query and the positives of each run; a run holds one query at least."""
        if total == 0:
            return []
        if total <= most_cells:
            return [(0, len(self.order), total)]
        # query q begins a new run where the positives up to its end pass a multiple of what a run may hold
        pieces = self.starts[1:].sub(1).clamp_min(0).div(max(most_cells, 1), rounding_mode="floor")
        edges = torch.searchsorted(pieces, torch.arange(1, -(-total // max(most_cells, 1)), device=self.device))
        cuts = torch.unique(torch.cat((edges.new_zeros(1), edges, edges.new_tensor([len(self.order)]))))
        ends = torch.stack((cuts, self.starts[cuts])).tolist()
        return [(a, b, m - n) for a, b, n, m in zip(ends[0], ends[0][1:], ends[1], ends[1][1:], strict=False) if m > n]

    def _sorted(self, thresholds: Tensor, q0: int, q1: int) -> Tensor:
        """Every query's similarities in descending order."""
        counts = self.starts[q0 + 1 : q1 + 1] - self.starts[q0:q1]
        rows = torch.arange(q1 - q0, dtype=torch.int32, device=self.device)
        owner = torch.repeat_interleave(rows, counts, output_size=len(thresholds))
        values, place = torch.sort(thresholds, descending=True)
        _, again = torch.sort(owner[place], stable=True)
        return values[again]

    def _arranged(self, rows: Tensor, order: Tensor, metric: str) -> tuple[Tensor, Tensor | None]:
        rows = rows.detach().contiguous()
        to = torch.empty(len(order), self.stride, dtype=self.dtype, device=self.device)
        halves = torch.empty(len(order), dtype=self.dtype, device=self.device) if metric == "euclidean" else None
        self.kind.arrange(
            rows.data_ptr(),
            order.data_ptr(),
            len(order),
            self.width,
            metric == "cosine",
            to.data_ptr(),
            0 if halves is None else halves.data_ptr(),
            self._stream(),
        )
        return to, halves

    def _stream(self) -> int:
        return torch.cuda.current_stream(self.device).cuda_stream if self.device.type == "cuda" else 0
