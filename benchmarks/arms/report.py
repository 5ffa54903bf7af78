"""Fills docs/reports/arms.md from the stored results, and draws its picture."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from pathlib import Path

from benchmarks.arms import plan, rule
from benchmarks.arms.plan import ARMS, DATA, HEAD, HEADS, LENGTH, SYSTEMS, WIDTH
from benchmarks.arms.rule import Comparison, Side
from benchmarks.arms.runs import Rows, best_single
from benchmarks.defaults.sets import SETS
from benchmarks.markdown import fill, table
from dmlcore.reports import pictures
from dmlcore.reports.intervals import mean_and_half

PAGE = Path(__file__).parents[2] / "docs" / "reports" / "arms.md"


def _number(value: float, form: str = "+.1f") -> str:
    return "" if math.isnan(value) else format(value, form)


def _entry(comparison: Comparison, data: str) -> str:
    """A mean difference, with its interval from three seeds on; bold where that is above zero."""
    values = comparison.by_data.get(data)
    if not values:
        return ""
    mean, half = mean_and_half(values)
    if len(values) < rule.FEWEST:
        return f"{mean:+.1f}"
    return f"**{mean:+.1f} ± {half:.1f}**" if mean - half > 0 else f"{mean:+.1f} ± {half:.1f}"


def _over_data(comparison: Comparison) -> str:
    """The mean over data sets with its interval over these."""
    values = list(comparison.means.values())
    if len(values) < rule.FEWEST:
        return ""
    mean, half = mean_and_half(values)
    return f"**{mean:+.2f} ± {half:.2f}**" if mean - half > 0 else f"{mean:+.2f} ± {half:.2f}"


def _name(arm: str, system: str) -> str:
    return system if arm == "plain" else f"{system}, {arm}"


def data_sets(rows: Rows) -> str:
    """What was run, and the best single losses."""
    lines = []
    for data in DATA:
        seeds = rule.seeds_of(rows, data, ("plain", "default"))
        raw = [rows[data, "plain", "default", seed]["figures"]["raw"]["test"]["MAP@R"] for seed in seeds]
        own = [arm for arm in ARMS.values() if plan.applies(arm, SETS[data].kind) and not arm.added]
        counts = [len(rule.seeds_of(rows, data, (arm.name, arm.systems[0]))) for arm in own]
        average = statistics.fmean(raw) if raw else math.nan
        most, least = max(counts), min(counts)
        seeds_told = f"{least}" if least == most else f"{least} to {most}"
        lines.append([data, SETS[data].about, seeds_told, _number(average, ".1f"), best_single(rows, data) or ""])
    return table(["data set", "what it is", "seeds of an arm", "raw MAP@R", "best single loss"], lines)


def singles(rows: Rows) -> str:
    """Test MAP@R of the single losses as `wide`; the best of validation in bold."""
    lines = []
    for name in plan.SINGLES:
        entries = []
        for data in DATA:
            value = _number(_mean(rows, data, ("single", name)), ".1f")
            entries.append(f"**{value}**" if name == best_single(rows, data) else value)
        lines.append([name, *entries])
    return table(["loss", *DATA], lines)


def figures(rows: Rows) -> str:
    """Test MAP@R of every system with every trick, over all seeds that it has."""
    lines = []
    for arm in ARMS.values():
        for system in arm.systems:
            side = (arm.name, system)
            means = [_mean(rows, data, side) for data in DATA]
            seconds = [_number(rule.seconds(rows, kind, side), ".1f") for kind in plan.STEPS]
            lines.append([_name(*side), _width(*side), *(_number(mean, ".1f") for mean in means), *seconds])
    return table(["", "trained numbers", *DATA, "seconds, pictures", "seconds, tables"], lines)


def _mean(rows: Rows, data: str, side: Side) -> float:
    values = [rule.figure(rows, data, side, seed) for seed in rule.seeds_of(rows, data, side)]
    return statistics.fmean(values) if values else math.nan


def _width(arm: str, system: str) -> str:
    """Numbers that are trained, before compression."""
    if arm == "tasks" and system != "wide":
        return f"4 x {LENGTH}"
    return f"{WIDTH}" if arm == "soup" or system in ("default", "wide") else f"{HEADS} x {HEAD}"


def leads(rows: Rows) -> str:
    """Every ensemble with its trick minus each control, and what rule 1 says."""
    lines = []
    for verdict in rule.verdicts(rows):
        name = _name(verdict.arm.name, verdict.system)
        for other, comparison in (("same", verdict.same), ("wide", verdict.wide)):
            if comparison.by_data:
                trick = "" if other in verdict.arm.systems else f" ({verdict.arm.controls})"
                entries = [_entry(comparison, data) for data in DATA]
                lines.append([f"{name} - {other}{trick}", *entries, _over_data(comparison), "", ""])
        if verdict.lead.by_data:
            entries = [_entry(verdict.lead, data) for data in DATA]
            judged = "wins" if verdict.wins else f"no ({verdict.pictures} of 4, {verdict.tables} of 3)"
            lines.append(
                [f"{name} - the better control", *entries, _over_data(verdict.lead), _number(verdict.p, ".2f"), judged]
            )
    return table(["", *DATA, "mean", "p", "wins"], lines)


def gains(rows: Rows) -> str:
    """Every system with a trick minus itself without."""
    lines = []
    for arm in list(ARMS.values())[1:]:
        for system in arm.systems:
            comparison = rule.compare(rows, (arm.name, system), ("plain", system))
            if comparison.by_data:
                cost = rule.cost(rows, (arm.name, system), ("plain", system))
                entries = [_entry(comparison, data) for data in DATA]
                lines.append([_name(arm.name, system), *entries, _over_data(comparison), _number(cost, ".2f")])
    return table(["with the trick - without", *DATA, "mean", "cost"], lines)


def default(rows: Rows) -> str:
    """Every ensemble with its trick minus today's default, and what rule 2 says."""
    every = rule.tricks()
    compared = [rule.compare(rows, (arm.name, system), ("plain", "default")) for arm, system in every]
    lines = []
    corrections = rule.corrected(compared, [arm.added for arm, _ in every])
    for (arm, system), gain, p in zip(every, compared, corrections, strict=True):
        if gain.by_data:
            cost = rule.cost(rows, (arm.name, system))
            least = min(gain.means, key=lambda data: gain.means[data])
            verdict = "becomes the default" if rule.changes_default(gain, p, cost) else "stays"
            worst = f"{gain.means[least]:+.1f} ({least})"
            lines.append([_name(arm.name, system), _over_data(gain), _number(p, ".2f"), worst, _number(cost, ".2f"), verdict])
    return table(["", "minus today's default", "p", "worst", "cost", "default"], lines)


