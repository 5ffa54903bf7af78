"""Plain definitions over some anchors at a time, so that memory stays within a budget whatever the batch size.

A definition that keeps rows apart gives the same numbers for part of the anchors. Backward computes each part again, so no
matrix of similarities outlives its part, and no node of its graph either: small allocations that stay between large ones keep
the C library from using the freed memory again, which was measured to cost ten times the budget.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dmlcore.errors import ConfigError
from dmlcore.losses.comparison import Comparison

BUDGET = 32 << 20
"""Bytes that the matrices of one part may take; one anchor's row is never divided."""

_limit = threading.local()


@contextmanager
def stream_budget(size: int) -> Iterator[None]:
    """Another budget than `BUDGET` inside a `with` block, for tests and measurements.

    Args:
        size: bytes; 0 takes anchors one at a time.
    """
    before = getattr(_limit, "size", None)
    _limit.size = size
    try:
        yield
    finally:
        _limit.size = before


def budget() -> int:
    """Bytes that the matrices of one part may take now."""
    size = getattr(_limit, "size", None)
    return BUDGET if size is None else size


def streamed_rows(
    compute: Callable[[Comparison], tuple[Tensor, Tensor]],
    comparison: Comparison,
    matrices: int,
    parameters: Iterable[Tensor] = (),
) -> tuple[Tensor, Tensor]:
    """Values and counts of all anchors, computed for as many at a time as the budget allows.

    Args:
        compute: values and counts `[V, A]` of a comparison. Each anchor's must not depend on which others are there,
            and must be the same when computed again.
        comparison: what is compared with what.
        matrices: how many matrices `[A, N]` of the anchors' dtype `compute` has alive.
        parameters: what `compute` uses beside the comparison and may take a gradient.

    Returns:
        Values and counts `[V, A]`, the same as `compute(comparison)`. Differentiable once where there is more than one part.
        Under `torch.compile` there is one part: the compiler plans the memory.
    """
    anchors = comparison.anchors
    size = max(budget() // max(matrices * len(comparison.other_vectors) * anchors.element_size(), 1), 1)
    if size >= len(anchors) or torch.compiler.is_compiling():
        return compute(comparison)
    learnt = [parameter for parameter in parameters if parameter.requires_grad]
    return _Parts.apply(compute, comparison, size, anchors, comparison.references, *learnt)


class _Parts(torch.autograd.Function):
    """Values and counts of part after part; `size` anchors each."""

    @staticmethod
    def forward(
        ctx: Any,
        compute: Callable[[Comparison], tuple[Tensor, Tensor]],
        comparison: Comparison,
        size: int,
        anchors: Tensor,
        references: Tensor | None,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.compute, ctx.comparison, ctx.size = compute, comparison._replace(anchors=anchors, references=references), size
        ctx.save_for_backward(anchors, references, *parameters)  # autograd notices when they are changed before backward
        rows: tuple[Tensor, Tensor] | None = None
        for start in range(0, len(anchors), size):
            part_rows = compute(ctx.comparison.part(start, start + size))
            if rows is None:
                values, counts = (part.new_empty(len(part), len(anchors)) for part in part_rows)
                rows = values, counts
            for whole, part in zip(rows, part_rows, strict=True):
                whole[:, start : start + size] = part
        assert rows is not None
        ctx.mark_non_differentiable(rows[1])
        return rows

    @staticmethod
    def backward(ctx: Any, cotangents: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True: without this the second derivative would silently be left out
            raise ConfigError("a loss computed in parts is differentiable once; for second derivatives use loss.reference")
        anchors, references, *parameters = ctx.saved_tensors
        needs_anchors, needs_references = ctx.needs_input_grad[3], ctx.needs_input_grad[3 if references is None else 4]
        totals = [torch.zeros_like(tensor) for tensor in (anchors, *parameters)]
        if references is None:
            of_references = totals[0]
        else:
            of_references = torch.zeros_like(references) if needs_references else None
        for start in range(0, len(anchors), ctx.size):
            stop = start + ctx.size
            part = ctx.comparison.part(start, stop)
            with torch.enable_grad():
                leaf = part.anchors.detach().requires_grad_(needs_anchors)
                reference_leaf = part.references.detach().requires_grad_(needs_references)
                values = ctx.compute(part._replace(anchors=leaf, references=reference_leaf))[0]
            if not values.requires_grad:
                continue
            targets = [
                (leaf, totals[0][start:stop]),
                (reference_leaf, of_references),
                *zip(parameters, totals[1:], strict=True),
            ]
            targets = [(tensor, total) for tensor, total in targets if tensor.requires_grad]
            inputs = [tensor for tensor, _ in targets]
            gradients = torch.autograd.grad(values, inputs, cotangents[:, start:stop], allow_unused=True)
            for (_, total), gradient in zip(targets, gradients, strict=True):
                if gradient is not None:
                    total.add_(gradient)
        return None, None, None, totals[0], None if references is None else of_references, *totals[1:]
