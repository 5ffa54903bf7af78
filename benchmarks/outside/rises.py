"""Decides questions 4 and 5 of `plan`: another rise of the rate, on new seeds too, and longer runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from benchmarks.outside import plan, rule
from benchmarks.outside.plan import DATA, PLAIN, RATED, SEEDS, TODAY, Cell, Rise
from benchmarks.outside.rule import BySeed, Means, Verdict
from benchmarks.outside.stored import Rows, figure, rate_of, validated
from dmlcore.reports.intervals import mean_and_half

HIGHEST = max(plan.RISE_RATES)
MOST_TRIED = 2  # rates of a plain loop in longer runs


def means_of(rows: Rows) -> Means:
    """The options of question 4, with the one beyond the grid where it was asked for and has been run."""
    return rule.widened(rows, plan.rises(), plan.RISE_SEEDS, plan.rise_cell, rule.in_percent)


def candidate(rows: Rows) -> Rise | None:
    """What rule 4 takes from all data sets."""
    means = means_of(rows)
    return rule.takes(means, means, rule.in_percent) if means else None


def gains(rows: Rows) -> dict[str, tuple[Rise, float]]:
    """For each data set what rule 4 takes from the others, and its test MAP@R there minus today's."""
    return rule.left_out(means_of(rows), TODAY, rule.in_percent)


def best_plain(rows: Rows, data: str) -> tuple[str, float] | None:
    """The plain loop and its rate with the best mean validation MAP@R over `SEEDS`."""
    means = {}
    for loss in PLAIN:
        rate = rate_of(rows, data, loss)
        cells = [Cell("compare", data, loss, seed, rate) for seed in SEEDS]
        if rate is None or any(cell not in rows for cell in cells):
            return None
        means[loss, rate] = statistics.fmean(figure(rows, cell, part="validation") for cell in cells)
    return max(means, key=lambda option: means[option])


def new_cell(rows: Rows, data: str, seed: int, option: Rise | None) -> Cell | None:
    """The run of an option with a new seed; None as the option: of the best plain loop."""
    if option is not None:
        return plan.rise_cell(data, seed, option)
    plain = best_plain(rows, data)
    return Cell("compare", data, plain[0], seed, plain[1]) if plain else None


def new_figures(rows: Rows, data: str, option: Rise | None, name: str = "served") -> BySeed:
    """Test MAP@R by new seed."""
    cells = {seed: new_cell(rows, data, seed, option) for seed in plan.NEW_SEEDS}
    return {seed: figure(rows, cell, name) for seed, cell in cells.items() if cell in rows}


def new_verdicts(rows: Rows, option: Rise, other: Rise | None, name: str = "served") -> dict[str, Verdict]:
    """An option beside another, or beside the best plain loop, with new seeds."""
    return rule.judge({data: (new_figures(rows, data, option, name), new_figures(rows, data, other, name)) for data in DATA})


def long_rates(rows: Rows, data: str, loss: str) -> Sequence[float]:
    """The rates that a plain loop tries in longer runs, the best ones of short runs."""
    means = validated(rows, data, loss) or {}
    return sorted(means, key=lambda rate: -means[rate])[:MOST_TRIED]


def long_plain(rows: Rows, data: str) -> tuple[str, float] | None:
    """The plain loop and its rate that are best on validation classes in longer runs; None: not all of them have been run."""
    cells = [Cell("long", data, loss, seed, rate) for loss in PLAIN for rate in long_rates(rows, data, loss) for seed in RATED]
    if not cells or any(cell not in rows for cell in cells):
        return None
    best = max(cells, key=lambda cell: figure(rows, cell, part="validation"))
    assert best.rate is not None
    return best.system, best.rate


def long_cell(rows: Rows, data: str, seed: int, option: str | Rise) -> Cell | None:
    """A longer run of an option, of a system of dmlcore, or of the best plain loop, `rule.BEST`."""
    if option == rule.BEST:
        plain = long_plain(rows, data)
        return Cell("long", data, plain[0], seed, plain[1]) if plain else None
    return Cell("long", data, option, seed) if isinstance(option, str) else plan.rise_cell(data, seed, option, "long")


def long_figures(rows: Rows, data: str, option: str | Rise, name: str = "served") -> BySeed:
    """Test MAP@R by seed in longer runs."""
    cells = {seed: long_cell(rows, data, seed, option) for seed in plan.LONG_SEEDS}
    return {seed: figure(rows, cell, name) for seed, cell in cells.items() if cell in rows}


def long_verdicts(rows: Rows, option: str | Rise, other: str | Rise, name: str = "served") -> dict[str, Verdict]:
    """Two of them beside each other, in longer runs."""
    return rule.judge({data: (long_figures(rows, data, option, name), long_figures(rows, data, other, name)) for data in DATA})


def confirmed(rows: Rows) -> list[Rise]:
    """What new seeds and longer runs compare with today's default: another rate that rule 2 takes, which decides nothing, and
    the candidate of rule 4 unless data sets left out have refuted it."""
    options = []
    means, now = rule.searched(rows, plan.DEFAULT_SIZE), rule.today(plan.DEFAULT_SIZE)
    if means and (point := rule.takes(means, means)) != now and point[:-1] == now[:-1]:
        options.append((*TODAY[:2], point[-1]))
    if (option := candidate(rows)) and option != TODAY and conditions(rows)["data sets left out"] is not False:
        options.append(option)
    return list(dict.fromkeys(options))


def conditions(rows: Rows) -> dict[str, bool | None]:
    """What rule 4 asks of its candidate; None: not run, or not in all data sets."""
    option = candidate(rows)
    if option is None or option == TODAY:
        return {}
    met: dict[str, bool | None] = dict.fromkeys(("data sets left out", "new seeds", "longer runs"))
    left = [gain for _, gain in gains(rows).values()]
    if len(left) == len(DATA):
        met["data sets left out"] = statistics.fmean(left) >= plan.LEAST_GAIN_RISE and min(left) >= -plan.MOST_LOSS_RISE
    own, now = (new_verdicts(rows, each, None) for each in (option, TODAY))
    if all(own[data].word and now[data].word for data in DATA):
        harmed = [data for data in DATA if own[data].word == "below" and (now[data].word != "below" or data == "fonts")]
        met["new seeds"] = not harmed
    longer = [verdict.interval for verdict in long_verdicts(rows, option, "default").values()]
    if not any(math.isnan(half) for _, half in longer):
        harmless = all(mean + half >= 0 for mean, half in longer)
        met["longer runs"] = harmless and mean_and_half([mean for mean, _ in longer])[0] >= plan.LEAST_GAIN_RISE
    return met
