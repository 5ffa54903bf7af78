"""The passes of a step as one custom operator, `dmlcore::fused_rows`, for `torch.compile`. It keeps no state: its backward
repeats the forward pass, one more product of similarities.

Operators take flat lists only: `layout` tells what the passes are, by numbers and by places in the lists of tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dmlcore.kernels.fused import CpuPasses, averaged, device_pass
from dmlcore.kernels.passes import FunctorCall, Pass, Relations, Target

Encoded = tuple[list[Tensor], str, list[float], list[int]]


def encoded(passes: Sequence[Pass], targets: Sequence[tuple[Target, Target]]) -> Encoded:
    """Constant tensors, functors, options and layout."""
    constants: list[Tensor] = []
    functors: list[str] = []
    options: list[float] = []
    layout: list[int] = []

    def place(tensor: Tensor | None) -> int:
        if tensor is None:
            return -1
        for index, placed in enumerate(constants):
            if placed is tensor:
                return index
        constants.append(tensor)
        return len(constants) - 1

    for one, ((source, first), (other, other_first)) in zip(passes, targets, strict=True):
        # a width that is not told is that of the tensor, which may change from call to call
        whole = one.anchors_in is None and one.references_in is None
        layout += [source, first, -1 if whole else one.anchors.shape[1], place(one.anchor_labels)]
        layout += [other, other_first, place(one.reference_labels), *map(int, one.normalise), *map(place, one.relations)]
        layout += [len(one.calls), -1 if one.owners is None else len(one.owners), *(one.owners or ())]
        for call in one.calls:
            functors.append(call.functor)
            options += call.options
            assert call.given is None or isinstance(call.given, Tensor)
            layout += [len(call.options), place(call.given), place(call.windows), call.cells]
    return constants, ",".join(functors), options, layout


def _decoded(
    sources: Sequence[Tensor], constants: list[Tensor], functors: str, options: list[float], layout: list[int]
) -> tuple[list[Pass], list[tuple[Target, Target]]]:
    names, numbers, values = iter(functors.split(",")), iter(layout), iter(options)
    passes: list[Pass] = []
    targets: list[tuple[Target, Target]] = []

    def take(count: int) -> list[int]:
        return [next(numbers) for _ in range(count)]

    def constant(index: int) -> Tensor | None:
        return None if index < 0 else constants[index]

    def columns(source: int, first: int, width: int) -> Tensor:
        return sources[source] if width < 0 else sources[source].narrow(1, first, width)

    while (source := next(numbers, None)) is not None:
        first, width, labels, other, other_first, other_labels, *normalise = take(8)
        own, starts, positives, count, owned = take(5)
        owners = None if owned < 0 else tuple(take(owned))
        calls = []
        for _ in range(count):
            number, given, windows, cells = take(4)
            call_options = tuple(next(values) for _ in range(number))
            calls.append(FunctorCall(next(names), call_options, constant(given), constant(windows), cells))
        passes.append(
            Pass(
                columns(source, first, width),
                constants[labels],
                None if other < 0 else columns(other, other_first, width),
                constant(other_labels),
                tuple(calls),
                (bool(normalise[0]), bool(normalise[1])),
                Relations(constant(own), constant(starts), constant(positives)),
                owners=owners,
            )
        )
        targets.append(((source, first), (other, other_first)))
    return passes, targets


def _begun(
    sources: list[Tensor], constants: list[Tensor], functors: str, options: list[float], layout: list[int], terms: int
) -> tuple[list[Pass], list[tuple[Target, Target]], list[Any], CpuPasses | None]:
    """The passes, where their gradients go, and their states: one each, or one for all on the CPU."""
    sources = [tensor.contiguous() for tensor in sources]
    passes, targets = _decoded(sources, [tensor.contiguous() for tensor in constants], functors, options, layout)
    states = [device_pass(one) for one in passes]
    if states[0] is None:
        return passes, targets, [], CpuPasses(passes, terms, targets)
    return passes, targets, states, None


@torch.library.custom_op("dmlcore::fused_rows", mutates_args=())
def _fused_rows_op(
    sources: list[Tensor],
    constants: list[Tensor],
    functors: str,
    options: list[float],
    layout: list[int],
    terms: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    passes, _, states, together = _begun(sources, constants, functors, options, layout, terms)
    if together is not None:
        return together.forward()
    parts = [state.forward() for state in states]
    values, counts, tables = (torch.cat([tensor.flatten() for tensor in kind]) for kind in zip(*parts, strict=True))
    return averaged(passes, parts, terms), values, counts, tables


@_fused_rows_op.register_fake
def _(
    sources: list[Tensor],
    constants: list[Tensor],
    functors: str,
    options: list[float],
    layout: list[int],
    terms: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sizes = [one.size for one in _decoded(sources, constants, functors, options, layout)[0]]
    values = sources[0].new_empty(sum(number * anchors for number, anchors, _ in sizes))
    cells = sources[0].new_empty(sum(cells for _, _, cells in sizes))
    return sources[0].new_empty(terms), values, torch.empty_like(values), cells


@torch.library.custom_op("dmlcore::fused_rows_backward", mutates_args=())
def _fused_rows_backward_op(
    of_terms: Tensor,
    of_values: Tensor,
    of_tables: Tensor,
    sources: list[Tensor],
    constants: list[Tensor],
    functors: str,
    options: list[float],
    layout: list[int],
) -> list[Tensor]:
    passes, targets, states, together = _begun(sources, constants, functors, options, layout, len(of_terms))
    if together is not None:
        gradients = [torch.empty(source.shape, dtype=source.dtype) for source in sources]
        together.forward()
        together.backward(of_terms.contiguous(), of_values.contiguous(), of_tables.contiguous(), gradients)
        return gradients
    gradients = [torch.zeros(source.shape, dtype=source.dtype, device=source.device) for source in sources]
    at, first_cell = 0, 0
    for one, (anchors_to, references_to), state in zip(passes, targets, states, strict=True):
        number, anchors, cells = one.size
        _, counts, _ = state.forward()
        cotangents = of_values[at : at + number * anchors].view(number, anchors)
        if one.owners is not None:
            shares = torch.cat([of_terms, of_terms.new_zeros(1)])[list(one.owners)] / counts.sum(1).clamp_min(1)  # [V]
            cotangents = cotangents + shares[:, None]
        tables = of_tables[first_cell : first_cell + cells]
        both = state.backward(cotangents.contiguous(), tables.contiguous(), one.references is not None)
        for gradient, (source, first) in zip(both, (anchors_to, references_to), strict=True):
            if gradient is not None:
                gradients[source].narrow(1, first, gradient.shape[1]).add_(gradient)
        at, first_cell = at + number * anchors, first_cell + cells
    return gradients


@_fused_rows_backward_op.register_fake
def _(
    of_terms: Tensor,
    of_values: Tensor,
    of_tables: Tensor,
    sources: list[Tensor],
    constants: list[Tensor],
    functors: str,
    options: list[float],
    layout: list[int],
) -> list[Tensor]:
    return [torch.empty(source.shape, dtype=source.dtype, device=source.device) for source in sources]


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    sources, constants, ctx.functors, ctx.options, ctx.layout, _ = inputs
    ctx.sources, ctx.constants = len(sources), len(constants)
    ctx.save_for_backward(*sources, *constants)
    ctx.set_materialize_grads(True)


def _op_backward(ctx: Any, of_terms: Tensor, of_values: Tensor, _: Tensor, of_tables: Tensor) -> tuple[Any, ...]:
    saved = list(ctx.saved_tensors)
    sources, constants = saved[: ctx.sources], saved[ctx.sources :]
    gradients = torch.ops.dmlcore.fused_rows_backward(
        of_terms, of_values, of_tables, sources, constants, ctx.functors, ctx.options, ctx.layout
    )
    return gradients, [None] * ctx.constants, None, None, None, None


_fused_rows_op.register_autograd(_op_backward, setup_context=_keep_inputs)


def call_operator(
    passes: Sequence[Pass], sources: list[Tensor], targets: Sequence[tuple[Target, Target]], terms: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Terms, values, counts and tables as `CpuPasses.forward`, differentiable in the sources."""
    totals, values, counts, tables = torch.ops.dmlcore.fused_rows(sources, *encoded(passes, targets), terms)
    return totals, values, counts.detach(), tables
