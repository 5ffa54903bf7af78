"""The short way from a batch to terms, for losses that compare it with itself as they did before: what `path.evaluate` would
find out again is kept. It gives the same bits. Python takes longer than the kernels on a small batch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from dmlcore.kernels import PreparedPass, PreparedPasses, extension, fused_again, plan_is_watched
from dmlcore.losses.comparison import Comparison
from dmlcore.losses.path import Fusion, Outcome, Place


class Repetition(NamedTuple):
    """What stays the same from call to call.

    Attributes:
        fusions: of the members, None for those that take no part. It holds as long as these are the members' own.
        passes: of all members.
        places: of the members in the passes.
        averaged: the members whose terms the passes give: all that take part.
    """

    fusions: tuple[Fusion | None, ...]
    passes: PreparedPasses
    places: dict[int, Place]
    averaged: list[int]

    def is_of(self, members: Sequence[Any], comparisons: Sequence[Comparison | None]) -> bool:
        """Whether it says what these members do."""
        if len(self.fusions) != len(members):
            return False
        for loss, fusion, comparison in zip(members, self.fusions, comparisons, strict=True):
            if (comparison is None) != (fusion is None):
                return False
            if fusion is not None and not (loss.fusions.get("cpu") is fusion and fusion.is_of(loss)):
                return False
        return True


def evaluate_again(members: Sequence[Any], comparisons: Sequence[Comparison | None], *, scalar: bool = False) -> Outcome | None:
    """What `path.evaluate` gives, or None where this call is not of the simple kind, or the first of its kind.

    Args:
        members: all losses of the ensemble, or one.
        comparisons: what each compares. None: its value does not come from rows.
        scalar: whether nothing but the one member's term is wanted, as a scalar.
    """
    batch, keeper = None, None
    for loss, comparison in zip(members, comparisons, strict=True):
        if comparison is not None:
            if batch is None:
                batch, keeper = comparison, loss
            elif comparison is not batch:
                return None
    if batch is None or keeper is None or batch.references is not None or batch.relation is not None:
        return None
    if batch.mining is not None or not batch.anchors.is_cpu or torch.compiler.is_compiling():
        return None
    if extension.SWITCH in os.environ or plan_is_watched():
        return None
    repetition = keeper.repetition
    if repetition is None or not repetition.is_of(members, comparisons):
        repetition = keeper.repetition = _repetition(members, comparisons)
        if repetition is None:
            return None
    outcome = Outcome()
    outcome.passed = fused_again(repetition.passes, batch.anchors, batch.labels, scalar=scalar)
    outcome.places, outcome.averaged = repetition.places, repetition.averaged
    return outcome


def _repetition(members: Sequence[Any], comparisons: Sequence[Comparison | None]) -> Repetition | None:
    """What stays the same from now on, where every member was evaluated before and the kernels' averages are its terms."""
    fusions: list[Fusion | None] = []
    called: dict[int, Fusion] = {}
    groups: dict[tuple[bool, bool], list[int]] = {}  # members that share a pass, in the order of `path.evaluate`
    for index, (loss, comparison) in enumerate(zip(members, comparisons, strict=True)):
        fusions.append(None)
        if comparison is None:
            continue
        fusion: Fusion | None = loss.fusions.get("cpu")
        if fusion is None or not fusion.is_of(loss) or loss.rearranges:
            return None
        fusions[-1], fusion = fusion, fusion.of_batch or fusion
        if not fusion.is_averaged:
            return None
        if fusion.call.given is not None or fusion.call.windows is not None or fusion.call.cells:
            return None
        called[index] = fusion
        groups.setdefault(fusion.normalise, []).append(index)
    passes, places = [], {}
    for number, (normalise, indices) in enumerate(groups.items()):
        calls, owners = [], []
        for index in indices:
            fusion = called[index]
            places[index] = Place(number, len(owners), fusion.values, 0)
            owners += [index] * fusion.values
            calls.append(fusion.call)
        passes.append(PreparedPass(tuple(calls), len(owners), normalise[0], tuple(owners)))
    return Repetition(tuple(fusions), PreparedPasses(passes, len(members)), places, list(places))
