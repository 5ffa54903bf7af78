"""Passes of a batch with itself that the extension was told of beforehand, all but the batch. On a small batch the telling
takes as long as the kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmlcore.kernels import extension
from dmlcore.kernels.passes import FunctorCall
from dmlcore.kernels.planning import plan


class PreparedPass(NamedTuple):
    """One pass, without what it compares.

    Attributes:
        calls: the functors, which take no numbers per anchor, no windows and make no histograms.
        values: of all functors per anchor.
        normalise: whether the kernels scale the vectors to unit norm.
        owners: per value the term its average is added to.
    """

    calls: tuple[FunctorCall, ...]
    values: int
    normalise: bool
    owners: tuple[int, ...]


class PreparedPasses:
    """Passes on the CPU that compare one batch with itself, call after call.

    Args:
        passes: at least one.
        terms: how many terms the owners of the passes add to.
    """

    __slots__ = ("_natives", "passes", "reaching", "terms")

    def __init__(self, passes: Sequence[PreparedPass], terms: int) -> None:
        self.passes = passes
        self.terms = terms
        self.reaching = [sorted({owner for pass_ in passes for owner in pass_.owners})]
        self._natives: dict[torch.dtype, Any] = {}

    def begin(self, anchors: Tensor, labels: Tensor) -> Any:
        """The extension's state of the passes over a batch, before its forward pass.

        Args:
            anchors: `[A, D]` float32 or float64, the numbers of a row one after the other.
            labels: `[A]` int64, contiguous. The kernels copy both.
        """
        rows, width = anchors.shape
        native = self._native(anchors.dtype)
        return native.begin(anchors.data_ptr(), labels.data_ptr(), rows, anchors.stride(0), width, torch.get_num_threads())

    def divide(self, board: Any, rank: int, counts: Sequence[int], width: int, dtype: torch.dtype) -> Any:
        """One rank's state of the passes over a batch of which the ranks have told one another, before its forward pass.

        Args:
            board: of the extension. The ranks have met on it, each with its labels, int64, and its vectors behind them.
            rank, counts: this rank, and the samples of each.
            width, dtype: of the vectors, float32 or float64.
        """
        return self._native(dtype).divide(board, rank, counts, width, torch.get_num_threads())

    def _native(self, dtype: torch.dtype) -> Any:
        native = self._natives.get(dtype)
        if native is None:
            module = extension.CPU
            assert module is not None
            told = [
                ([(call.functor, call.options, 0, 0, -1.0) for call in pass_.calls], pass_.normalise, pass_.owners)
                for pass_ in self.passes
            ]
            native = self._natives[dtype] = module.Prepared(dtype == torch.float64, told, self.terms)
        return native

    def sizes(self, anchors: Tensor) -> tuple[tuple[int, int, int], ...]:
        """Of each pass, as `Pass.size`."""
        rows = anchors.shape[0]
        return tuple((pass_.values, rows, 0) for pass_ in self.passes)


def plan_is_watched() -> bool:
    """Whether this thread overrides the plan of passes or records them, which prepared ones take no part in."""
    return bool(getattr(plan, "options", None)) or getattr(plan, "recorded", None) is not None
