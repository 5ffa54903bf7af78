"""What overrides the planner of the kernels, and what records the passes that begin, for tests, measurements and `explain`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from dmlcore.kernels.passes import Pass

plan = threading.local()
"""What this thread overrides of the planner, `plan.options`, and records of its passes, `plan.recorded`."""


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
    before = getattr(plan, "options", {})
    plan.options = {**before, **options}
    try:
        yield
    finally:
        plan.options = before


@contextmanager
def recorded_passes() -> Iterator[list[Pass]]:
    """Collect the passes that this thread begins on the CPU inside a `with` block."""
    plan.recorded = passes = []
    try:
        yield passes
    finally:
        plan.recorded = None
