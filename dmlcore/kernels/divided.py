"""Passes of a batch with itself that several ranks divide, as a differentiable PyTorch function: each pair of samples is
compared by one rank. Between the stages of `csrc/cpu/divided.h` the ranks exchange numbers per anchor, never similarities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dmlcore.errors import ConfigError
from dmlcore.kernels import extension
from dmlcore.kernels.cpu import request_of
from dmlcore.kernels.fused import keeps_graph, ready_pass, state_of
from dmlcore.kernels.passes import Pass
from dmlcore.kernels.planning import plan
from dmlcore.ranks import Group


class DividedPasses:
    """One rank's state of such passes, between forward and backward. All ranks call the same of it.

    Args:
        passes: with everything but the vectors as the kernels want it. All are float32, or all float64.
        group: of the ranks.

    Raises:
        ConfigError: the extension is missing.
        ValueError: a pass that cannot be divided.
    """

    def __init__(self, passes: Sequence[Pass], group: Group) -> None:
        module = extension.CPU
        if module is None:
            raise ConfigError(extension.why_not("cpu"))
        self.group, self.rank = group, group.rank
        self.like = passes[0].anchors.new_empty(0)
        self.alive = [pass_.relations for pass_ in passes]  # the kernels copy everything else
        options = {"threads": torch.get_num_threads(), **getattr(plan, "options", {})}
        requests = [request_of(pass_, (0, 0), (-1, 0)) for pass_ in passes]
        is_double = self.like.dtype == torch.float64
        self.passes = module.DividedPasses(is_double, requests, rank=self.rank, ranks=group.size, **options)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Values and counts of pass after pass, `[sum V A]`. They are 0 but for the anchors that this rank closes."""
        passes, like = self.passes, self.like
        passes.open()
        self._tell_all("limits")
        passes.collect()
        self._merge_sums()
        values, counts = like.new_empty(passes.numbers), like.new_empty(passes.numbers)
        passes.close(values.data_ptr(), counts.data_ptr())
        return values, counts

    def backward(self, cotangents: Tensor, gradients: Sequence[Tensor | None]) -> None:
        """Fill contiguous `[A, D]` with this rank's part of the gradient of each pass, under cotangents of the values."""
        self.passes.weigh(cotangents.data_ptr())
        self._tell_all("slopes")
        self.passes.slope([0 if gradient is None else gradient.data_ptr() for gradient in gradients])

    def _tell_all(self, what: str) -> None:
        """Let every rank have the numbers of all anchors."""
        sizes = self.passes.sizes(what)
        most = max(sizes)
        if most == 0:
            return
        own = self.like.new_zeros(most)
        self.passes.take(what, self.rank, own.data_ptr())
        pieces = self.group.all_gather(own).split(most)
        for rank, piece in enumerate(pieces):
            self.passes.put(what, rank, piece.data_ptr())

    def _merge_sums(self) -> None:
        """Let every rank have the sums of its anchors over the tiles of all ranks, merged in the order of the ranks."""
        sizes = self.passes.sizes("sums")
        if sum(sizes) == 0:
            return
        blocks = [self.like.new_empty(size) for size in sizes]
        for rank, block in enumerate(blocks):
            self.passes.take("sums", rank, block.data_ptr())
        parts = self.group.all_to_all(blocks, [sizes[self.rank]] * len(sizes))
        self.passes.merge(parts.data_ptr())


class _Divided(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, passes: DividedPasses, *anchors: Tensor) -> tuple[Tensor, Tensor]:
        ctx.passes = passes
        ctx.shapes = [tensor.shape for tensor in anchors]
        values, counts = passes.forward()
        ctx.mark_non_differentiable(counts)
        return values, counts

    @staticmethod
    def backward(ctx: Any, cotangents: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        passes: DividedPasses = state_of(ctx.passes)
        gradients: list[Tensor | None] = []
        for shape, is_needed in zip(ctx.shapes, ctx.needs_input_grad[1:], strict=True):
            gradients.append(passes.like.new_empty(shape) if is_needed else None)
        passes.backward(cotangents.contiguous(), gradients)
        if not keeps_graph():
            ctx.passes = None
        return None, *gradients


def divided_passes(passes: Sequence[Pass], group: Group) -> list[tuple[Tensor, Tensor]]:
    """Values and counts of passes whose tiles and classes the ranks of a group divide.

    Args:
        passes: at least one, of batches with themselves on the CPU, by functors of `merging_functors`, without windows. They
            are the same on every rank.
        group: of the ranks, which all call this, and all differentiate it.

    Returns:
        `[V, A]` values and counts of each pass, float32 or (for float64 input) float64. They are 0 but for the anchors that
        this rank closes. Gradients are this rank's part too: their sum over the ranks is the gradient of all ranks' values.

    Raises:
        ConfigError: the extension is missing.
        ValueError: a pass that cannot be divided.
    """
    is_double = any(pass_.anchors.dtype == torch.float64 for pass_ in passes)
    dtype = torch.float64 if is_double else torch.float32
    sources = [pass_.anchors.to(dtype).contiguous() for pass_ in passes]
    asked = [ready_pass(pass_, source, None, dtype) for pass_, source in zip(passes, sources, strict=True)]
    values, counts = _Divided.apply(DividedPasses(asked, group), *sources)
    results, first = [], 0
    for pass_ in asked:
        number, anchors, _ = pass_.size
        last = first + number * anchors
        results.append((values[first:last].view(number, anchors), counts[first:last].view(number, anchors)))
        first = last
    return results
