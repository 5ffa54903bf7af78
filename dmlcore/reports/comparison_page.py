"""The page that sets several runs side by side."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dmlcore.config import differing_keys, flat_values
from dmlcore.evaluation.result_table import columns_of
from dmlcore.reports import curves
from dmlcore.reports.html import Raw, commands, escape, page, table
from dmlcore.reports.intervals import mean_and_half
from dmlcore.reports.run_facts import RunFacts
from dmlcore.reports.run_page import settings_table

CLASSES = 2_000  # rows of the table of classes
SCORES = {"MAP@R": "map_at_r", "R@1": "recall"}  # of a class


def comparison_page(runs: Sequence[RunFacts]) -> bytes:
    """The page as a file's content.

    Args:
        runs: at least two. The first is what the others are compared with.
    """
    names = unique_names(runs)
    charts = _charts(runs, names)
    sections = [
        ("Differing settings", _settings(runs, names)),
        ("Results", _results(runs, names)),
        ("Paired differences", _differences(runs, names)),
        ("Curves", curves.draw(charts)),
        ("Classes", _classes(runs, names)),
        ("Commands", commands(_commands(runs))),
    ]
    about = f'<p class="about">{len(runs)} runs. Differences are to the first, {escape(names[0])}.</p>'
    return page("Runs compared", about, sections, {"charts": [curves.values_of(chart) for chart in charts]})


def unique_names(runs: Sequence[RunFacts]) -> list[str]:
    """Names of the folders, with those above them where two share a name."""
    names = [run.name for run in runs]
    depth = 2
    while len(set(names)) < len(names):
        names = ["/".join(run.folder.resolve().parts[-depth:]) for run in runs]
        depth += 1
    return names


def _settings(runs: Sequence[RunFacts], names: list[str]) -> str:
    flat = [flat_values(run.settings) for run in runs]
    differing = differing_keys(flat)
    if not differing:
        return "<p>All settings are the same.</p>"
    return settings_table([{key: values[key] for key in differing if key in values} for values in flat], names)


def _results(runs: Sequence[RunFacts], names: list[str]) -> str:
    parts = []
    measured = [(run.result or {}).get("metrics", {}) for run in runs]
    shown = columns_of({f"{number} {part}": of for number, by_part in enumerate(measured) for part, of in by_part.items()})
    for part in ("test", "validation"):
        rows = []
        for name, by_part in zip(names, measured, strict=True):
            if part in by_part:
                rows.append((name, *(by_part[part].get(key) for key in shown.values())))
        if rows:
            parts.append(table([part, *shown], rows, kind="results"))
    baselines: dict[tuple[str, ...], tuple[object, ...]] = {}
    for run in runs:
        for label, by_part in (run.result or {}).get("baselines", {}).items():
            if "test" in by_part:
                row = (label, *(by_part["test"].get(key) for key in shown.values()))
                baselines.setdefault(tuple(map(str, row)), row)
    if baselines:
        parts.append(table(["baselines, test", *shown], baselines.values(), kind="results"))
    unfinished = [name for name, run in zip(names, runs, strict=True) if run.result is None]
    if unfinished:
        parts.append(f'<p class="warning">Not finished: {escape(", ".join(unfinished))}.</p>')
    return "".join(parts)


@dataclass(frozen=True)
class Difference:
    """One run less another, paired by the classes that both were measured on.

    Attributes:
        classes: how many are shared.
        mean: of the differences; NaN without a class.
        half: of the 95 % t-interval; NaN below two classes.
        better: classes with a higher measure.
        worse: classes with a lower one.
    """

    classes: int
    mean: float
    half: float
    better: int
    worse: int


def difference(first: RunFacts, second: RunFacts, score: str) -> Difference:
    """How much higher a measure of the second run is.

    Args:
        first, second: finished runs, or neither.
        score: a value of `SCORES`.
    """
    a, b = class_measures(first, score), class_measures(second, score)
    gains = [b[name] - a[name] for name in a if name in b]
    mean, half = mean_and_half(gains) if gains else (math.nan, math.nan)
    return Difference(len(gains), mean, half, sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains))


def class_measures(run: RunFacts, score: str) -> dict[str, float]:
    """A measure by the name of each class that has something to find."""
    if run.view is None:
        return {}
    values = getattr(run.view.scores, score)
    return {name: float(value) for name, value in zip(run.view.dataset.class_names, values, strict=True) if value == value}


def _are_of_one_part(first: RunFacts, second: RunFacts) -> bool:
    return first.view is not None and second.view is not None and first.view.name == second.view.name


def _differences(runs: Sequence[RunFacts], names: list[str]) -> str:
    rows = []
    for name, run in zip(names[1:], runs[1:], strict=True):
        if not _are_of_one_part(runs[0], run) or runs[0].data["name"] != run.data["name"]:
            rows.append((name, "not comparable", None, None, None, None, None))
            continue
        for label, score in SCORES.items():
            gain = difference(runs[0], run, score)
            interval = f"{gain.mean - gain.half:+.3f} to {gain.mean + gain.half:+.3f}" if gain.half == gain.half else "–"
            mean = f"{gain.mean:+.3f}" if gain.classes else "–"
            rows.append((name, label, gain.classes, Raw(mean), Raw(interval), gain.better, gain.worse))
    part = runs[0].view.name if runs[0].view else "test"
    text = (
        f"Means of the {part} classes that both runs were measured on: this run less the first. Each class counts once, so the"
        " means differ a little from those over samples. The interval is a 95 % t-interval over classes. It does not hold the"
        " chance of the seed."
    )
    columns = ["run", "measure", "classes", "difference", "95 % interval", "classes better", "classes worse"]
    return f"<p>{text}</p>{table(columns, rows, kind='differences')}"


def _charts(runs: Sequence[RunFacts], names: list[str]) -> list[curves.Chart]:
    by_measure: dict[str, list[curves.Curve]] = {}
    for name, run in zip(names, runs, strict=True):
        for curve in curves.validation_curves(run.records):
            by_measure.setdefault(f"Validation {curve.name}", []).append(curves.Curve(name, curve.steps, curve.values))
        for curve in curves.total_curve(run.records, name):
            by_measure.setdefault("Total loss", []).append(curve)
    return [curves.Chart(title, lines) for title, lines in by_measure.items()]


def _classes(runs: Sequence[RunFacts], names: list[str]) -> str:
    comparable = [index for index, run in enumerate(runs) if index == 0 or _are_of_one_part(runs[0], run)]
    measures = [class_measures(runs[index], SCORES["MAP@R"]) for index in comparable]
    shared = [name for name in measures[0] if all(name in values for values in measures[1:])]
    if len(comparable) < 2 or not shared:
        return ""
    spread = np.array([[values[name] for values in measures] for name in shared])  # [C, runs]
    order = np.argsort(-np.abs(spread - spread[:, :1]).max(1), kind="stable")[:CLASSES]
    rows = []
    for row in order:
        change = spread[row, -1] - spread[row, 0]
        rows.append((shared[row], *(float(value) for value in spread[row]), float(change)))
    last = f"{names[comparable[-1]]} less {names[comparable[0]]}"
    columns = ["class", *(names[index] for index in comparable), last if len(comparable) > 2 else "difference"]
    note = f"MAP@R of {len(order):,} of {len(shared):,} shared classes, the largest differences first. Click a heading to sort."
    return f'<p>{note}</p><div class="tall">{table(columns, rows, sorts=True)}</div>'


def _commands(runs: Sequence[RunFacts]) -> list[tuple[str, str]]:
    folders = " ".join(shlex.quote(str(run.folder)) for run in runs)
    lines = [("Make this page again.", f"dmlcore report {folders}")]
    return [*lines, *((f"Look at {run.name}.", f"dmlcore report {shlex.quote(str(run.folder))}") for run in runs)]
