"""The members of an ensemble that are defined by rows: which of them share a pass, and all passes of a step in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from dmlcore.ensemble.views import Views
from dmlcore.kernels import FunctorCall, Pass, Passed, functors, fused_passes
from dmlcore.losses import Loss, RowLoss, Rows, Sides
from dmlcore.losses.base import ProxyLoss, RowMeasure, check_inputs, pass_of, table_rows, with_lists
from dmlcore.losses.relations import Relation


class Place(NamedTuple):
    """Where the values of a member are: its pass, the first of its rows, their number, and the first cell of its table."""

    number: int
    first: int
    values: int
    cell: int


class FoundRows:
    """What a step found for the members that are defined by rows.

    Attributes:
        passed: of all passes, with a term for every member of the ensemble; None: there was no pass.
        places: of the members that took part in them.
        averaged: the members whose terms `passed` holds; the others' are 0 there.
        own: values and counts of the members that are in no pass, or have more to do after it.
    """

    def __init__(self, passed: Passed | None, places: dict[int, Place], averaged: Sequence[int], own: dict[int, Rows]) -> None:
        self.passed, self.places, self.averaged, self.own = passed, places, averaged, own

    def rows_of(self, index: int) -> Rows | None:
        """Values and counts of a member, `[V, A]`; None for one without."""
        if index in self.own:
            return self.own[index]
        if index not in self.places:
            return None
        assert self.passed is not None
        place = self.places[index]
        values, counts, _ = self.passed.of(place.number)
        return Rows(values[place.first : place.first + place.values], counts[place.first : place.first + place.values])

    def detached(self) -> FoundRows:
        """The same without a history."""
        own = {index: Rows(rows.values.detach(), rows.counts.detach()) for index, rows in self.own.items()}
        return FoundRows(None if self.passed is None else self.passed.detached(), self.places, self.averaged, own)


def sides_of(
    members: Sequence[Loss],
    embeddings: Tensor,
    labels: Tensor,
    references: Tensor | None,
    reference_labels: Tensor | None,
    own: Tensor | None,
    relation: Relation | Tensor | None,
    views: Views,
    *,
    advance: bool,
) -> dict[int, Sides]:
    """What every member that is defined by rows compares, by its index."""
    labels, reference_labels, relation = check_inputs(embeddings, labels, references, reference_labels, relation)
    found = {}
    for index, loss in enumerate(members):
        if type(loss).forward is not RowLoss.forward:
            continue  # a plugin's own forward is called as it is
        x, y, others, other_labels = views.of(index, labels, reference_labels)
        if isinstance(loss, ProxyLoss):
            found[index] = loss.sides(x, y, None, None)
        else:
            found[index] = cast(RowLoss, loss).sides_for(x, y, others, other_labels, own, relation, advance=advance)
    return found


class _Groups:
    """Members that compare the same things, to run in one pass each; `losses` are those that have sides, by index."""

    def __init__(self, losses: dict[int, RowLoss], sides: dict[int, Sides], embeddings: Tensor) -> None:
        self.losses, self.sides = losses, sides
        self.members: list[list[int]] = []
        self.calls: dict[int, FunctorCall] = {}
        self.given: dict[int, Tensor | None] = {}
        self.measures: list[RowMeasure] = []
        for index, loss in losses.items():
            call = loss.call_for(embeddings, sides[index])
            if call is None:
                continue
            self.calls[index] = call
            if type(loss).fused_rows is RowLoss.fused_rows:  # one of its own compares what nobody else does
                self._join(index, loss)

    def _join(self, index: int, loss: RowLoss) -> None:
        side = self.sides[index]
        if side.relation is not None:
            for other in self.sides.values():  # members that compare the same things share the list of positives
                if other.lists is not None and side.anchors is other.anchors and side.references is other.references:
                    side = side._replace(lists=other.lists)
            side = self.sides[index] = with_lists(side)
        self.calls[index], self.given[index] = loss.ready_call(self.calls[index], side, self._measure(side))
        for members in self.members:  # compared by identity, which every version of torch.compile can trace
            other, first = self.sides[members[0]], self.losses[members[0]]
            if (
                side.anchors is other.anchors
                and side.references is other.references
                and loss.normalise == first.normalise
                and (self.calls[index].windows is None) == (self.calls[members[0]].windows is None)
            ):
                members.append(index)
                return
        self.members.append([index])

    def _measure(self, side: Sides) -> RowMeasure | None:
        """What members that mine share."""
        if side.mining is None:
            return None
        for known in self.measures:
            if known.sides.anchors is side.anchors and known.sides.references is side.references:
                return known
        self.measures.append(RowMeasure(side))
        return self.measures[-1]


def _completed(loss: RowLoss, side: Sides, call: FunctorCall, given: Tensor | None, passed: Passed, place: Place) -> Rows:
    if call.cells:
        rows = table_rows(passed.tables(place.number)[place.cell : place.cell + call.cells])
    else:
        values, counts, _ = passed.of(place.number)
        rows = Rows(values[place.first : place.first + place.values], counts[place.first : place.first + place.values])
    return loss.complete(rows, side, given)


def found_rows(members: Sequence[Loss], sides: dict[int, Sides], embeddings: Tensor, views: Views) -> FoundRows:
    """Run everything the members need: all passes of those that are fused in one call, then the rest.

    Args:
        members: all losses of the ensemble.
        sides: from `sides_of`.
        embeddings: `[B, W]`.
        views: what the members see of them.
    """
    losses = {index: cast(RowLoss, members[index]) for index in sides}
    groups = _Groups(losses, sides, embeddings)
    calls, known = groups.calls, functors(embeddings.device.type)
    passes: list[Pass] = []
    places: dict[int, Place] = {}
    averaged: list[int] = []
    for number, chosen in enumerate(groups.members):
        side, owners, cell = sides[chosen[0]], [], 0
        for index in chosen:
            call = calls[index]
            place = places[index] = Place(number, len(owners), known[call.functor][1], cell)
            is_averaged = losses[index].is_averaged
            owners += [index if is_averaged else -1] * place.values
            cell += call.cells
            if is_averaged:
                averaged.append(index)
        one = pass_of(side, tuple(calls[index] for index in chosen), losses[chosen[0]].normalise, tuple(owners))
        if views.columns is not None:
            one = one._replace(anchors_in=views.whole(side.anchors), references_in=views.whole(side.references))
        passes.append(one)
    passed = fused_passes(passes, len(members)) if passes else None
    own = {}
    for index, place in places.items():
        if index not in averaged:
            assert passed is not None
            own[index] = _completed(losses[index], sides[index], calls[index], groups.given[index], passed, place)
    for index, loss in losses.items():
        if index not in places:
            own[index] = loss.fused_rows(sides[index], calls[index]) if index in calls else loss.plain_rows(sides[index])
    return FoundRows(passed, places, averaged, own)


def terms_of(found: FoundRows, others: dict[int, Tensor]) -> Tensor:
    """The values of all members in order, `[L]`: those the passes averaged, and scalars of the others by index."""
    if found.passed is not None and not others:
        return found.passed.terms
    rest = sorted(others)
    if found.passed is None or not found.averaged:
        return torch.stack([others[index].to(others[rest[0]].dtype) for index in rest])
    total = found.passed.terms
    terms = list(total.unbind())  # no index from the host: see `averaged` of the kernels
    for index in rest:
        terms[index] = terms[index] + others[index].to(total.dtype)
    return torch.stack(terms)
