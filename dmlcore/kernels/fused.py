"""Passes of several losses over the similarities of anchors and references, as differentiable PyTorch functions.

The kernels return unreduced values and counts per anchor, `[V, A]`, and, on request, their averages. All passes of a call on
the CPU are one call of the extension and one node of autograd. Under `torch.compile` they are the custom operator
`dmlcore::fused_rows`. On other devices every pass is a node of its own. The arithmetic of the CPU is in `csrc/cpu`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmlcore.errors import ConfigError
from dmlcore.kernels.cpu import CpuPasses
from dmlcore.kernels.cuda import CudaPass
from dmlcore.kernels.encoding import encoded
from dmlcore.kernels.passes import FunctorCall, Pass, Relations, Target
from dmlcore.kernels.prepared import PreparedPasses


class Passed(NamedTuple):
    """What passes gave, float32 or (for float64 input) float64.

    Attributes:
        terms: `[terms]`, or a scalar.
        parts: values and counts, `[V, A]`, and histograms of each pass; or one such entry for all, one after the other.
        sizes: of each pass, as `Pass.size`.
        state: of the passes on the CPU, while a backward pass may come.
        sources: the tensors whose columns these passes compare, in the kernels' precision.
    """

    terms: Tensor
    parts: tuple[tuple[Tensor, Tensor, Tensor], ...]
    sizes: tuple[tuple[int, int, int], ...]
    state: CpuPasses | None = None
    sources: tuple[Tensor, ...] = ()

    def gradients_of_terms(self, source: Tensor) -> tuple[list[int], Tensor] | None:
        """Terms, and the gradient of each at a source, `[n, *source.shape]`. Backward then takes no further pass for them.

        Terms are missing of which only autograd can tell: passes that are not of the CPU, that see a copy, or that also see
        what may come from the source. None: that is so for all.
        """
        state = self.state
        own = next((index for index, candidate in enumerate(self.sources) if candidate is source), None)
        if state is None or own is None or not source.requires_grad:
            return None
        derived: set[int] = set()
        for candidate, terms in zip(self.sources, state.reaching, strict=True):
            if candidate is not source and candidate.grad_fn is not None:
                derived.update(terms)
        indices = [term for term in state.reaching[own] if term not in derived]
        if not indices:
            return None
        if not state.by_term:
            state.differentiate_terms(self.sources)
        rows = state.by_term[own]
        assert rows is not None
        return indices, rows if not derived else rows[[term not in derived for term in state.reaching[own]]]

    def of(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Values and counts `[V, A]` of one pass, with the functors' values in order, and its histograms: for every functor
        that makes some that of positive, then that of negative pairs, `[cells]`."""
        if self.parts[0][0].ndim == 2:  # an entry for each pass
            return self.parts[index]
        (values, counts, histograms), (number, anchors, cells) = self.parts[0], self.sizes[index]
        if len(self.sizes) > 1:
            first = first_cell = 0
            for earlier_number, earlier_anchors, earlier_cells in self.sizes[:index]:
                first += earlier_number * earlier_anchors
                first_cell += earlier_cells
            values, counts = values[first : first + number * anchors], counts[first : first + number * anchors]
            if cells:
                histograms = histograms[first_cell : first_cell + cells]
        return values.view(number, anchors), counts.view(number, anchors), histograms


