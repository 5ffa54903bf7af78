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
    """Override the planner of the kernels inside a `with` block, for tests and measurements.

    It holds for this thread. Blocks can be nested: an inner block keeps what it does not set itself.

    Args:
        options: integers by name. What is left out is planned as usual.

            - `threads`: the largest number of threads.
            - `thread_work`: multiplications for each thread. A smaller pass uses fewer threads.
            - `workspace`: bytes of similarities that may be kept from forward to backward. 0 computes them again.
            - `tile_rows`, `tile_columns`: anchors and references of one tile of similarities.
            - `slot_bytes`: memory for the positives of the anchors in work.
            - `search`: 1 sorts the positives of every anchor and looks each negative up among them, 0 never does so.
            - `triangle`: 0 computes all pairs of a batch with itself, without use of the symmetry.
            - `stream`: 0 copies both anchors and references, instead of reading the larger side where it is.

            Passes on CUDA use three of them: `workspace` for the bytes of the products of one chunk, and `tile_rows` and
            `tile_columns` for its shape. And one is theirs alone:

            - `one_launch`: 1 lets losses share a kernel that is compiled at run time for their set, and 2 where that was
              measured to be faster. 0, the default, gives each loss its own.
    """
    before = getattr(plan, "options", {})
    plan.options = {**before, **options}
    try:
        yield
    finally:
        plan.options = before


def cpu_options() -> dict[str, int]:
    """What this thread overrides of the planner of the CPU's passes."""
    return {name: value for name, value in getattr(plan, "options", {}).items() if name != "one_launch"}


@contextmanager
def recorded_passes() -> Iterator[list[Pass]]:
    """Collect the passes that this thread begins on the CPU inside a `with` block."""
    plan.recorded = passes = []
    try:
        yield passes
    finally:
        plan.recorded = None
