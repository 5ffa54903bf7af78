"""Means over repetitions and how sure they are."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error, `s / sqrt(n)`; NaN for the latter below two values."""
    if len(values) < 2:
        return (values[0] if values else math.nan), math.nan
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))


def mean_and_half(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Mean and half of its t-interval; NaN for the latter below two values.

    Args:
        values: independent repetitions, or paired differences of them.
        level: of the interval, in (0, 1).
    """
    from scipy import stats

    mean, error = mean_and_error(values)
    return mean, float(stats.t.ppf((1 + level) / 2, len(values) - 1)) * error if len(values) > 1 else math.nan
