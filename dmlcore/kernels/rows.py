"""Passes of several losses over the similarities of anchors and references, as differentiable PyTorch functions.

The kernels return unreduced values and counts per anchor, `[V, A]`, and, on request, their averages. All passes of a step on
the CPU are one call and one node of autograd; under `torch.compile` they are the custom operator `dmlcore::fused_rows`. On
other devices every pass is a node of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmlcore.errors import ConfigError
from dmlcore.kernels import extension
from dmlcore.kernels.cpu import CpuPasses, CpuStep, Target


@dataclass(frozen=True)
class FunctorCall:
    """A functor of `csrc/losses` with its options.

    Attributes:
        functor: the name it is listed under.
        options: its options in the order the header lists them.
        given: `[K, A]` numbers per anchor, for functors that take such; constants for the kernel.
        windows: `[4, A]` similarities: the lowest and highest of the positives that count for this loss, then of the negatives,
            inclusive; None: all. Constants.
        cells: of the two histograms together, for functors that make a table of the whole batch.
    """

    functor: str
    options: tuple[float, ...]
    given: Tensor | None = field(default=None, compare=False)
    windows: Tensor | None = field(default=None, compare=False)
    cells: int = 0


class Relations(NamedTuple):
    """Which pairs are what, besides equal labels.

    Attributes:
        own: `[A]` int64, the reference that is the anchor itself or -1: never a pair.
        starts, positives: the positives of anchor `i` are the references `positives[starts[i]:starts[i + 1]]`, ascending, int64
            `[A + 1]` and `[P]`; everything else is a negative and labels are not looked at. None: equal labels.
    """

    own: Tensor | None = None
    starts: Tensor | None = None
    positives: Tensor | None = None


class Pass(NamedTuple):
    """What is compared with what, by which functors.

    Attributes:
        anchors: `[A, D]` floating point; half precisions are computed in float32.
        anchor_labels: `[A]` int64 on the same device.
        references: `[N, D]`, or None: the anchors themselves, without each anchor's pair with itself.
        reference_labels: `[N]` int64, or None with `references`.
        calls: the functors.
        normalise: whether anchors and references are scaled to unit norm (a zero vector stays zero, with zero gradient).
        relations: which pairs are the anchor itself, and which are positives where labels do not say.
        anchors_in, references_in: the tensor they are columns of and the first of these columns, where passes see parts of one
            tensor: its gradient is then written at once.
        owners: per value the term its average, `sum(values) / max(sum(counts), 1)`, is added to, -1: none. None: no terms.
    """

    anchors: Tensor
    anchor_labels: Tensor
    references: Tensor | None
    reference_labels: Tensor | None
    calls: tuple[FunctorCall, ...]
    normalise: tuple[bool, bool] = (True, True)
    relations: Relations = Relations()
    anchors_in: tuple[Tensor, int] | None = None
    references_in: tuple[Tensor, int] | None = None
    owners: tuple[int, ...] | None = None

    @property
    def size(self) -> tuple[int, int, int]:
        """Values per anchor, anchors, cells of tables."""
        known = extension.functors(self.anchors.device.type)
        values = sum(known[call.functor][1] if call.functor in known else 0 for call in self.calls)
        return values, self.anchors.shape[0], sum(call.cells for call in self.calls)


class Passed(NamedTuple):
    """What passes found, float32 or (for float64 input) float64.

    Attributes:
        terms: `[terms]`, or a scalar.
        parts: values and counts, `[V, A]`, and tables of each pass; or one such entry for all, one after the other.
        sizes: of each pass, as `Pass.size`.
    """

    terms: Tensor
    parts: tuple[tuple[Tensor, Tensor, Tensor], ...]
    sizes: tuple[tuple[int, int, int], ...]

    @property
    def is_apart(self) -> bool:
        """Whether each pass has its own entry."""
        return len(self.parts) == len(self.sizes) and self.parts[0][0].ndim == 2

    def of(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Values and counts `[V, A]` of one pass, with the functors' values in order, and its `tables`."""
        if self.is_apart:
            return self.parts[index]
        (values, counts, _), (number, anchors, _) = self.parts[0], self.sizes[index]
        if len(self.sizes) > 1:
            at = sum(v * a for v, a, _ in self.sizes[:index])
            values, counts = values[at : at + number * anchors], counts[at : at + number * anchors]
        return values.view(number, anchors), counts.view(number, anchors), self.tables(index)

    def tables(self, index: int) -> Tensor:
        """For every functor of a pass with a table the soft histogram of positive, then of negative pairs, `[cells]`."""
        if self.is_apart:
            return self.parts[index][2]
        tables = self.parts[0][2]
        if len(self.sizes) == 1:
            return tables
        first = sum(cells for _, _, cells in self.sizes[:index])
        return tables[first : first + self.sizes[index][2]]

    def detached(self) -> Passed:
        """The same without a history."""
        parts = tuple((values.detach(), counts.detach(), tables.detach()) for values, counts, tables in self.parts)
        return Passed(self.terms.detach(), parts, self.sizes)