def after(rows: Rows) -> str:
    """What is done to plain runs after training, minus these runs; and the lead of the default when all are whitened."""
    lines = []
    for name, about in plan.AFTER.items():
        for system in SYSTEMS:
            comparison = rule.compare(rows, ("plain", system), ("plain", system), name=name)
            lines.append([f"{system}, {about}", *(_entry(comparison, data) for data in DATA), _over_data(comparison)])
    for other in ("same", "wide"):
        both = rule.compare(rows, ("plain", "default"), ("plain", other), name="whitened", base="whitened")
        lines.append([f"default - {other}, both whitened", *(_entry(both, data) for data in DATA), _over_data(both)])
    return table(["minus the plain run", *DATA, "mean"], lines)


BLOCKS: dict[str, Callable[[Rows], str]] = {f.__name__: f for f in (data_sets, singles, figures, leads, gains, default, after)}


def write(rows: Rows, page: Path = PAGE) -> str:
    """Fill the markers `<!-- table: NAME -->` to `<!-- end -->` of the page, and return its text."""
    return fill(page, lambda name, _: BLOCKS[name](rows))


def draw(rows: Rows, file: Path) -> Path:
    """The lead of each ensemble on the better of its controls: a point for each data set, the mean with its interval."""
    pyplot = pictures.pyplot()
    judged = [verdict for verdict in rule.verdicts(rows) if verdict.lead.by_data]
    figure, axis = pyplot.subplots(figsize=(8, 0.3 * len(judged) + 1.3))
    colours = {kind: f"C{number}" for number, kind in enumerate(plan.STEPS)}
    for row, verdict in enumerate(judged):
        for data, value in verdict.lead.means.items():
            axis.plot(value, row, "o", color=colours[SETS[data].kind], alpha=0.6, markersize=5)
        mean, half = mean_and_half(list(verdict.lead.means.values()))
        if not math.isnan(half):
            axis.errorbar(mean, row, xerr=half, fmt="|", color="black", markersize=11, capsize=3, linewidth=1)
    axis.axvline(0, color="black", linewidth=0.8)
    for kind, label in (("images", "pictures"), ("features", "tables")):
        axis.plot([], [], "o", color=colours[kind], label=label)
    axis.errorbar([], [], xerr=[], fmt="|", color="black", capsize=3, label="mean over data sets, 95 %")
    axis.set_yticks(range(len(judged)), [_name(v.arm.name, v.system) for v in judged], fontsize=8)
    axis.invert_yaxis()
    ticks = (-30, -10, -5, -2, 0, 2, 5, 10, 30)
    axis.set_xscale("symlog", linthresh=5, linscale=2)  # few differences are large, and they would hide the others
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_xticks([], minor=True)
    axis.set_xlabel("points of test MAP@R ahead of the better single-loss control with the same trick")
    axis.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)
    return file
