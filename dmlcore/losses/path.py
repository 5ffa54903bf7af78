"""The one path from comparisons to terms. A loss alone is an ensemble of one: both come through `evaluate`.

Members that compare the same tensors share a pass over the similarities, and all passes of a call go to the kernels together.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from dmlcore.kernels import FunctorCall, Passed, extension, fused_passes
from dmlcore.losses.comparison import Comparison
from dmlcore.losses.measuring import RowMeasure, Wholes, pass_of
from dmlcore.losses.mining import Measure, Mining, WindowMiner
from dmlcore.losses.relations import share_a_label


class Rows(NamedTuple):
    """Unreduced results `[V, A]`. The default reduction is sum(values) / sum(counts) of each of the V rows, added up."""

    values: Tensor
    counts: Tensor


class ByRows(Protocol):
    """What this path needs of a loss that is defined by rows. `RowLoss` says what each is."""

    options: Any
    fusions: dict[str, Fusion]
    miner: Any
    normalise: tuple[bool, bool]
    kernel_normalise: tuple[bool, bool] | None
    completes: bool
    reduces: ClassVar[bool]
    reshapes: ClassVar[bool]
    rearranges: ClassVar[bool]
    fuses_miners: ClassVar[bool]
    fuses_relations: ClassVar[bool]

    def functor_call(self) -> FunctorCall | str: ...
    def functor_call_of_batch(self) -> FunctorCall | None: ...
    def why_no_kernel(self, call: FunctorCall, device: str) -> str: ...
    def reshaped(self, comparison: Comparison) -> Comparison: ...
    def rearranged(self, comparison: Comparison) -> tuple[Comparison, Any] | None: ...
    def complete(self, rows: Rows, comparison: Comparison, context: Any) -> Rows: ...
    def plain_rows(self, comparison: Comparison) -> Rows: ...


class Fusion(NamedTuple):
    """What is fixed about the fused form of a loss on one type of device while its options stay the same.

    Attributes:
        owner: the loss it was asked of. A replica shares what the original keeps, but not its parameters.
        options: the object it was asked with.
        generation: of the functors that were loaded then.
        call: the functor with its options.
        values: per anchor.
        normalise: whether the kernels scale anchors and references to unit norm.
        is_averaged: whether the kernels' averages are all that is left of the rows.
        couples: whether the functor couples an anchor with its positives, so that each must be among the other's.
        of_batch: another fused form, for a batch that is compared with itself as it is. It is averaged.
    """

    owner: Any
    options: Any
    generation: int
    call: FunctorCall
    values: int
    normalise: tuple[bool, bool]
    is_averaged: bool
    couples: bool
    of_batch: Fusion | None = None

    def is_of(self, loss: Any) -> bool:
        """Whether it still says what is fixed about this loss."""
        normalise = loss.kernel_normalise or loss.normalise
        return (
            self.owner is loss
            and self.options is loss.options
            and self.normalise == normalise
            and self.generation == extension.generation
        )


class Member(NamedTuple):
    """A member whose functor takes part in a pass.

    Attributes:
        index: in the ensemble.
        comparison: what it compares.
        fused: what the kernels compare for it, mostly the same.
        call: its functor with all it needs for this batch.
        context: for `complete`: the numbers per anchor that the functor was given, or what `rearranged` returned.
        fusion: what is fixed about it.
    """

    index: int
    comparison: Comparison
    fused: Comparison
    call: FunctorCall
    context: Any
    fusion: Fusion


class Place(NamedTuple):
    """Where the values of a member are: its pass, the first of its rows there, their number, its first cell of histograms."""

    number: int
    row: int
    count: int
    cell: int


def compared(loss: ByRows, comparison: Comparison, *, advance: bool) -> Comparison:
    """What a loss compares, from what it was called with, and with its miner.

    Args:
        loss: defined by rows.
        comparison: from `compare`.
        advance: a new batch: a miner with a seed draws anew.
    """
    shaped = loss.reshaped(comparison) if loss.reshapes else comparison
    miner = loss.miner
    if miner is None:
        return shaped
    # a loss may compare something derived from the embeddings; miners see these themselves
    mining = Mining(miner, miner.next_draw(advance=advance), comparison.anchors, comparison.other_vectors)
    return shaped._replace(mining=mining)


def fusion_of(loss: ByRows, device: str) -> Fusion | None:
    """The fused form of a loss on a type of device, or None. `evaluate` asks once per options object and keeps the answer."""
    call = loss.functor_call()
    if isinstance(call, str) or loss.why_no_kernel(call, device):
        return None
    values = extension.functors(device)[call.functor][1]
    is_averaged = loss.options.reduction == "default" and not loss.completes and not loss.reduces
    couples = call.functor in extension.partner_functors()
    normalise = loss.kernel_normalise or loss.normalise
    fusion = Fusion(loss, loss.options, extension.generation, call, values, normalise, is_averaged, couples)
    of_batch = loss.functor_call_of_batch() if device == "cpu" and not torch.compiler.is_compiling() else None
    if of_batch is not None and loss.options.reduction == "default":
        values = extension.functors(device)[of_batch.functor][1]
        fusion = fusion._replace(of_batch=fusion._replace(call=of_batch, values=values, is_averaged=True))
    if not torch.compiler.is_compiling():  # a compiled graph must not depend on what is kept
        loss.fusions[device] = fusion
    return fusion


def is_fusable(loss: ByRows, fusion: Fusion, comparison: Comparison) -> bool:
    """Whether the fused form of a loss is right for what is compared."""
    relation, mining = comparison.relation, comparison.mining
    if comparison.anchors.is_cuda and comparison.anchors.dtype == torch.float64:  # CUDA kernels compute in float32
        return False
    # coupled pairs are found from both sides, which only a batch with itself and equal labels guarantee
    if fusion.couples and not (comparison.references is None and mining is None and relation in (None, share_a_label)):
        return False
    if relation is not None and not loss.fuses_relations:
        return False
    if mining is None:
        return True
    # windows are intervals of cosines, so the loss must compare cosines, too
    if loss.normalise != (True, True) or not loss.fuses_miners:
        return False
    if mining.miner.semihard_margin is not None:  # in the pass of the loss itself
        return fusion.normalise == (True, True) and comparison.anchors.device.type == "cpu"
    return isinstance(mining.miner, WindowMiner)


def reduced(rows: Rows, reduction: str) -> Tensor:
    """One number from values and counts, as the option `reduction` of every loss says."""
    values, counts = rows
    if reduction == "default":
        return (values.sum(1) / counts.sum(1).clamp_min(1)).sum()
    if reduction == "none":
        return values.sum(0)
    if reduction == "sum":
        return values.sum()
    return values.sum() / max(values.shape[1], 1)


class Outcome:
    """What one call gave its members.

    Attributes:
        passed: what all passes gave, with a term for every member. None: there was no pass.
        places: of the members that took part in them.
        averaged: the members whose terms `passed` holds. The terms of the others are 0 there.
        completed: values and counts of the members that are in no pass, or have more to do after it.
    """

    __slots__ = ("averaged", "completed", "passed", "places")

    def __init__(self) -> None:
        self.passed: Passed | None = None
        self.places: dict[int, Place] = {}
        self.averaged: list[int] = []
        self.completed: dict[int, Rows] = {}

    def rows_of(self, index: int) -> Rows | None:
        """Values and counts of a member, `[V, A]`. None for one that has none."""
        if index in self.completed:
            return self.completed[index]
        return self._placed(self.places[index]) if index in self.places else None

    def active_rows(self) -> dict[int, Tensor]:
        """The share of values above 0 of the members that have one row of values, in one operation for all where there was one
        pass. The others are missing."""
        if self.passed is None or len(self.passed.sizes) != 1 or self.passed.parts[0][0].ndim == 2:
            return {}
        rows = (self.passed.of(0)[0] > 0).float().mean(1).unbind()
        single = {index: rows[place.row] for index, place in self.places.items() if place.count == 1}
        return {index: share for index, share in single.items() if index not in self.completed}

    def _placed(self, place: Place) -> Rows:
        assert self.passed is not None
        values, counts, _ = self.passed.of(place.number)
        return Rows(values[place.row : place.row + place.count], counts[place.row : place.row + place.count])

    def detach(self) -> None:
        """Keep the numbers only: what autograd keeps for a backward pass goes with the terms."""
        if self.passed is not None:
            detached = []
            for values, counts, histograms in self.passed.parts:  # counts have no history
                detached.append((values.detach(), counts, histograms.detach()))
            self.passed = Passed(self.passed.terms.detach(), tuple(detached), self.passed.sizes)
        for index, rows in self.completed.items():
            self.completed[index] = Rows(rows.values.detach(), rows.counts.detach())

    def complete(self, loss: ByRows, member: Member) -> None:
        """Let a loss finish what the kernel leaves to it."""
        place, call = self.places[member.index], member.call
        assert self.passed is not None
        if call.cells:  # histograms of positive and negative pairs, `[2, cells]`, and no counts
            histograms = self.passed.of(place.number)[2][place.cell : place.cell + call.cells]
            rows = Rows(histograms.view(2, -1), histograms.new_zeros(2, 0))
        else:
            rows = self._placed(place)
        if loss.completes:
            rows = loss.complete(rows, member.comparison, member.context)
        self.completed[member.index] = rows

    def terms(self, members: Sequence[Any], scalars: dict[int, Tensor]) -> Tensor:
        """`[L]` the values of all members in order. `scalars` has those that are not defined by rows, by index."""
        for index, rows in self.completed.items():  # the kernels left these terms at 0
            loss = members[index]
            scalars[index] = loss.reduce(rows) if loss.reduces else reduced(rows, loss.options.reduction)
        if self.passed is not None and not scalars:
            return self.passed.terms
        indices = sorted(scalars)
        if self.passed is None or not self.averaged:
            return torch.stack([scalars[index].to(scalars[indices[0]].dtype) for index in indices])
        total = self.passed.terms
        terms = list(total.unbind())  # no index from the host: a copy would make it wait, and end the capture of a CUDA graph
        for index in indices:
            terms[index] = terms[index] + scalars[index].to(total.dtype)
        return torch.stack(terms)


class Sharing:
    """Members that compare the same things, to run in one pass each."""

    __slots__ = ("groups", "losses", "measures")

    def __init__(self, losses: Sequence[Any]) -> None:
        self.losses = losses
        self.groups: list[list[Member]] = []
        self.measures: list[RowMeasure] = []

    def add(self, index: int, fusion: Fusion, comparison: Comparison) -> bool:
        """Give a member its place. False: its fused form does not take this batch."""
        loss = self.losses[index]
        fused, call, context = comparison, fusion.call, None
        if loss.rearranges:
            rearranged = loss.rearranged(comparison)
            if rearranged is None:
                return False
            fused, context = rearranged
        if fused.relation is not None:
            fused = self._listed(fused)
        if call.given is not None and not isinstance(call.given, Tensor):
            context = call.given(comparison)
            call = replace(call, given=context)
        if fused.mining is not None:
            miner = fused.mining.miner
            windows = miner.windows(self._measure(fused)) if isinstance(miner, WindowMiner) else None
            call = replace(call, windows=windows, semihard=miner.semihard_margin)
        member = Member(index, comparison, fused, call, context, fusion)
        for group in self.groups:
            first = group[0]
            # identity, not equality: comparing contents would cost more than a pass saves, and make a GPU wait
            if (
                fused.anchors is first.fused.anchors
                and fused.references is first.fused.references
                and fusion.normalise == first.fusion.normalise
                # miners rule out the symmetry of a batch with itself, which halves the work of losses without one
                and call.is_mined == first.call.is_mined
            ):
                group.append(member)
                return True
        self.groups.append([member])
        return True

    def _listed(self, comparison: Comparison) -> Comparison:
        """With its positives listed. Members that compare the same things share the list."""
        for group in self.groups:
            listed = group[0].fused
            if listed.positives is not None and comparison.compares_same(listed):
                return comparison._replace(positives=listed.positives)
        return comparison.with_positives()

    def _measure(self, comparison: Comparison) -> Measure:
        """What members that mine share."""
        for measure in self.measures:
            if measure.comparison.compares_same(comparison):
                return measure
        self.measures.append(RowMeasure(comparison))
        return self.measures[-1]


def evaluate(
    members: Sequence[Any],
    comparisons: Sequence[Comparison | None],
    wholes: Wholes | None = None,
    *,
    scalar: bool = False,
    unaveraged: Sequence[int] = (),
) -> Outcome:
    """Run everything that members defined by rows need: all passes in one call, then the rest.

    Args:
        members: all losses of the ensemble, or one.
        comparisons: what each compares. None: its value does not come from rows.
        wholes, scalar: what tensors are columns of, and whether the one member's term is wanted as a scalar.
        unaveraged: members whose rows are wanted, because others have more of them.
    """
    outcome, sharing = Outcome(), Sharing(members)
    plain: list[int] = []
    # The switch may be turned between two calls, so nothing that was kept says what it stands at.
    may_remember = extension.SWITCH not in os.environ and not torch.compiler.is_compiling()
    for index, comparison in enumerate(comparisons):
        if comparison is not None:
            loss, device = members[index], comparison.anchors.device.type
            fusion = loss.fusions.get(device) if may_remember else None
            if fusion is None or not fusion.is_of(loss):
                fusion = fusion_of(loss, device)
            if fusion is not None and fusion.of_batch is not None and comparison.is_batch:
                fusion = fusion.of_batch
            if fusion is not None and fusion.is_averaged and index in unaveraged:
                fusion = fusion._replace(is_averaged=False)
            if fusion is None or not is_fusable(loss, fusion, comparison) or not sharing.add(index, fusion, comparison):
                plain.append(index)
    if sharing.groups:
        passes = []
        for number, group in enumerate(sharing.groups):
            owners, calls, cell = [], [], 0
            for member in group:
                index, fusion = member.index, member.fusion
                outcome.places[index] = Place(number, len(owners), fusion.values, cell)
                owners += [index if fusion.is_averaged else -1] * fusion.values  # -1: see `Outcome.terms`
                calls.append(member.call)
                cell += member.call.cells
                if fusion.is_averaged:
                    outcome.averaged.append(index)
            passes.append(pass_of(group[0].fused, calls, group[0].fusion.normalise, owners, wholes))
        # one call for all: the kernels order equal labels once, and spread small passes over the threads
        outcome.passed = fused_passes(passes, None if scalar else len(members))
        for group in sharing.groups:
            for member in group:
                if not member.fusion.is_averaged:
                    outcome.complete(members[member.index], member)
    for index in plain:
        outcome.completed[index] = members[index].plain_rows(comparisons[index])
    return outcome
