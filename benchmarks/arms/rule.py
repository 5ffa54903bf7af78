"""Decides by the rules of `plan`, and computes the paired differences that they need."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.arms import plan
from benchmarks.arms.plan import ARMS, DATA, ENSEMBLES, Arm
from benchmarks.arms.runs import Rows
from benchmarks.defaults.sets import SETS
from dmlcore.evaluation.resampling import holm
from dmlcore.reports.intervals import mean_and_half

FEWEST = 3  # seeds of an interval
Side = tuple[str, str]  # arm and system


@dataclass(frozen=True)
class Comparison:
    """One side minus the other, test MAP@R in points.

    Attributes:
        by_data: the differences of all seeds that both sides have, by data set.
    """

    by_data: dict[str, list[float]]

    @property
    def means(self) -> dict[str, float]:
        return {data: statistics.fmean(values) for data, values in self.by_data.items()}

    @property
    def p(self) -> float:
        """Of the two-sided t-test of the means over data sets; NaN where they are too few."""
        from scipy import stats

        values = list(self.means.values())
        test: Any = stats.ttest_1samp
        return float(test(values, 0.0).pvalue) if len(values) >= FEWEST else math.nan

    def ahead(self, data: str) -> bool:
        """Whether rule 1 holds on a data set: by a point, with an interval above zero."""
        values = self.by_data.get(data, [])
        if len(values) < FEWEST:
            return False
        mean, half = mean_and_half(values)
        return mean >= 1 and mean - half > 0


def figure(rows: Rows, data: str, side: Side, seed: int, part: str = "test", name: str = "served") -> float:
    """MAP@R of a run; NaN where there is none."""
    row = rows.get((data, *side, seed))
    return row["figures"][name][part]["MAP@R"] if row and name in row["figures"] else math.nan


def seeds_of(rows: Rows, data: str, *sides: Side) -> list[int]:
    """The seeds that all sides have."""
    return [seed for seed in plan.SEEDS if not any(math.isnan(figure(rows, data, side, seed)) for side in sides)]


def compare(rows: Rows, one: Side, other: Side, name: str = "served", base: str = "served") -> Comparison:
    """One side minus the other on all data sets that have both.

    Args:
        rows: the results.
        one, other: arm and system.
        name, base: which of the figures of each side.
    """
    by_data = {}
    for data in DATA:
        pairs = ((figure(rows, data, one, s, name=name), figure(rows, data, other, s, name=base)) for s in plan.SEEDS)
        values = [value - rival for value, rival in pairs if not math.isnan(value - rival)]
        if values:
            by_data[data] = values
    return Comparison(by_data)


def control(arm: Arm, system: str) -> Side:
    """What an ensemble with a trick is compared with: the control with the same trick, if that can have it."""
    return (arm.name if system in arm.systems else arm.controls), system


def on_better_control(rows: Rows, arm: Arm, system: str) -> Comparison:
    """The lead on the control that validation classes find better, on each data set by itself."""
    by_data = {}
    for data in DATA:
        sides = [control(arm, name) for name in ("same", "wide")]
        seeds = seeds_of(rows, data, (arm.name, system), *sides)
        if seeds:
            better = max(sides, key=lambda side: statistics.fmean(figure(rows, data, side, s, "validation") for s in seeds))
            by_data[data] = [figure(rows, data, (arm.name, system), s) - figure(rows, data, better, s) for s in seeds]
    return Comparison(by_data)


def ensembles() -> list[tuple[Arm, str]]:
    """All ensembles with their tricks."""
    return [(arm, system) for arm in ARMS.values() for system in arm.systems if system in ENSEMBLES]


def corrected(comparisons: Sequence[Comparison], added: Sequence[bool] | None = None) -> list[float]:
    """Their p-values after Holm's correction; NaN stays.

    Args:
        comparisons: a family.
        added: which of them joined it later. These are corrected over all, and the others among themselves. None: none.
    """
    p = np.array([comparison.p for comparison in comparisons])
    first = ~np.array(added if added is not None else [False] * len(p), dtype=bool)
    tested = ~np.isnan(p)
    over_all = p.copy()
    over_all[tested] = holm(p[tested])
    p[tested & first] = holm(p[tested & first])
    return np.where(first, p, over_all).tolist()


@dataclass(frozen=True)
class Verdict:
    """Rule 1 for an ensemble with a trick.

    Attributes:
        arm, system: of the ensemble.
        same, wide: its leads on the controls.
        lead: that on the better control.
        p: of that, corrected.
        pictures, tables: data sets on which it is ahead of both as the rule asks.
    """

    arm: Arm
    system: str
    same: Comparison
    wide: Comparison
    lead: Comparison
    p: float
    pictures: int
    tables: int

    @property
    def wins(self) -> bool:
        enough = self.pictures >= plan.PICTURES_NEEDED and self.tables >= plan.TABLES_NEEDED
        return enough and self.p < 0.05 and statistics.fmean(self.lead.means.values()) > 0


def verdicts(rows: Rows) -> list[Verdict]:
    """Rule 1 for all ensembles."""
    every = ensembles()
    leads = [on_better_control(rows, arm, system) for arm, system in every]
    judged = []
    corrections = corrected(leads, [arm.added for arm, _ in every])
    for (arm, system), lead, p in zip(every, leads, corrections, strict=True):
        same, wide = (compare(rows, (arm.name, system), control(arm, name)) for name in ("same", "wide"))
        ahead = [data for data in DATA if same.ahead(data) and wide.ahead(data)]
        pictures = sum(SETS[data].kind == "images" for data in ahead)
        judged.append(Verdict(arm, system, same, wide, lead, p, pictures, len(ahead) - pictures))
    return judged


def tricks() -> list[tuple[Arm, str]]:
    """All ensembles that rule 2 compares with today's default."""
    return [(arm, system) for arm, system in ensembles() if (arm.name, system) != ("plain", "default")]


def changes_default(gain: Comparison, p: float, cost: float) -> bool:
    """Rule 2 for an ensemble with a trick."""
    means = list(gain.means.values())
    is_gain = bool(means) and p < 0.05 and statistics.fmean(means) >= plan.LEAST_GAIN
    return is_gain and min(means) >= -plan.MOST_LOSS and cost <= plan.MOST_COST


def cost(rows: Rows, one: Side, other: Side = ("plain", "default")) -> float:
    """CPU time of training one side over that of the other, the median over all runs that both have."""
    ratios = []
    for data in DATA:
        for seed in seeds_of(rows, data, one, other):
            ratios.append(_seconds(rows, data, one, seed) / _seconds(rows, data, other, seed))
    return statistics.median(ratios) if ratios else math.nan


def seconds(rows: Rows, kind: str, side: Side) -> float:
    """CPU seconds of a run, the mean over data sets of a kind."""
    values = [
        _seconds(rows, data, side, seed) for data in DATA if SETS[data].kind == kind for seed in seeds_of(rows, data, side)
    ]
    return statistics.fmean(values) if values else math.nan


def _seconds(rows: Rows, data: str, side: Side, seed: int) -> float:
    return rows[data, *side, seed]["cpu_seconds"]
