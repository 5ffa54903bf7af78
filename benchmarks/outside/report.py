"""Fills docs/reports/outside.md from the stored results."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.defaults.sets import SETS
from benchmarks.markdown import fill, table
from benchmarks.outside import plan, rule
from benchmarks.outside.plan import DATA, PLAIN, PRODUCTS, SHAPES
from benchmarks.outside.runs import Rows, rate_of
from dmlcore.reports.intervals import mean_and_half

PAGE = Path(__file__).parents[2] / "docs" / "reports" / "outside.md"


def _with_half(values: Sequence[float], form: str = "+.1f") -> str:
    mean, half = mean_and_half(list(values)) if values else (math.nan, math.nan)
    return "" if math.isnan(half) else f"{mean:{form}} ± {half:{form.lstrip('+')}}"


def _name(option: Any) -> str:
    """Of losses, or of a point of the search."""
    if isinstance(option, str):
        return option
    classes, samples, rate = option
    return f"{classes} x {samples}, {rate:g}"


def answer(rows: Rows, _: str) -> str:
    """The first sentences, for users."""
    size = plan.DEFAULT_SIZE
    means, now = rule.searched(rows, size), rule.today(size)
    if not means:
        return "Not run."
    beside = rule.verdicts(rows, "default", rule.BEST)
    names: dict[str, list[str]] = {
        word: [d for d, v in beside.items() if v.word == word] for word in ("ahead", "level", "below")
    }
    told = [f"{word} on {len(sets)} ({', '.join(sets)})" for word, sets in names.items() if sets]
    gains = [gain for _, gain in rule.left_out(means, now).values()]
    verdict = "changes the default" if rule.changes(gains) else "leaves the default as it is"
    return (
        f"Without any flag, `dmlcore train` beside the better plain loop, whose rate was searched, is {', '.join(told)} of"
        f" {sum(map(len, names.values()))} sets of pictures. The search of rate and P x K would take"
        f" {_name(rule.takes(means, means))}, where today's is {_name(now)}: on data sets left out"
        f" {_with_half(gains, '+.2f')} points, which {verdict}."
    )


def data_sets(rows: Rows, _: str) -> str:
    """What was run, and the rates of the plain loops."""
    lines = []
    for data in DATA:
        seeds = len(rule.figures_of(rows, data, "default"))
        rates = [f"{rate:g}" if (rate := rate_of(rows, data, loss)) else "" for loss in PLAIN]
        lines.append([data, SETS[data].about.replace(" at 32 x 32", ""), f"{seeds}", *rates])
    return table(["data set", "what it is", "seeds", *(f"rate of {loss}" for loss in PLAIN)], lines)


def figures(rows: Rows, part: str) -> str:
    """Test MAP@R of every system, and what a run cost. `part` is the embedding, `served` or `whole`."""
    lines = []
    for system in (*PRODUCTS, *PLAIN):
        own = [rule.figures_of(rows, data, system, part) for data in DATA]
        means = [f"{statistics.fmean(values.values()):.1f}" if values else "" for values in own]
        runs = [row["cpu_seconds"] for cell, row in rows.items() if (cell.part, cell.system) == ("compare", system)]
        name = f"dmlcore, {system}" if system in PRODUCTS else f"plain loop, {system}"
        lines.append([name, *means, f"{statistics.median(runs):.1f}" if runs else ""])
    return table(["test MAP@R", *DATA, "CPU seconds"], lines)


def differences(rows: Rows, part: str) -> str:
    """dmlcore minus plain loops, and the verdicts of rule 1."""
    lines = []
    for system, other in rule.COMPARED:
        judged = rule.verdicts(rows, system, other, part)
        entries, means = [], []
        for data in DATA:
            verdict = judged[data]
            mean, half = verdict.interval
            entries.append("" if math.isnan(half) else f"{mean:+.1f} ± {half:.1f} {verdict.word}")
            means += [] if math.isnan(mean) else [mean]
        lines.append([f"{system} - {other}", *entries, _with_half(means, "+.2f")])
    return table(["dmlcore - plain loop", *DATA, "mean of data sets"], lines)


def explanations(rows: Rows, _: str) -> str:
    """The default with one change, beside itself and beside the better plain loop; an interval where there are seeds enough."""
    lines = []
    for data in DATA:
        for system in plan.EXPLAINING:
            own, entries = rule.figures_of(rows, data, system), []
            for other in ("default", rule.BEST):
                mean, half = rule.verdicts(rows, system, other)[data].interval
                entries.append(f"{mean:+.1f}" if math.isnan(half) else f"{mean:+.1f} ± {half:.1f}")
            if own:
                lines.append([data, system, f"{len(own)}", f"{statistics.fmean(own.values()):.1f}", *entries])
    return table(["data set", "system", "seeds", "test MAP@R", "minus default", f"minus {rule.BEST}"], lines)


def search(rows: Rows, part: str) -> str:
    """Of a size of a batch: regret on validation classes, and test MAP@R minus today's, means over data sets."""
    size = int(part)
    return _options(rule.searched(rows, size), rule.today(size), "P x K, rate")


def mending(rows: Rows, _: str) -> str:
    """The same of other losses in the place of the default's."""
    return _options(rule.mended(rows), "default", "losses")


def _options(means: rule.Means, now: Any, what: str) -> str:
    if not means:
        return "Not run."
    taken, lines = rule.takes(means, means), []
    for option in next(iter(means.values())):
        lacks = statistics.fmean(rule.regret(means, data, option) for data in means)
        gains = [rule.gain(means, data, option, now) for data in means]
        words = [_name(option), *(["today"] if option == now else []), *(["taken"] if option == taken else [])]
        lines.append([", ".join(words), f"{lacks:.2f}", *(f"{gain:+.1f}" for gain in gains), f"{statistics.fmean(gains):+.2f}"])
    return table([what, "lacks on validation", *(f"{data}, test" for data in means), "mean, test"], lines)


def judged(rows: Rows, _: str) -> str:
    """What the rules take without each data set, and what that gains there."""
    lines = []
    every = [(f"batch of {size}", rule.searched(rows, size), rule.today(size), plan.MOST_LOSS) for size in SHAPES]
    for what, means, now, most in (*every, ("losses", rule.mended(rows), "default", plan.MOST_LOSS_MENDED)):
        if out := rule.left_out(means, now):
            gains = [gain for _, gain in out.values()]
            entries = [f"{_name(out[data][0])}: {out[data][1]:+.1f}" if data in out else "" for data in DATA]
            seeds = {f"{of[now]['seeds']}" for of in means.values()}
            verdict = "changes" if rule.changes(gains, most) else "stays"
            lines.append([what, " to ".join(sorted(seeds)), _name(now), *entries, _with_half(gains, "+.2f"), verdict])
    return table(["", "seeds", "today", *DATA, "mean", "verdict"], lines)


BLOCKS: dict[str, Callable[[Rows, str], str]] = {
    f.__name__: f for f in (answer, data_sets, figures, differences, explanations, search, mending, judged)
}


def write(rows: Rows, page: Path = PAGE) -> str:
    """Fill the markers `<!-- table: NAME -->` to `<!-- end -->` of the page, and return its text."""
    return fill(page, lambda name, part: BLOCKS[name](rows, part))