def _step(anchors: Tensor, *arguments: Any) -> Any:
    if anchors.is_cuda:
        from dmlcore.kernels.cuda import CudaStep

        return CudaStep(anchors, *arguments)
    return CpuStep(anchors, *arguments)


def step_of(one: Pass) -> Any:
    """The state of one pass on its device. Only the CPU's kernels read columns of a larger tensor where they are."""
    anchors, references = one.anchors, one.references
    if anchors.is_cuda:
        anchors, references = anchors.contiguous(), None if references is None else references.contiguous()
    return _step(anchors, one.anchor_labels, references, one.reference_labels, one.normalise, one.calls, one.relations)


def _refuse_second_derivatives() -> None:
    if torch.is_grad_enabled():  # create_graph=True: without this the second derivative would silently be left out
        raise ConfigError("fused losses are differentiable once; for second derivatives use loss.reference or set DML_FUSED=0")


def _still_there(state: Any) -> Any:
    if state is None:
        raise RuntimeError("this loss was differentiated once and its state is freed; pass retain_graph=True to repeat it")
    return state


def _graph_is_kept() -> bool:
    """Whether the running backward pass was asked to keep the graph; True where this torch cannot say."""
    engine = getattr(torch._C, "_autograd", None)  # private, so every torch may lack it
    asked = getattr(engine, "_get_current_graph_task_keep_graph", None)
    return True if asked is None else asked()


