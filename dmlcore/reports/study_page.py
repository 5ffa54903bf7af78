"""The page about a study: what each arm reached, how the trials went, and what their values had to do with it."""

from __future__ import annotations

import html
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmlcore.reports import curves
from dmlcore.reports.html import Raw, commands, escape, page, table

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = curves.WIDTH, curves.HEIGHT, curves.LEFT, curves.RIGHT, curves.TOP, curves.BOTTOM
_EDGE = 0.04  # of the width of a picture, on both sides of its points


@dataclass(frozen=True)
class ArmFacts:
    """What the page tells of an arm.

    Attributes:
        name: of the arm.
        searched: names of what was searched, each with whether its range is logarithmic.
        trials: `number`, `values`, `score` (None: given up or failed), `last`, `failure`, of each.
        importance: of the values, by name, with sum 1; empty: not known.
        row: of the results: `validation`, `before`, `best`, `trials`, `pruned`, `failed`, `steps`, `seconds`, `command`, and
            `metrics` once the winner is tested.
        link: the page of the winner's run; empty: there is none.
    """

    name: str
    searched: list[tuple[str, bool]]
    trials: list[dict[str, Any]]
    importance: dict[str, float]
    row: dict[str, Any]
    link: str


def study_page(folder: Path, folds: int, steps: int, arms: Sequence[ArmFacts], comparison: str = "") -> bytes:
    """The page as a file's content.

    Args:
        folder: of the study.
        folds: of a trial.
        steps: of a training.
        arms: at least one.
        comparison: the page that compares the winners; empty: there is none.
    """
    charts = _history(arms)
    sections = [
        ("Arms", _results(arms, folds, comparison)),
        ("Best settings", _best(arms)),
        ("History", curves.draw(charts)),
        ("Values and scores", "".join(map(_scatter, arms))),
        ("Importance", _importance(arms)),
        ("Trials", "".join(map(_trials, arms))),
        ("Commands", commands(_commands(folder, arms))),
    ]
    where = f"{folds} class-disjoint folds" if folds > 1 else "the validation classes"
    about = (
        f'<p class="about">A study in {escape(folder)}: {len(arms)} arms, trained {steps:,} steps a time, on {where}.'
        " A score is the MAP@R of validation classes. No trial saw a test class.</p>"
    )
    return page(f"Study {folder.name}", about, sections, {"charts": [curves.values_of(chart) for chart in charts]})


def _results(arms: Sequence[ArmFacts], folds: int, comparison: str) -> str:
    columns = ["arm", "trials", "given up", "failed", "steps", "seconds", "score before", "best score", "± 95 %"]
    is_tested = any("metrics" in arm.row for arm in arms)
    columns += ["test R@1", "test MAP@R", "run"] if is_tested else []
    rows = []
    for arm in arms:
        row = arm.row
        score, half = row["validation"]
        cells: list[object] = [arm.name, *(int(row[key]) for key in ("trials", "pruned", "failed", "steps", "seconds"))]
        cells += [row["before"], score, half]
        if is_tested:
            test = row.get("metrics", {}).get("test", {})
            link = Raw(f'<a href="{html.escape(arm.link, quote=True)}">page</a>') if arm.link else None
            cells += [test.get("recall@1"), test.get("map@r"), link]
        rows.append(tuple(cells))
    text = "The best of many scores is high by chance too: only the test measures compare fairly with what was not searched."
    text += f" The interval is over the {folds} folds." if folds > 1 else ""
    more = f'<p><a href="{html.escape(comparison, quote=True)}">The runs of the winners side by side</a></p>'
    return f"{table(columns, rows, kind='results')}<p>{text}</p>{more if comparison else ''}"


def _best(arms: Sequence[ArmFacts]) -> str:
    names = list(dict.fromkeys(name for arm in arms for name, _ in arm.searched))
    rows = [(name, *(_text(arm.row["best"]["values"].get(name)) for arm in arms)) for name in names]
    return table(["setting", *(arm.name for arm in arms)], rows)


def _text(value: Any) -> str:
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _history(arms: Sequence[ArmFacts]) -> list[curves.Chart]:
    """The best score so far over the trials, and the score of each."""
    best, every = [], []
    for arm in arms:
        steps, values, highest = [], [], []
        for place, trial in enumerate(arm.trials, 1):
            if trial["score"] is not None:
                steps.append(float(place))
                values.append(float(trial["score"]))
                highest.append(max(values))
        if steps:
            best.append(curves.Curve(arm.name, steps, highest))
            every.append(curves.Curve(arm.name, steps, values))
    charts = [curves.Chart("Best score so far, by trial", best), curves.Chart("Score of each trial", every)]
    return [chart for chart in charts if chart.curves]


