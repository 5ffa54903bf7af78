"""Decides by the rules of `plan`, and computes the differences that they need."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.outside import plan
from benchmarks.outside.plan import DATA, PLAIN, SEARCH_SEEDS, SEARCHED_RATES, SEEDS, SHAPES, Cell
from benchmarks.outside.stored import Rows, figure, rate_of
from dmlcore.evaluation.resampling import holm
from dmlcore.reports.intervals import mean_and_half

BEST = "best plain"
FEWEST = 3  # seeds of an interval
COMPARED = (("default", BEST), *(("default", loss) for loss in PLAIN), *plan.COUNTERPARTS)
Point = tuple[int, int, float]  # classes, samples, rate
BySeed = dict[int, float]
Means = dict[str, dict[Any, dict[str, float]]]  # data set, option, part: MAP@R
CellOf = Callable[[str, int, Any], Cell]  # of a data set, a seed, an option
Regret = Callable[[Means, str, Any], float]  # of an option on a data set


def figures_of(rows: Rows, data: str, system: str, name: str = "served", part: str = "test") -> BySeed:
    """MAP@R of a system by seed, of those that are there.

    Args:
        rows: results.
        data: name of the data set.
        system: of dmlcore, as it is or explaining, a plain loop at the rate that validation chose, or `BEST`.
        name: `served` or `whole`.
        part: `validation` or `test`.
    """
    if system == BEST:
        there = [loss for loss in PLAIN if figures_of(rows, data, loss)]
        if not there:
            return {}
        best = max(there, key=lambda loss: statistics.fmean(figures_of(rows, data, loss, part="validation").values()))
        return figures_of(rows, data, best, name, part)
    rate = rate_of(rows, data, system) if system in PLAIN else None
    if system in PLAIN and rate is None:
        return {}
    cells = {seed: Cell("compare", data, system, seed, rate) for seed in SEEDS}
    return {seed: figure(rows, cell, name, part) for seed, cell in cells.items() if cell in rows}


@dataclass(frozen=True)
class Verdict:
    """One system of dmlcore beside a plain loop on a data set.

    Attributes:
        values: differences in points, one for each seed that both have.
        p: of the t-test after Holm's correction over the data sets; NaN below three seeds.
    """

    values: Sequence[float]
    p: float

    @property
    def interval(self) -> tuple[float, float]:
        """Mean, and half of the 95 % t-interval, which is NaN below three seeds."""
        mean, half = mean_and_half(list(self.values)) if self.values else (math.nan, math.nan)
        return mean, half if len(self.values) >= FEWEST else math.nan

    @property
    def word(self) -> str:
        """`below`, `ahead`, `level`, or empty where there is no interval."""
        mean, half = self.interval
        if math.isnan(half):
            return ""
        if mean + half < 0:
            return "below"
        return "ahead" if mean > 0 and self.p < 0.05 else "level"


def verdicts(rows: Rows, system: str, other: str, name: str = "served") -> dict[str, Verdict]:
    """By data set."""
    return judge({data: (figures_of(rows, data, system, name), figures_of(rows, data, other, name)) for data in DATA})


def judge(pairs: dict[str, tuple[BySeed, BySeed]]) -> dict[str, Verdict]:
    """By data set, from the figures of both sides."""
    values = {data: [own[seed] - rival[seed] for seed in sorted(own.keys() & rival)] for data, (own, rival) in pairs.items()}
    tested = [data for data in pairs if len(values[data]) >= FEWEST]
    corrected = dict(zip(tested, holm(np.array([_p(values[data]) for data in tested])), strict=True)) if tested else {}
    return {data: Verdict(values[data], float(corrected.get(data, math.nan))) for data in pairs}


def _p(values: Sequence[float]) -> float:
    from scipy import stats

    test: Any = stats.ttest_1samp
    return float(test(values, 0.0).pvalue)


def points_of(size: int) -> list[Point]:
    """All that is searched at a size of a batch, but for a rate beyond the grid."""
    return [(*shape, rate) for shape in SHAPES[size] for rate in SEARCHED_RATES]


def search_cell(data: str, seed: int, point: Point) -> Cell:
    """The run of a point of the search."""
    classes, samples, rate = point
    return Cell("search", data, "default", seed, rate, classes, samples)


def today(size: int) -> Point:
    """What a run takes, or would take, today."""
    return (*SHAPES[size][0], plan.TODAY_RATE)


def searched(rows: Rows, size: int) -> Means:
    """The search at a size of a batch: means over the seeds of which every point has a run, of data sets that have one."""
    return widened(rows, points_of(size), SEARCH_SEEDS, search_cell, regret)


def mended(rows: Rows) -> Means:
    """The default beside other losses in its place."""
    options = ("default", "sup_con", *plan.MENDS)
    return _means(rows, options, plan.MEND_SEEDS, lambda data, seed, system: Cell("compare", data, system, seed))


def beyond(option: Any, highest: float) -> Any:
    """The option with twice the highest rate of its grid, if it has that rate; otherwise None. The rate is its last entry."""
    return (*option[:-1], 2 * highest) if option[-1] == highest else None


def widened(rows: Rows, options: Sequence[Any], seeds: Sequence[int], cell: CellOf, regret: Regret) -> Means:
    """Means as below, with the option beyond the grid, if the rule takes the highest rate and all runs beyond are there.

    Args:
        rows: results.
        options: of the grid, whose last entry is the rate.
        seeds: of the search.
        cell: the run of a data set, a seed and an option.
        regret: by which the rule takes an option.
    """
    means = _means(rows, options, seeds, cell)
    further = beyond(takes(means, means, regret), max(option[-1] for option in options)) if means else None
    if further is None:
        return means
    wider = _means(rows, [*options, further], seeds, cell)
    is_whole = means.keys() == wider.keys() and all(
        of[further]["seeds"] == means[data][options[0]]["seeds"] for data, of in wider.items()
    )
    return wider if is_whole else means


def _means(rows: Rows, options: Sequence[Any], seeds: Sequence[int], cell: CellOf) -> Means:
    means: Means = {}
    for data in DATA:
        there = [seed for seed in seeds if all(cell(data, seed, option) in rows for option in options)]
        for option in options if there else ():
            cells = [cell(data, seed, option) for seed in there]
            parts = {part: statistics.fmean(figure(rows, own, part=part) for own in cells) for part in ("validation", "test")}
            means.setdefault(data, {})[option] = {**parts, "seeds": len(there)}
    return means


def regret(means: Means, data: str, option: Any) -> float:
    """What an option lacks to the best one on the validation classes."""
    return max(of["validation"] for of in means[data].values()) - means[data][option]["validation"]


def in_percent(means: Means, data: str, option: Any) -> float:
    """The same in percent of what the best one reaches."""
    return 100 * regret(means, data, option) / max(of["validation"] for of in means[data].values())


def takes(means: Means, sets: Iterable[str], regret: Regret = regret) -> Any:
    """The option of least mean regret on data sets."""
    sets = list(sets)
    options = means[sets[0]]
    return min(options, key=lambda option: statistics.fmean(regret(means, data, option) for data in sets))


def gain(means: Means, data: str, option: Any, now: Any) -> float:
    """Test MAP@R of an option minus today's."""
    return means[data][option]["test"] - means[data][now]["test"]


def left_out(means: Means, now: Any, regret: Regret = regret) -> dict[str, tuple[Any, float]]:
    """For each data set what the rule takes from the others, and its test MAP@R there minus today's."""
    options = {data: takes(means, [other for other in means if other != data], regret) for data in means if len(means) > 1}
    return {data: (option, gain(means, data, option, now)) for data, option in options.items()}


def changes(gains: Sequence[float], most_loss: float = plan.MOST_LOSS) -> bool:
    """Whether differences on data sets left out are enough for another default, or another recommendation."""
    mean, half = mean_and_half(list(gains)) if gains else (math.nan, math.nan)
    return mean - half > 0 and mean >= plan.LEAST_GAIN and min(gains) >= -most_loss
