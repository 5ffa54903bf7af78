"""A comparison as a pass of the kernels, and what such a pass tells miners: the extremes of its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dmlcore.kernels import FunctorCall, Pass, Relations, fused_passes
from dmlcore.losses.comparison import Comparison
from dmlcore.losses.mining import Extremes, Windows

Wholes = Callable[[Tensor | None], tuple[Tensor, int] | None]
"""From what a member sees to the tensor it is columns of, and the first of them. None: it is no part of another."""


def pass_of(
    comparison: Comparison,
    calls: Sequence[FunctorCall],
    normalise: tuple[bool, bool],
    owners: Sequence[int] | None = None,
    wholes: Wholes | None = None,
) -> Pass:
    """Several functors on one comparison as a pass of the kernels."""
    labels, reference_labels, positives = comparison.labels, comparison.reference_labels, comparison.positives
    relations = Relations(comparison.own)
    if positives is not None:
        relations = Relations(comparison.own, positives.start, positives.index)
        labels = positives.start[:-1]  # nobody looks at them
        reference_labels = None if comparison.references is None else positives.start.new_zeros(len(comparison.references))
    anchors_in = references_in = None
    if wholes is not None:
        anchors_in, references_in = wholes(comparison.anchors), wholes(comparison.references)
    sides = (comparison.anchors, labels, comparison.references, reference_labels)
    terms = None if owners is None else tuple(owners)
    return Pass(*sides, tuple(calls), normalise, relations, anchors_in, references_in, terms)


class RowMeasure:
    """The extremes of all rows of a comparison by the kernels. Those of all pairs are computed once."""

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison
        self.of_all: Extremes | None = None

    @torch.no_grad()
    def __call__(self, windows: Windows | None) -> Extremes:
        if windows is None and self.of_all is not None:
            return self.of_all
        call = FunctorCall("row_extremes", (0.0,), windows=windows)
        values, counts, _ = fused_passes([pass_of(self.comparison.with_positives(), [call], (True, True))]).of(0)
        signs = values.new_full((4, 1), torch.inf)  # no copy of numbers of the host: a CUDA graph takes none
        signs[1::2].neg_()
        extremes = Extremes(*torch.where(counts == 0, signs, values).unbind())
        if windows is None:
            self.of_all = extremes
        return extremes
