"""The passes of a call as one custom operator, `dmlcore::fused_rows`, for `torch.compile`. It keeps no state: its backward
repeats the forward pass, one more product of similarities. What it is told stands in `encoding.py`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmlcore.kernels import fused
from dmlcore.kernels.cpu import CpuPasses
from dmlcore.kernels.encoding import decoded
from dmlcore.kernels.fused import averaged
from dmlcore.kernels.passes import Pass, Target


def _begun(
    sources: list[Tensor], constants: list[Tensor], functors: str, options: list[float], layout: list[int], terms: int
) -> tuple[list[Pass], list[tuple[Target, Target]], list[Any], CpuPasses | None]:
    """The passes, where their gradients go, and their states: one each, or one for all on the CPU."""
    sources = [tensor.contiguous() for tensor in sources]
    passes, targets = decoded(sources, [tensor.contiguous() for tensor in constants], functors, options, layout)
    states = [fused.device_pass(pass_) for pass_ in passes]
    if states[0] is None:
        return passes, targets, [], CpuPasses(passes, terms, targets)
    return passes, targets, states, None


@torch.library.custom_op("dmlcore::fused_rows", mutates_args=())
def fused_rows_op(
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
    values, counts, histograms = (torch.cat([tensor.flatten() for tensor in kind]) for kind in zip(*parts, strict=True))
    return averaged(passes, parts, terms), values, counts, histograms


@fused_rows_op.register_fake
def _(
    sources: list[Tensor],
    constants: list[Tensor],
    functors: str,
    options: list[float],
    layout: list[int],
    terms: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sizes = [pass_.size for pass_ in decoded(sources, constants, functors, options, layout)[0]]
    values = sources[0].new_empty(sum(number * anchors for number, anchors, _ in sizes))
    cells = sources[0].new_empty(sum(cells for _, _, cells in sizes))
    return sources[0].new_empty(terms), values, torch.empty_like(values), cells


@torch.library.custom_op("dmlcore::fused_rows_backward", mutates_args=())
def fused_rows_backward_op(
    of_terms: Tensor,
    of_values: Tensor,
    of_histograms: Tensor,
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
        together.backward(of_terms.contiguous(), of_values.contiguous(), of_histograms.contiguous(), gradients)
        return gradients
    gradients = [torch.zeros(source.shape, dtype=source.dtype, device=source.device) for source in sources]
    at, first_cell = 0, 0
    for pass_, (anchors_to, references_to), state in zip(passes, targets, states, strict=True):
        number, anchors, cells = pass_.size
        _, counts, _ = state.forward()
        cotangents = of_values[at : at + number * anchors].view(number, anchors)
        if pass_.owners is not None:
            scalars = [*of_terms.unbind(), of_terms.new_zeros(())]  # by an index, the host would copy numbers: as in `averaged`
            shares = torch.stack([scalars[owner] for owner in pass_.owners]) / counts.sum(1).clamp_min(1)  # [V]
            cotangents = cotangents + shares[:, None]
        histograms = of_histograms[first_cell : first_cell + cells]
        both = state.backward(cotangents.contiguous(), histograms.contiguous(), pass_.references is not None)
        for gradient, (source, first) in zip(both, (anchors_to, references_to), strict=True):
            if gradient is not None:
                gradients[source].narrow(1, first, gradient.shape[1]).add_(gradient)
        at, first_cell = at + number * anchors, first_cell + cells
    return gradients


@fused_rows_backward_op.register_fake
def _(
    of_terms: Tensor,
    of_values: Tensor,
    of_histograms: Tensor,
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


def _op_backward(ctx: Any, of_terms: Tensor, of_values: Tensor, _: Tensor, of_histograms: Tensor) -> tuple[Any, ...]:
    saved = list(ctx.saved_tensors)
    sources, constants = saved[: ctx.sources], saved[ctx.sources :]
    gradients = torch.ops.dmlcore.fused_rows_backward(
        of_terms, of_values, of_histograms, sources, constants, ctx.functors, ctx.options, ctx.layout
    )
    return gradients, [None] * ctx.constants, None, None, None, None


fused_rows_op.register_autograd(_op_backward, setup_context=_keep_inputs)
