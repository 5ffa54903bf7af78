"""What the repeats say: means with intervals, and paired differences to the best single loss with Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.field.arms import Arm
from benchmarks.field.stages import MEASURES, Results
from dmlcore.evaluation.resampling import holm
from dmlcore.reports.intervals import mean_and_error, mean_and_half

FORMS = ("separate", "concatenated")
COLUMNS = tuple((form, measure) for form in FORMS for measure in MEASURES)
Column = tuple[str, str]


@dataclass(frozen=True)
class Difference:
    """Of an arm to the best single loss, over the seeds that both have.

    Attributes:
        mean: in points.
        half: of the 95 % t-interval; NaN below two seeds.
        p: of the paired t-test, before any correction; NaN below two seeds.
        seeds: number of pairs.
    """

    mean: float
    half: float
    p: float
    seeds: int


def values(results: Results, name: str, column: Column) -> dict[int, float]:
    """Of an arm in points, by seed. Seeds without a result are left out."""
    form, measure = column
    return {seed: 100 * result[form][measure] for seed, result in results.repeats[name].items()}


def mean(results: Results, name: str, column: Column) -> tuple[float, float]:
    """Mean over the seeds in points, and half of its 95 % t-interval."""
    return mean_and_half(list(values(results, name, column).values()))


def best_single(results: Results, arms: Sequence[Arm]) -> str | None:
    """The single loss with the best score of the search. Test measures do not choose it, so the comparison with it is fair."""
    singles = [arm.name for arm in arms if arm.is_single and arm.name in results.tuned and results.repeats[arm.name]]
    return max(singles, key=lambda name: results.tuned[name]["validation"], default=None)


def differences(results: Results, names: Sequence[str], reference: str, column: Column) -> dict[str, Difference]:
    """Of each arm to the reference, in points, paired by seed: both have the same folds there."""
    own = values(results, reference, column)
    by_arm = {}
    for name in names:
        other = values(results, name, column)
        pairs = [other[seed] - own[seed] for seed in sorted(own.keys() & other.keys())]
        if pairs:
            by_arm[name] = Difference(*mean_and_half(pairs), paired_p(pairs), len(pairs))
    return by_arm


def paired_p(pairs: Sequence[float]) -> float:
    """The two-sided p-value of the t-test that the mean of paired differences is 0. NaN below two."""
    from scipy import stats

    average, error = mean_and_error(pairs)
    if math.isnan(error):
        return math.nan
    if error == 0:
        return float(average == 0)
    return float(2 * stats.t.sf(abs(average / error), len(pairs) - 1))


def corrected(by_arm: dict[str, Difference]) -> dict[str, float]:
    """The p-values by arm after Holm's correction for their number; arms without one are left out."""
    tested = [name for name, difference in by_arm.items() if not math.isnan(difference.p)]
    if not tested:
        return {}
    return dict(zip(tested, holm(np.array([by_arm[name].p for name in tested])).tolist(), strict=True))