def _scatter(arm: ArmFacts) -> str:
    """A picture for each searched value: points of complete trials, and faint ones of those that were given up."""
    points = [(trial, trial["score"] if trial["score"] is not None else trial["last"]) for trial in arm.trials]
    points = [(trial, float(value)) for trial, value in points if value is not None]
    if not points:
        return ""
    low, high = min(value for _, value in points), max(value for _, value in points)
    figures = [_picture(arm, name, is_log, points, low, high) for name, is_log in arm.searched]
    return f'<h3>{escape(arm.name)}</h3><div class="charts">{"".join(figures)}</div>'


def _picture(
    arm: ArmFacts, name: str, is_log: bool, points: Sequence[tuple[dict[str, Any], float]], low: float, high: float
) -> str:
    values = [trial["values"].get(name) for trial, _ in points]
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    words: list[str] = []
    if len(numbers) == len(values):
        places = [math.log10(v) if is_log else float(v) for v in numbers]
        ends = (min(numbers), max(numbers))
        labels = [f"{end:.3g}" for end in ends]
    else:
        words = sorted({_text(value) for value in values})
        places = [float(words.index(_text(value))) for value in values]
        labels = [words[0], words[-1]] if len(words) < 4 else [f"{words[0]} …", words[-1]]
    first, last = min(places), max(places)
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    parts = [f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>' for y in (TOP, HEIGHT - BOTTOM)]
    parts += [
        f'<text x="{LEFT - 6}" y="{y}" text-anchor="end">{value:.3f}</text>'
        for y, value in ((TOP + 8, high), (HEIGHT - BOTTOM, low))
    ]
    for anchor, x, label in (("start", LEFT, labels[0]), ("end", WIDTH - RIGHT, labels[-1])):
        parts.append(f'<text x="{x}" y="{HEIGHT - 8}" text-anchor="{anchor}">{escape(label)}</text>')
    for (trial, value), place, shown in zip(points, places, values, strict=True):
        across = (place - first) / (last - first) if last > first else 0.5
        up = (value - low) / (high - low) if high > low else 0.5
        x = LEFT + width * (_EDGE + (1 - 2 * _EDGE) * across)
        y = HEIGHT - BOTTOM - height * (_EDGE + (1 - 2 * _EDGE) * up)
        state = "" if trial["score"] is not None else ", given up"
        tip = escape(f"trial {trial['number']}: {_text(shown)}, {value:.3f}{state}")
        look = (
            'fill="currentColor" opacity="0.75"'
            if trial["score"] is not None
            else 'fill="none" stroke="currentColor" opacity="0.5"'
        )
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" {look}><title>{tip}</title></circle>')
    scale = " (logarithmic)" if is_log and not words else ""
    label = escape(f"{name} and the score, arm {arm.name}")
    return (
        f'<figure class="scatter"><figcaption>{escape(name)}{scale}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg></figure>'
    )


def _importance(arms: Sequence[ArmFacts]) -> str:
    rows = [(arm.name, name, value) for arm in arms for name, value in arm.importance.items()]
    if not rows:
        return ""
    text = "How much a value decides whether a trial is among the best tenth (PED-ANOVA). The shares of an arm add up to 1."
    return f"<p>{text}</p>{table(['arm', 'setting', 'share'], rows, sorts=True)}"


def _trials(arm: ArmFacts) -> str:
    names = [name for name, _ in arm.searched]
    rows = []
    for trial in arm.trials:
        state = "failed" if trial["failure"] else "given up" if trial["score"] is None else "complete"
        rows.append(
            (trial["number"], state, trial["score"], *(_text(trial["values"].get(n)) for n in names), trial["failure"] or "")
        )
    heading = f"<h3>{escape(arm.name)}</h3>"
    return f'{heading}<div class="tall">{table(["trial", "state", "score", *names, "why"], rows, sorts=True)}</div>'


def _commands(folder: Path, arms: Sequence[ArmFacts]) -> list[tuple[str, str]]:
    lines = [(f"Train the winner of {arm.name} again.", arm.row["command"]) for arm in arms]
    return [*lines, ("See the study again.", f"dmlcore tune --resume {shlex.quote(str(folder))}")]
