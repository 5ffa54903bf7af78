"""Passes of a batch with itself that several ranks divide, as a differentiable PyTorch function: each pair of samples is
compared by one rank. Between the stages of `csrc/cpu/divided.h` the ranks exchange numbers per anchor, never similarities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmlcore.errors import ConfigError
from dmlcore.kernels import extension
from dmlcore.kernels.cpu import request_of
from dmlcore.kernels.fused import keeps_graph, ready_pass, state_of
from dmlcore.kernels.passes import Pass
from dmlcore.kernels.planning import cpu_options
from dmlcore.ranks import Group, board
from dmlcore.ranks.board import Board

board.native = getattr(extension.CPU, "Board", None)


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
        options = {"threads": torch.get_num_threads(), **cpu_options()}
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

    def totals(self) -> list[float]:
        """Sums over the anchors of all ranks: values `[sum V]`, counts `[sum V]`, and anchors with a value above 0 of each
        functor."""
        values, counts = self.forward()
        own = self.passes.sums(values.data_ptr(), counts.data_ptr())
        return self.group.add_up(torch.tensor(own, dtype=torch.float64)).tolist()

    def backward(self, cotangents: Tensor, gradients: Sequence[Tensor | None]) -> None:
        """Fill contiguous `[A, D]` with this rank's part of the gradient of each pass, under contiguous cotangents of the terms
        that `reduce` of the extension has made."""
        self.passes.weigh(cotangents.data_ptr(), 1.0)
        self._tell_all("slopes")
        self.passes.slope([0 if gradient is None else gradient.data_ptr() for gradient in gradients])

    def _tell_all(self, what: str) -> None:
        """Let every rank have the numbers of all anchors."""
        sizes = self.passes.sizes(what)
        most = max(sizes)
        if most == 0:
            return
        if (shared := self.group.board_for(self.like.device)) is not None:
            self.passes.tell_all(what, shared.native)
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
        if (shared := self.group.board_for(self.like.device)) is not None:
            self.passes.merge_all(shared.native)
            return
        blocks = [self.like.new_empty(size) for size in sizes]
        for rank, block in enumerate(blocks):
            self.passes.take("sums", rank, block.data_ptr())
        parts = self.group.all_to_all(blocks, [sizes[self.rank]] * len(sizes))
        self.passes.merge(parts.data_ptr())


REDUCTIONS = {"default": 0, "sum": 1, "mean": 2}
"""How values become a term, as the extension numbers what options of losses say."""


class _Divided(torch.autograd.Function):
    """One node, whose terms the extension makes: many small tensors take longer than the exchange of what is in them."""

    @staticmethod
    def forward(ctx: Any, passes: DividedPasses, reductions: Sequence[int], *anchors: Tensor) -> Any:
        ctx.passes, ctx.shapes = passes, [tensor.shape for tensor in anchors]
        terms = passes.like.new_empty(len(reductions))
        shares = passes.passes.reduce(passes.totals(), reductions, terms.data_ptr())
        numbers = terms.new_tensor(shares, dtype=torch.float32)
        ctx.mark_non_differentiable(numbers)
        return terms, numbers

    @staticmethod
    def backward(ctx: Any, cotangents: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        passes: DividedPasses = state_of(ctx.passes)
        gradients: list[Tensor | None] = []
        for shape, is_needed in zip(ctx.shapes, ctx.needs_input_grad[2:], strict=True):
            gradients.append(passes.like.new_empty(shape) if is_needed else None)
        passes.backward(cotangents.contiguous(), gradients)
        if not keeps_graph():
            ctx.passes = None
        return None, None, *gradients


class DividedBatch(NamedTuple):
    """Prepared passes over a batch of which ranks have told one another, and what the ranks do with it.

    Attributes:
        passes: the extension's state of this rank's part.
        board: on which the ranks have met. Its memory stays for the backward pass, even where the process group ends before.
        reductions: of each functor, by `REDUCTIONS`.
        factor: what the gradient is multiplied by.
        shares: of samples with a value above 0 of each functor, filled by the forward pass.
    """

    passes: Any
    board: Board
    reductions: Sequence[int]
    factor: float
    shares: list[float]


class _DividedBatch(torch.autograd.Function):
    """As `_Divided`, from the samples of this rank to their gradient over the pairs of all."""

    @staticmethod
    def forward(ctx: Any, batch: DividedBatch, own: Tensor) -> Tensor:
        ctx.batch, ctx.shape = batch, own.shape
        terms = own.new_empty(len(batch.reductions))
        batch.shares.extend(batch.passes.forward(batch.board.native, batch.reductions, terms.data_ptr()))
        return terms

    @staticmethod
    def backward(ctx: Any, cotangents: Tensor) -> tuple[None, Tensor]:  # type: ignore[override]
        batch: DividedBatch = state_of(ctx.batch)
        gradient, cotangents = cotangents.new_empty(ctx.shape), cotangents.contiguous()
        batch.passes.backward(batch.board.native, cotangents.data_ptr(), batch.factor, gradient.data_ptr())
        if not keeps_graph():
            ctx.batch = None
        return None, gradient


def divided_batch(batch: DividedBatch, own: Tensor) -> Tensor:
    """The reduced values of prepared passes, as `divided_passes` gives them.

    Args:
        batch: before its forward pass.
        own: `[B, D]` the samples of this rank, for their gradient, which is complete: all ranks differentiate the terms.
    """
    return _DividedBatch.apply(batch, own)


def divided_passes(passes: Sequence[Pass], reductions: Sequence[str], group: Group) -> tuple[Tensor, Tensor]:
    """The reduced values of passes whose tiles and classes the ranks of a group divide.

    Args:
        passes: at least one, of batches with themselves on the CPU, by functors of `merging_functors`, without windows. They
            are the same on every rank.
        reductions: of each functor, pass after pass: `default`, `sum` or `mean`, as options of losses say.
        group: of the ranks, which all call this, and all differentiate it.

    Returns:
        `[L]` a term of each functor, float32 or (for float64 input) float64, and the share of anchors with a value above 0.
        They are those of all ranks. Gradients are this rank's part: their sum over the ranks is the gradient of the terms.

    Raises:
        ConfigError: the extension is missing.
        ValueError: a pass that cannot be divided.
    """
    is_double = any(pass_.anchors.dtype == torch.float64 for pass_ in passes)
    dtype = torch.float64 if is_double else torch.float32
    sources = [pass_.anchors.to(dtype).contiguous() for pass_ in passes]
    asked = [ready_pass(pass_, source, None, dtype) for pass_, source in zip(passes, sources, strict=True)]
    return _Divided.apply(DividedPasses(asked, group), [REDUCTIONS[reduction] for reduction in reductions], *sources)
