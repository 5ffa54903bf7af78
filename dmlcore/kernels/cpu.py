"""Passes on the CPU: tensors in, pointers out, and what overrides the planner. The arithmetic is in `csrc/cpu`."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dmlcore.errors import ConfigError
from dmlcore.kernels import extension

if TYPE_CHECKING:
    from dmlcore.kernels.rows import FunctorCall, Relations

_plan = threading.local()
Target = tuple[int, int]
"""Where the gradient of a side goes: the index of a tensor and the first of its columns."""


@contextmanager
def plan_options(**options: int) -> Iterator[None]:
    """Override the planner of the CPU kernels inside a `with` block, for tests and measurements.

    Args:
        options: `threads` (at most), `thread_work` (multiplications from which on a further thread is used), `workspace`
            (bytes of similarities kept between forward and backward; 0 recomputes them), `tile_rows`, `tile_columns`,
            `slot_bytes`, `search` (1: look negatives up among the thresholds of an anchor's positives whatever their number,
            0: never), `triangle` (0: do not use the symmetry of a batch with itself). CUDA passes look at `workspace`
            (bytes of a chunk's products), `tile_rows` and `tile_columns` (its shape).
    """
    before = getattr(_plan, "options", {})
    _plan.options = {**before, **options}
    try:
        yield
    finally:
        _plan.options = before


@contextmanager
def recorded_steps() -> Iterator[list[tuple[Any, ...]]]:
    """Collect the arguments of the passes begun inside a `with` block by this thread: anchors, their labels, references, their
    labels, relations, normalise, calls."""
    _plan.recorded = found = []
    try:
        yield found
    finally:
        _plan.recorded = None


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _rows(rows: Tensor, labels: Tensor, normalise: bool) -> tuple[int, int, int, int, bool]:
    return rows.data_ptr(), labels.data_ptr(), rows.shape[0], rows.stride(0), normalise


class CpuStep:
    """One pass on the CPU, to be computed by `CpuPasses`; arguments as `CudaStep`, but rows need not be contiguous, only each
    of them.

    Raises:
        ConfigError: the extension is missing, or a tensor is on another device.
    """

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
        if extension.cpu() is None:
            raise ConfigError(extension.reason_against("cpu"))
        for tensor in (anchors, anchor_labels, references, reference_labels):
            if tensor is not None and not tensor.is_cpu:
                raise ConfigError(
                    f"embeddings, references, proxies and labels are on {tensor.device} and cpu; move them to one"
                )
        self.anchors, self.anchor_labels = anchors, anchor_labels
        self.references, self.reference_labels = references, reference_labels
        self.normalise, self.calls, self.relations = normalise, calls, relations
        if (recorded := getattr(_plan, "recorded", None)) is not None:
            recorded.append((anchors, anchor_labels, references, reference_labels, relations, normalise, calls))

    @property
    def values(self) -> int:
        """How many values an anchor has."""
        known = extension.functors()
        return sum(known[call.functor][1] if call.functor in known else 0 for call in self.calls)

    def request(self, owners: Sequence[int] | None, anchors_to: Target, references_to: Target) -> tuple[Any, ...]:
        """What the binding is told; the tensors must live until it has begun, and those of `relations` as long as it."""
        references = None
        if self.references is not None and self.reference_labels is not None:
            references = _rows(self.references, self.reference_labels, self.normalise[1])
        return (
            _rows(self.anchors, self.anchor_labels, self.normalise[0]),
            references,
            self.anchors.shape[1],
            [(call.functor, call.options, _pointer(call.given), _pointer(call.windows)) for call in self.calls],
            [_pointer(tensor) for tensor in self.relations],
            owners or [-1] * self.values,
            anchors_to,
            references_to,
        )


class CpuPasses:
    """The state of the passes of one step on the CPU, between forward and backward.

    Args:
        steps: the passes; all float32, or all float64.
        terms: how many numbers the values are reduced to.
        owners: per pass and value the term that its average over the anchors is added to, -1: none. None: none at all.
        targets: per pass where the gradients of its anchors and of its references go. None: a tensor for each, pass after pass.

    Raises:
        ValueError: an unknown functor, or a wrong number of options for it.
    """

    def __init__(
        self,
        steps: Sequence[CpuStep],
        terms: int = 0,
        owners: Sequence[Sequence[int] | None] | None = None,
        targets: Sequence[tuple[Target, Target]] | None = None,
    ) -> None:
        module = extension.cpu()
        assert module is not None
        self.like = steps[0].anchors.new_empty(0)
        self.terms = terms
        self.kept = [step.relations for step in steps]  # everything else is copied
        requests = []
        for k, step in enumerate(steps):
            anchors_to, references_to = ((2 * k, 0), (2 * k + 1, 0)) if targets is None else targets[k]
            requests.append(step.request(None if owners is None else owners[k], anchors_to, references_to))
        options = {"threads": torch.get_num_threads(), **getattr(_plan, "options", {})}
        self.passes = module.Passes(self.like.dtype == torch.float64, requests, terms, **options)

    def forward(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Terms; values and counts of pass after pass, `[sum V A]`; tables of pass after pass."""
        count, cells = self.passes.sizes
        values, counts = self.like.new_empty(count), self.like.new_empty(count)
        terms, tables = self.like.new_empty(self.terms), self.like.new_empty(cells)
        self.passes.forward(values.data_ptr(), counts.data_ptr(), tables.data_ptr(), terms.data_ptr())
        return terms, values, counts, tables

    def backward(self, terms: Tensor | None, values: Tensor | None, tables: Tensor | None, to: Sequence[Tensor | None]) -> None:
        """Fill the contiguous tensors `to` with gradients, under cotangents of what `forward` returned; None: they are 0."""
        told = [(0, 0, 0) if one is None else (one.data_ptr(), *one.shape) for one in to]
        self.passes.backward(_pointer(terms), _pointer(values), _pointer(tables), told)

    def plan(self, index: int = 0) -> dict[str, int]:
        """What the planner chose for a pass."""
        return self.passes.plan(index)
