"""The learning rate over the steps, as a pure function: nothing to save, nothing to restore."""

from __future__ import annotations

import math


def factor(step: int, steps: int, warmup: int, floor: float = 0.01) -> float:
    """Factor on the learning rate at a step: a straight line up, then half a cosine down to `floor`.

        (step + 1) / warmup                                              while step < warmup
        floor + (1 - floor) * (1 + cos(pi * (step - warmup) / (steps - warmup))) / 2    after

    Args:
        step: from 0 to steps - 1.
        steps: steps of the whole run.
        warmup: steps of the line up; at most a fifth of `steps` is used.
        floor: factor at the end.
    """
    warmup = min(warmup, steps // 5)
    if step < warmup:
        return (step + 1) / warmup
    progress = min((step - warmup) / max(steps - warmup, 1), 1.0)
    return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2
