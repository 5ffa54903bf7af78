"""Plain definitions over some anchors at a time, so that memory stays within a budget whatever the batch size.

A definition that keeps rows apart gives the same numbers for part of the anchors. Backward computes each part again, so no
matrix of similarities outlives its part, and no node of its graph either: small allocations that stay between large ones keep
the C library from using the freed memory again, which was measured to cost ten times the budget.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dmlcore.errors import ConfigError

if TYPE_CHECKING:
    from dmlcore.losses.base import Sides

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


def part_of(sides: Sides, start: int, stop: int) -> Sides:
    """The anchors `start..stop - 1` against all references. A batch against itself becomes its own references."""
    own = sides.own
    references, reference_labels = sides.references, sides.reference_labels
    if references is None:
        references, reference_labels = sides.anchors, sides.anchor_labels
        own = torch.arange(len(references), device=references.device)
    return sides._replace(
        anchors=sides.anchors[start:stop],
        anchor_labels=sides.anchor_labels[start:stop],
        references=references,
        reference_labels=reference_labels,
        own=None if own is None else own[start:stop],
        lists=None,
        mining=None if sides.mining is None else sides.mining._replace(first=sides.mining.first + start),
    )


def streamed_rows(
    compute: Callable[[Sides], tuple[Tensor, Tensor]], sides: Sides, matrices: int, parameters: Iterable[Tensor] = ()
) -> tuple[Tensor, Tensor]:
    """Values and counts of all anchors, computed for as many at a time as the budget allows.

    Args:
        compute: values and counts `[V, A]` of sides; each anchor's must not depend on which others are there, and must be the
            same when computed again.
        sides: what is compared with what.
        matrices: how many matrices `[A, N]` of the anchors' dtype `compute` has alive.
        parameters: what `compute` uses beside the sides and may take a gradient.

    Returns:
        Values and counts `[V, A]`, the same as `compute(sides)`. Differentiable once where there is more than one part. Under
        `torch.compile` there is one part: the compiler plans the memory.
    """
    count = len(sides.anchors)
    references = sides.anchors if sides.references is None else sides.references
    step = max(budget() // max(matrices * len(references) * sides.anchors.element_size(), 1), 1)
    if step >= count or torch.compiler.is_compiling():
        return compute(sides)
    needed = [parameter for parameter in parameters if parameter.requires_grad]
    return _Parts.apply(compute, sides, step, sides.anchors, sides.references, *needed)


class _Parts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        compute: Callable[[Sides], tuple[Tensor, Tensor]],
        sides: Sides,
        step: int,
        anchors: Tensor,
        references: Tensor | None,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.compute, ctx.sides, ctx.step = compute, sides._replace(anchors=anchors, references=references), step
        ctx.save_for_backward(anchors, references, *parameters)  # autograd notices when they are changed before backward
        made: tuple[Tensor, Tensor] | None = None
        for start in range(0, len(anchors), step):
            found = compute(part_of(ctx.sides, start, start + step))
            if made is None:
                values, counts = (part.new_empty(len(part), len(anchors)) for part in found)
                made = values, counts
            for whole, part in zip(made, found, strict=True):
                whole[:, start : start + step] = part
        assert made is not None
        ctx.mark_non_differentiable(made[1])
        return made

    @staticmethod
    def backward(ctx: Any, cotangents: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True: without this the second derivative would silently be left out
            raise ConfigError("a loss computed in parts is differentiable once; for second derivatives use loss.reference")
        anchors, references, *parameters = ctx.saved_tensors
        wanted = ctx.needs_input_grad[3], ctx.needs_input_grad[3 if references is None else 4]
        totals = [torch.zeros_like(tensor) for tensor in (anchors, *parameters)]
        of_references = totals[0] if references is None else torch.zeros_like(references) if wanted[1] else None
        for start in range(0, len(anchors), ctx.step):
            part = part_of(ctx.sides, start, start + ctx.step)
            assert part.references is not None
            with torch.enable_grad():
                mine = part.anchors.detach().requires_grad_(wanted[0])
                others = part.references.detach().requires_grad_(wanted[1])
                values = ctx.compute(part._replace(anchors=mine, references=others))[0]
            if not values.requires_grad:
                continue
            targets = [
                (mine, totals[0][start : start + ctx.step]),
                (others, of_references),
                *zip(parameters, totals[1:], strict=True),
            ]
            targets = [(tensor, total) for tensor, total in targets if tensor.requires_grad]
            inputs = [tensor for tensor, _ in targets]
            found = torch.autograd.grad(values, inputs, cotangents[:, start : start + ctx.step], allow_unused=True)
            for (_, total), gradient in zip(targets, found, strict=True):
                if gradient is not None:
                    total.add_(gradient)
        return None, None, None, totals[0], None if references is None else of_references, *totals[1:]