class _FusedPasses(torch.autograd.Function):
    """All passes on the CPU as one node. `sources` are the tensors whose columns they compare."""

    @staticmethod
    def forward(ctx: Any, passes: CpuPasses, scalar: bool, *sources: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ctx.passes = passes
        if passes.streams:
            ctx.save_for_backward(*sources)
        ctx.shapes = [source.shape for source in sources]
        terms, values, counts, histograms = passes.forward()
        ctx.set_materialize_grads(False)  # usually only the terms have a cotangent; zeros for the others would cost time
        ctx.mark_non_differentiable(counts)
        return terms.view(()) if scalar else terms, values, counts, histograms

    @staticmethod
    def backward(
        ctx: Any, terms: Tensor | None, values: Tensor | None, _: Tensor | None, histograms: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        passes: CpuPasses = state_of(ctx.passes)
        ctx.saved_tensors  # noqa: B018  raises where one was changed in place that the kernels read again
        sums: Sequence[Tensor | None] = ()
        if passes.by_term and terms is not None:
            sums, terms = passes.combined(terms.view(-1)), None
        gradients: list[Tensor | None] = list(sums)
        if not sums or values is not None or histograms is not None:
            like, gradients = passes.like, []
            for shape, is_needed in zip(ctx.shapes, ctx.needs_input_grad[2:], strict=True):
                gradients.append(like.new_empty(shape) if is_needed else None)
            passes.backward(
                None if terms is None else terms.contiguous(),
                None if values is None else values.contiguous(),
                None if histograms is None else histograms.contiguous(),
                gradients,
            )
            for gradient, further in zip(gradients, sums, strict=False):
                if gradient is not None and further is not None:
                    gradient += further
        if not keeps_graph():  # kept loss values must not keep the tiles, as autograd frees its saved tensors
            ctx.passes = None
        return None, None, *gradients


class _FusedTerm(torch.autograd.Function):
    """Prepared passes whose one term is all that is wanted. Every output of a node takes its time on a small batch."""

    @staticmethod
    def forward(ctx: Any, prepared: PreparedPasses, labels: Tensor, anchors: Tensor) -> Tensor:
        ctx.state = state = prepared.begin(anchors, labels)
        ctx.shape = anchors.shape
        term = anchors.new_empty(())
        state.forward(0, 0, 0, term.data_ptr())
        return term

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        state, shape = state_of(ctx.state), ctx.shape
        gradient = cotangent.new_empty(shape)
        state.backward(cotangent.data_ptr(), 0, 0, [(gradient.data_ptr(), *shape)])
        if not keeps_graph():
            ctx.state = None
        return None, None, gradient


class _FusedRows(torch.autograd.Function):
    """One pass on another device."""

    @staticmethod
    def forward(ctx: Any, state: Any, anchors: Tensor, references: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        ctx.state = state
        values, counts, histograms = state.forward()
        ctx.mark_non_differentiable(counts)
        return values, counts, histograms

    @staticmethod
    def backward(ctx: Any, cotangents: Tensor, _: Tensor, histogram_cotangents: Tensor) -> tuple[Tensor | None, ...]:
        state = state_of(ctx.state)
        anchors, references = state.backward(
            cotangents.contiguous(), histogram_cotangents.contiguous(), ctx.needs_input_grad[2]
        )
        if not keeps_graph():
            ctx.state = None
        return None, anchors if ctx.needs_input_grad[1] else None, references


def state_of(state: Any) -> Any:
    """The state that a backward pass needs, after checking that the kernels can give what is asked for."""
    if torch.is_grad_enabled():  # create_graph=True: without this the second derivative would silently be left out
        raise ConfigError("fused losses are differentiable once; for second derivatives use loss.reference or set DML_FUSED=0")
    if state is None:
        raise RuntimeError("this loss was differentiated once and its state is freed; pass retain_graph=True to repeat it")
    return state


def keeps_graph() -> bool:
    """Whether the running backward pass was asked to keep the graph. True where this torch cannot say."""
    engine = getattr(torch._C, "_autograd", None)  # private, so every torch may lack it
    query = getattr(engine, "_get_current_graph_task_keep_graph", None)
    return True if query is None else query()


def ready_pass(pass_: Pass, anchors: Tensor, references: Tensor | None, dtype: torch.dtype) -> Pass:
    """The pass as the kernels want it, with these vectors. One new tuple: this is on the way of every small batch."""
    relations, calls = pass_.relations, pass_.calls
    if relations.own is not None or relations.starts is not None:  # `!=` would ask tensors whether they are None
        relations = Relations(*(None if tensor is None else tensor.contiguous() for tensor in relations))
        if relations.positives is not None and not len(relations.positives):  # no address would mean no lists
            relations = relations._replace(positives=relations.positives.new_zeros(1))
    for call in calls:  # most have no constants, and copying the calls costs more than looking
        if call.given is not None or call.windows is not None:
            calls = tuple(_with_constants(call, dtype) for call in calls)
            break
    labels, reference_labels = pass_.anchor_labels, pass_.reference_labels
    return Pass(
        anchors,
        labels.contiguous(),
        references,
        None if reference_labels is None else reference_labels.contiguous(),
        calls,
        pass_.normalise,
        relations,
        pass_.anchors_in,
        pass_.references_in,
        pass_.owners,
    )


def _with_constants(call: FunctorCall, dtype: torch.dtype) -> FunctorCall:
    per_anchor, windows = (
        numbers.detach().to(dtype).contiguous() if isinstance(numbers, Tensor) else None
        for numbers in (call.given, call.windows)
    )
    return replace(call, given=per_anchor, windows=windows)


class _Sources:
    """The distinct tensors whose columns passes compare, as the kernels want them."""

    __slots__ = ("dtype", "real", "sources")

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.sources: list[Tensor] = []
        self.real: list[Tensor] = []

    def place(self, part: Tensor, whole: tuple[Tensor, int] | None) -> tuple[Tensor, Target]:
        """The part in the kernels' precision, and where its gradient goes."""
        source, first = (part, 0) if whole is None else whole
        # by identity: all passes add to one gradient of a tensor, instead of autograd adding one gradient per pass
        for index, placed in enumerate(self.sources):  # noqa: B007  used behind the loop
            if placed is source:
                break
        else:
            index = len(self.sources)  # a tensor that was not met before
            real = source if source.dtype == self.dtype else source.to(self.dtype)
            if real.shape[1] > 1 and real.stride(1) != 1:
                real = real.contiguous()
            self.sources.append(source)
            self.real.append(real)
        real = self.real[index]
        if real is source:
            return part, (index, first)
        return real if whole is None else real.narrow(1, first, part.shape[1]), (index, first)


def fused_passes(passes: Sequence[Pass], terms: int | None = 0) -> Passed:
    """Values, counts, histograms and averaged terms of all passes of a call.

    Args:
        passes: at least one, all on one device. Passes of the same labels are ordered once. Small ones are spread over the
            threads.
        terms: how many terms the owners of the passes add to. None: one, as a scalar.

    Returns:
        Differentiable once in anchors and references, the counts not at all. An anchor with a component that is not finite has
        NaN values. What no cotangent but zero reaches gets a zero gradient, where there are several passes, whatever it holds.

    Raises:
        ConfigError: the extension for the anchors' device is missing.
    """
    dtype = torch.float32  # one for all: a call of the extension has one number type, and one float64 tensor decides it
    for pass_ in passes:
        if pass_.anchors.dtype == torch.float64 or (pass_.references is not None and pass_.references.dtype == torch.float64):
            dtype = torch.float64
    sources = _Sources(dtype)
    ready, targets, sizes = [], [], []
    for pass_ in passes:
        anchors, anchors_to = sources.place(pass_.anchors, pass_.anchors_in)
        references, references_to = pass_.references, (-1, 0)
        if references is not None:
            references, references_to = sources.place(references, pass_.references_in)
        ready.append(ready_pass(pass_, anchors, references, dtype))
        targets.append((anchors_to, references_to))
        cells = 0
        for call in pass_.calls:
            cells += call.cells
        sizes.append((pass_.size[0] if pass_.owners is None else len(pass_.owners), anchors.shape[0], cells))
    if torch.compiler.is_compiling():
        total, *rows = _by_operator(ready, sources.real, targets, 1 if terms is None else terms)
        return Passed(total.view(()) if terms is None else total, ((rows[0], rows[1], rows[2]),), tuple(sizes))
    states = [device_pass(pass_) for pass_ in ready]
    if states[0] is None:  # all are on the CPU
        state = CpuPasses(ready, 1 if terms is None else terms, targets)
        total, values, counts, histograms = _FusedPasses.apply(state, terms is None, *sources.real)
        return Passed(total, ((values, counts, histograms),), tuple(sizes), state, tuple(sources.real))
    parts = tuple(_FusedRows.apply(state, pass_.anchors, pass_.references) for state, pass_ in zip(states, ready, strict=True))
    return Passed(averaged(ready, parts, terms), parts, tuple(sizes))


def fused_again(prepared: PreparedPasses, anchors: Tensor, labels: Tensor, *, scalar: bool) -> Passed:
    """What prepared passes give for a batch on the CPU, as `fused_passes` would.

    Args:
        prepared: the passes.
        anchors: `[A, D]` floating point.
        labels: `[A]` int64.
        scalar: whether their one term is all that is wanted, as a scalar. There are no `parts` then.
    """
    if anchors.dtype not in (torch.float32, torch.float64):
        anchors = anchors.to(torch.float32)
    if anchors.stride(1) != 1:
        anchors = anchors.contiguous()
    labels = labels.contiguous()
    if scalar:
        return Passed(_FusedTerm.apply(prepared, labels, anchors), (), ())
    state = CpuPasses.begun(prepared, anchors, labels)
    total, values, counts, histograms = _FusedPasses.apply(state, False, anchors)
    return Passed(total, ((values, counts, histograms),), prepared.sizes(anchors), state, (anchors,))


def device_pass(pass_: Pass) -> Any | None:
    """The state of a pass on a device that computes each pass by itself, or None: on the CPU they are computed together."""
    if not pass_.anchors.is_cuda:
        return None
    references = None if pass_.references is None else pass_.references.contiguous()  # its kernels read no columns of others
    return CudaPass(pass_._replace(anchors=pass_.anchors.contiguous(), references=references))


def averaged(passes: Sequence[Pass], parts: Sequence[tuple[Tensor, Tensor, Tensor]], terms: int | None) -> Tensor:
    """The terms by a few operations of PyTorch: for devices whose kernels do not average."""
    averages, owners = [], []
    for pass_, (values, counts, _) in zip(passes, parts, strict=True):
        if pass_.owners is not None:
            averages.append(values.sum(1) / counts.sum(1).clamp_min(1))
            owners += pass_.owners
    total = parts[0][0].new_zeros(1 if terms is None else terms)
    if averages:
        values = averages[0] if len(averages) == 1 else torch.cat(averages)  # [sum V]
        if owners == list(range(len(total))):
            total = values
        else:  # no index from the host: its copy would make the host wait, and end the capture of a CUDA graph
            scalars, sums = values.unbind(), []
            for term in range(len(total)):
                summands = [scalars[k] for k, owner in enumerate(owners) if owner == term]
                sums.append(sum(summands[1:], summands[0]) if summands else total[term])
            total = torch.stack(sums)
    return total.view(()) if terms is None else total


def fused_pass(
    anchors: Tensor,
    anchor_labels: Tensor,
    references: Tensor | None,
    reference_labels: Tensor | None,
    calls: tuple[FunctorCall, ...],
    **details: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Values and counts per anchor, `[V, A]`, and histograms of one pass. Arguments as `Pass`, the rest as `fused_passes`."""
    return fused_passes([Pass(anchors, anchor_labels, references, reference_labels, calls, **details)]).of(0)


def fused_rows(*arguments: Any, **details: Any) -> tuple[Tensor, Tensor]:
    """`fused_pass` for functors without histograms: values and counts."""
    return fused_pass(*arguments, **details)[:2]


def _by_operator(
    passes: Sequence[Pass], sources: list[Tensor], targets: Sequence[tuple[Target, Target]], terms: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Terms, values, counts and histograms as `CpuPasses.forward`, differentiable in the sources, by the custom operator of
    `operator.py`. That module is named by no import here: it builds on this one."""
    totals, values, counts, histograms = torch.ops.dmlcore.fused_rows(sources, *encoded(passes, targets), terms)
    return totals, values, counts.detach(), histograms
