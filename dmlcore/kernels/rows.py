"""One pass of several losses over the similarities of anchors and references, as a differentiable PyTorch function.

The kernels return unreduced values and counts per anchor, `[V, A]`; reductions and weights are ordinary PyTorch on top. Eagerly
this is an `autograd.Function`; under `torch.compile` the same computation is the custom operator `dmlcore::fused_rows`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmlcore.errors import ConfigError
from dmlcore.kernels import extension


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


_plan = threading.local()


@contextmanager
def plan_options(**options: int) -> Iterator[None]:
    """Override the planner of the CPU kernels inside a `with` block, for tests and measurements.

    Args:
        options: `threads`, `workspace` (bytes of similarities kept between forward and backward; 0 recomputes them),
            `tile_rows`, `tile_columns`, `slot_bytes`, `search` (1: look negatives up among the thresholds of an anchor's
            positives whatever their number, 0: never), `triangle` (0: do not use the symmetry of a batch with itself).
    """
    before = getattr(_plan, "options", {})
    _plan.options = {**before, **options}
    try:
        yield
    finally:
        _plan.options = before


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


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


class _CpuStep:
    """The state of one pass on the CPU, between forward and backward."""

    def __init__(
        self,
        anchors: Tensor,
        anchor_labels: Tensor,
        references: Tensor | None,
        reference_labels: Tensor | None,
        normalise: tuple[bool, bool],
        calls: tuple[FunctorCall, ...],
        relations: Relations,
    ) -> None:
        module = extension.cpu()
        if module is None:
            raise ConfigError(extension.reason_against("cpu"))
        self.kept = (anchors, anchor_labels, references, reference_labels, relations)
        given = None
        if references is not None and reference_labels is not None:
            given = (references.data_ptr(), reference_labels.data_ptr(), references.shape[0], normalise[1])
        options = {"threads": torch.get_num_threads(), **getattr(_plan, "options", {})}
        self.step = module.Step(
            is_double=anchors.dtype == torch.float64,
            anchors=(anchors.data_ptr(), anchor_labels.data_ptr(), anchors.shape[0], normalise[0]),
            references=given,
            width=anchors.shape[1],
            losses=[(call.functor, list(call.options), _pointer(call.given), _pointer(call.windows)) for call in calls],
            relations=[_pointer(tensor) for tensor in relations],
            **options,
        )

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        anchors = self.kept[0]
        both = anchors.new_empty(2, self.step.value_count, anchors.shape[0])  # [2, V, A]
        values, counts = both[0], both[1]
        tables = anchors.new_empty(self.step.table_cells)
        self.step.forward(values.data_ptr(), counts.data_ptr(), tables.data_ptr())
        return values, counts, tables

    def backward(self, cotangents: Tensor, table_cotangents: Tensor, with_references: bool) -> tuple[Tensor, Tensor | None]:
        anchors, _, references, *_ = self.kept
        grad_anchors = torch.empty_like(anchors)
        grad_references = torch.empty_like(references) if references is not None and with_references else None
        pointer = grad_references.data_ptr() if grad_references is not None else 0
        self.step.backward(cotangents.data_ptr(), table_cotangents.data_ptr(), grad_anchors.data_ptr(), pointer)
        return grad_anchors, grad_references


def _step(anchors: Tensor, *arguments: Any) -> Any:
    if anchors.is_cuda:
        from dmlcore.kernels.cuda import CudaStep

        return CudaStep(anchors, *arguments)
    return _CpuStep(anchors, *arguments)


class _FusedRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        references: Tensor | None,
        anchor_labels: Tensor,
        reference_labels: Tensor | None,
        normalise: tuple[bool, bool],
        calls: tuple[FunctorCall, ...],
        relations: Relations,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.step = _step(anchors, anchor_labels, references, reference_labels, normalise, calls, relations)
        values, counts, tables = ctx.step.forward()
        ctx.mark_non_differentiable(counts)
        return values, counts, tables

    @staticmethod
    def backward(ctx: Any, cotangents: Tensor, _: Tensor, table_cotangents: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True: without this the second derivative would silently be left out
            raise ConfigError(
                "fused losses are differentiable once; for second derivatives use loss.reference or set DML_FUSED=0"
            )
        if ctx.step is None:
            raise RuntimeError("this loss was differentiated once and its state is freed; pass retain_graph=True to repeat it")
        anchors, references = ctx.step.backward(cotangents.contiguous(), table_cotangents.contiguous(), ctx.needs_input_grad[1])
        if not _graph_is_kept():  # kept loss values must not keep the tiles, as autograd frees its saved tensors
            ctx.step = None
        return anchors if ctx.needs_input_grad[0] else None, references, *[None] * 5


def _graph_is_kept() -> bool:
    """Whether the running backward pass was asked to keep the graph; True where this torch cannot say."""
    engine = getattr(torch._C, "_autograd", None)  # private, so every torch may lack it
    asked = getattr(engine, "_get_current_graph_task_keep_graph", None)
    return True if asked is None else asked()


def _step_of_operator(
    anchors: Tensor,
    references: Tensor | None,
    anchor_labels: Tensor,
    reference_labels: Tensor | None,
    functors: str,
    options: list[float],
    extras: list[Tensor],
    relations: list[Tensor | None],
    normalise: tuple[bool, bool],
) -> Any:
    known, calls, at = extension.functors(), [], 0
    names = functors.split(",")
    numbers = [None if tensor.numel() == 0 else tensor for tensor in extras] or [None] * (2 * len(names))
    for index, name in enumerate(names):
        count = len(known[name][0])
        given, windows = numbers[2 * index : 2 * index + 2]
        calls.append(FunctorCall(name, tuple(options[at : at + count]), given, windows))
        at += count
    others = (None if tensor is None else tensor.contiguous() for tensor in (anchor_labels, references, reference_labels))
    return _step(anchors.contiguous(), *others, normalise, tuple(calls), Relations(*relations))


@torch.library.custom_op("dmlcore::fused_rows", mutates_args=())
def _fused_rows_op(
    anchors: Tensor,
    references: Tensor | None,
    anchor_labels: Tensor,
    reference_labels: Tensor | None,
    functors: str,
    options: list[float],
    extras: list[Tensor],
    own: Tensor | None,
    starts: Tensor | None,
    positives: Tensor | None,
    value_count: int,
    cells: int,
    normalise_anchors: bool,
    normalise_references: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    normalise = (normalise_anchors, normalise_references)
    relations = [own, starts, positives]
    step = _step_of_operator(
        anchors, references, anchor_labels, reference_labels, functors, options, extras, relations, normalise
    )
    values, counts, tables = step.forward()
    return values.clone(), counts.clone(), tables


@_fused_rows_op.register_fake
def _(
    anchors: Tensor,
    references: Tensor | None,
    anchor_labels: Tensor,
    reference_labels: Tensor | None,
    functors: str,
    options: list[float],
    extras: list[Tensor],
    own: Tensor | None,
    starts: Tensor | None,
    positives: Tensor | None,
    value_count: int,
    cells: int,
    normalise_anchors: bool,
    normalise_references: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    rows = anchors.new_empty(value_count, anchors.shape[0])
    return rows, torch.empty_like(rows), anchors.new_empty(cells)


@torch.library.custom_op("dmlcore::fused_rows_backward", mutates_args=())
def _fused_rows_backward_op(
    cotangents: Tensor,
    table_cotangents: Tensor,
    anchors: Tensor,
    references: Tensor | None,
    anchor_labels: Tensor,
    reference_labels: Tensor | None,
    functors: str,
    options: list[float],
    extras: list[Tensor],
    own: Tensor | None,
    starts: Tensor | None,
    positives: Tensor | None,
    normalise_anchors: bool,
    normalise_references: bool,
) -> tuple[Tensor, Tensor]:
    # The operator keeps no state between the passes, so backward repeats the forward pass: one more product of similarities.
    normalise = (normalise_anchors, normalise_references)
    relations = [own, starts, positives]
    step = _step_of_operator(
        anchors, references, anchor_labels, reference_labels, functors, options, extras, relations, normalise
    )
    step.forward()
    grad_anchors, grad_references = step.backward(
        cotangents.contiguous(), table_cotangents.contiguous(), references is not None
    )
    return grad_anchors, anchors.new_empty(0) if grad_references is None else grad_references


@_fused_rows_backward_op.register_fake
def _(
    cotangents: Tensor,
    table_cotangents: Tensor,
    anchors: Tensor,
    references: Tensor | None,
    anchor_labels: Tensor,
    reference_labels: Tensor | None,
    functors: str,
    options: list[float],
    extras: list[Tensor],
    own: Tensor | None,
    starts: Tensor | None,
    positives: Tensor | None,
    normalise_anchors: bool,
    normalise_references: bool,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(anchors), anchors.new_empty(0) if references is None else torch.empty_like(references)


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    anchors, references, anchor_labels, reference_labels, ctx.functors, ctx.options, extras, *others = inputs
    *relations, _, _, normalise, other = others
    ctx.normalise, ctx.extras = (normalise, other), len(extras)
    ctx.save_for_backward(anchors, references, anchor_labels, reference_labels, *relations, *extras)
    ctx.set_materialize_grads(True)


def _op_backward(ctx: Any, cotangents: Tensor, _: Tensor, table_cotangents: Tensor) -> tuple[Any, ...]:
    anchors, references, anchor_labels, reference_labels, own, starts, positives, *extras = ctx.saved_tensors
    grad_anchors, grad_references = torch.ops.dmlcore.fused_rows_backward(
        cotangents,
        table_cotangents,
        anchors,
        references,
        anchor_labels,
        reference_labels,
        ctx.functors,
        ctx.options,
        extras,
        own,
        starts,
        positives,
        *ctx.normalise,
    )
    no_extras = [None] * ctx.extras
    return grad_anchors, None if references is None else grad_references, *[None] * 4, no_extras, *[None] * 7


_fused_rows_op.register_autograd(_op_backward, setup_context=_keep_inputs)


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
    """Values and counts per anchor of several losses, and tables of the batch, in one pass over the similarities.

    Args:
        anchors: `[A, D]` floating point; half precisions are computed in float32.
        anchor_labels: `[A]` int64 on the same device.
        references: `[N, D]`, or None: the anchors themselves, without each anchor's pair with itself.
        reference_labels: `[N]` int64, or None with `references`.
        calls: the functors.
        normalise: whether anchors and references are scaled to unit norm (a zero vector stays zero, with zero gradient).
        relations: which pairs are the anchor itself, and which are positives where labels do not say.

    Returns:
        `values` and `counts`, both `[V, A]` with the functors' values in order, float32 or (for float64 input) float64.
        `tables` `[cells]`: for every functor with a table the soft histogram of positive, then of negative pairs.
        Differentiable once in anchors and references. An anchor with a component that is not finite has NaN values.

    Raises:
        ConfigError: the extension for the anchors' device is missing.
    """
    dtype = (
        torch.float64 if torch.float64 in (anchors.dtype, None if references is None else references.dtype) else torch.float32
    )
    anchors = anchors.to(dtype).contiguous()
    anchor_labels = anchor_labels.contiguous()
    if references is not None and reference_labels is not None:
        references, reference_labels = references.to(dtype).contiguous(), reference_labels.contiguous()
    relations = Relations(*(None if tensor is None else tensor.contiguous() for tensor in relations or Relations()))
    if relations.positives is not None and not len(relations.positives):  # no address would mean no lists
        relations = relations._replace(positives=relations.positives.new_zeros(1))
    has_numbers = any(call.given is not None or call.windows is not None for call in calls)
    if has_numbers:

        def constant(numbers: Tensor | None) -> Tensor | None:
            return None if numbers is None else numbers.detach().to(dtype).contiguous()

        calls = tuple(replace(call, given=constant(call.given), windows=constant(call.windows)) for call in calls)
    if torch.compiler.is_compiling():
        known = extension.functors()
        values, counts, tables = torch.ops.dmlcore.fused_rows(
            anchors,
            references,
            anchor_labels,
            reference_labels,
            ",".join(call.functor for call in calls),
            [value for call in calls for value in call.options],
            [anchors.new_empty(0) if numbers is None else numbers for call in calls for numbers in (call.given, call.windows)]
            if has_numbers
            else [],
            *relations,
            sum(known[call.functor][1] for call in calls),
            sum(call.cells for call in calls),
            *normalise,
        )
        return values, counts.detach(), tables
    return _FusedRows.apply(anchors, references, anchor_labels, reference_labels, normalise, calls, relations)


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