class _FusedPasses(torch.autograd.Function):
    """All passes on the CPU as one node; `sources` are the tensors whose columns they compare."""

    @staticmethod
    def forward(ctx: Any, passes: CpuPasses, scalar: bool, *sources: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ctx.passes = passes
        ctx.shapes = [source.shape for source in sources]
        terms, values, counts, tables = passes.forward()
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(counts)
        return terms.view(()) if scalar else terms, values, counts, tables

    @staticmethod
    def backward(
        ctx: Any, terms: Tensor | None, values: Tensor | None, _: Tensor | None, tables: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        _refuse_second_derivatives()
        passes: CpuPasses = _still_there(ctx.passes)
        wanted = ctx.needs_input_grad[2:]
        found = [passes.like.new_empty(shape) if want else None for shape, want in zip(ctx.shapes, wanted, strict=True)]
        terms, values, tables = (None if one is None else one.contiguous() for one in (terms, values, tables))
        passes.backward(terms, values, tables, found)
        if not _graph_is_kept():  # kept loss values must not keep the tiles, as autograd frees its saved tensors
            ctx.passes = None
        return None, None, *found


class _FusedRows(torch.autograd.Function):
    """One pass on another device."""

    @staticmethod
    def forward(ctx: Any, step: Any, anchors: Tensor, references: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        ctx.step = step
        values, counts, tables = step.forward()
        ctx.mark_non_differentiable(counts)
        return values, counts, tables

    @staticmethod
    def backward(ctx: Any, cotangents: Tensor, _: Tensor, table_cotangents: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivatives()
        step = _still_there(ctx.step)
        anchors, references = step.backward(cotangents.contiguous(), table_cotangents.contiguous(), ctx.needs_input_grad[2])
        if not _graph_is_kept():
            ctx.step = None
        return None, anchors if ctx.needs_input_grad[1] else None, references


def _ready(one: Pass, dtype: torch.dtype) -> Pass:
    """The pass with everything but its rows as the kernels want it."""
    relations, calls = one.relations, one.calls
    if any(tensor is not None for tensor in relations):
        relations = Relations(*(None if tensor is None else tensor.contiguous() for tensor in relations))
        if relations.positives is not None and not len(relations.positives):  # no address would mean no lists
            relations = relations._replace(positives=relations.positives.new_zeros(1))
    if any(call.given is not None or call.windows is not None for call in calls):

        def constant(numbers: Tensor | None) -> Tensor | None:
            return None if numbers is None else numbers.detach().to(dtype).contiguous()

        calls = tuple(replace(call, given=constant(call.given), windows=constant(call.windows)) for call in calls)
    labels, others = one.anchor_labels.contiguous(), one.reference_labels
    others = None if others is None else others.contiguous()
    return one._replace(anchor_labels=labels, reference_labels=others, calls=calls, relations=relations)


class _Sources:
    """The distinct tensors whose columns passes compare, as the kernels want them."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.given: list[Tensor] = []
        self.real: list[Tensor] = []

    def place(self, part: Tensor, whole: tuple[Tensor, int] | None) -> tuple[Tensor, Target]:
        """The part in the kernels' precision, and where its gradient goes."""
        source, first = (part, 0) if whole is None else whole
        index = next((k for k, known in enumerate(self.given) if known is source), len(self.given))
        if index == len(self.given):
            real = source.to(self.dtype)
            if real.shape[1] > 1 and real.stride(1) != 1:
                real = real.contiguous()
            self.given.append(source)
            self.real.append(real)
        if self.real[index] is source:
            return part, (index, first)
        return (self.real[index] if whole is None else self.real[index].narrow(1, first, part.shape[1])), (index, first)


def _operator() -> Any:
    from dmlcore.kernels import operator

    return operator


def fused_passes(passes: Sequence[Pass], terms: int | None = 0) -> Passed:
    """Values, counts, tables and averaged terms of all passes of a step.

    Args:
        passes: at least one, all on one device. Passes of the same labels are ordered once; small ones are spread over the
            threads.
        terms: how many terms the owners of the passes add to; None: one, as a scalar.

    Returns:
        Differentiable once in anchors and references, the counts not at all. An anchor with a component that is not finite has
        NaN values. What no cotangent but zero reaches gets a zero gradient, where there are several passes, whatever it holds.

    Raises:
        ConfigError: the extension for the anchors' device is missing.
    """
    double = any(rows is not None and rows.dtype == torch.float64 for one in passes for rows in (one.anchors, one.references))
    sources = _Sources(torch.float64 if double else torch.float32)
    ready, targets = [], []
    for one in passes:
        one = _ready(one, sources.dtype)
        anchors, anchors_to = sources.place(one.anchors, one.anchors_in)
        references, references_to = one.references, (-1, 0)
        if references is not None:
            references, references_to = sources.place(references, one.references_in)
        ready.append(one._replace(anchors=anchors, references=references))
        targets.append((anchors_to, references_to))
    sizes = tuple(one.size for one in ready)
    if torch.compiler.is_compiling():
        found = _operator().call_operator(ready, sources.real, targets, 1 if terms is None else terms)
        return Passed(found[0].view(()) if terms is None else found[0], (found[1:],), sizes)
    steps = [step_of(one) for one in ready]
    if all(type(step) is CpuStep for step in steps):
        state = CpuPasses(steps, 1 if terms is None else terms, [one.owners for one in ready], targets)
        total, values, counts, tables = _FusedPasses.apply(state, terms is None, *sources.real)
        return Passed(total, ((values, counts, tables),), sizes)
    parts = tuple(_FusedRows.apply(step, one.anchors, one.references) for step, one in zip(steps, ready, strict=True))
    return Passed(averaged(ready, parts, terms), parts, sizes)


def averaged(passes: Sequence[Pass], parts: Sequence[tuple[Tensor, Tensor, Tensor]], terms: int | None) -> Tensor:
    """The terms by a few operations of PyTorch: for devices whose kernels do not average."""
    averages = [
        (values.sum(1) / counts.sum(1).clamp_min(1), one.owners)
        for one, (values, counts, _) in zip(passes, parts, strict=True)
        if one.owners is not None
    ]
    total = parts[0][0].new_zeros(1 if terms is None else terms)
    if averages:
        found = averages[0][0] if len(averages) == 1 else torch.cat([each for each, _ in averages])  # [sum V]
        owners = [owner for _, each in averages if each is not None for owner in each]
        if owners == list(range(len(total))):
            total = found
        else:  # no index from the host: its copy would make the host wait, and end the capture of a CUDA graph
            each = found.unbind()
            of_terms = [[each[k] for k, owner in enumerate(owners) if owner == term] for term in range(len(total))]
            total = torch.stack([sum(some[1:], some[0]) if some else total[term] for term, some in enumerate(of_terms)])
    return total.view(()) if terms is None else total


def fused_pass(
    anchors: Tensor,
    anchor_labels: Tensor,
    references: Tensor | None,
    reference_labels: Tensor | None,
    calls: tuple[FunctorCall, ...],
    *,
    normalise: tuple[bool, bool] = (True, True),
    relations: Relations | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Values and counts per anchor, `[V, A]`, and tables of one pass; arguments as `Pass`, the rest as `fused_passes`."""
    one = Pass(anchors, anchor_labels, references, reference_labels, calls, normalise, relations or Relations())
    return fused_passes([one]).of(0)


def fused_rows(
    anchors: Tensor,
    anchor_labels: Tensor,
    references: Tensor | None,
    reference_labels: Tensor | None,
    calls: tuple[FunctorCall, ...],
    *,
    normalise: tuple[bool, bool] = (True, True),
    relations: Relations | None = None,
) -> tuple[Tensor, Tensor]:
    """`fused_pass` for functors without tables: values and counts."""
    return fused_pass(anchors, anchor_labels, references, reference_labels, calls, normalise=normalise, relations=relations)[:2]
