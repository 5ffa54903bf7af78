"""Curves of a run as SVG, drawn from the records of `metrics.jsonl`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dmlcore.reports.html import brief, escape

POINTS = 300  # of a curve at most: neighbouring records are averaged
WIDTH, HEIGHT = 560, 230
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 12, 26
COLOURS = 10  # of the style
WIDE_RANGE = 30  # largest value over smallest, from which on an axis is logarithmic
TABLES = (
    ("Weights", "weights"),
    ("Share of active anchors", "active"),
    ("Gradient norms of the losses", "loss_gradient_norms"),
    ("Cosines between the gradients of losses", "loss_gradient_cosines"),
    ("Gradient norms before clipping", "gradient_norms"),
    ("Learning rates", "learning_rates"),
    ("Norms of raw embeddings", "embedding_norms"),
)


@dataclass(frozen=True)
class Curve:
    """Values over steps.

    Attributes:
        name: text.
        steps: ascending.
        values: finite, one per step.
    """

    name: str
    steps: list[float]
    values: list[float]


@dataclass(frozen=True)
class Chart:
    """Curves that share their axes.

    Attributes:
        title: text.
        curves: at least one.
    """

    title: str
    curves: list[Curve]


def charts_of_run(records: Sequence[dict[str, Any]]) -> list[Chart]:
    """Everything that a run measured, as far as it did.

    Args:
        records: lines of `metrics.jsonl`.
    """
    steps = [record for record in records if record.get("kind") == "step"]
    terms = [
        {
            "step": record.get("step"),
            "all": {"total": record.get("total"), **_dict(record, "terms"), **_dict(record, "extra_terms")},
        }
        for record in steps
    ]
    charts = [Chart("Losses", _curves(terms, "all")), Chart("Measures on the validation classes", validation_curves(records))]
    charts += [Chart(title, _curves(steps, key)) for title, key in TABLES]
    speed = [{"step": r.get("step"), "all": {"samples per second": r.get("images_per_second")}} for r in steps]
    charts.append(Chart("Speed", _curves(speed, "all")))
    return [chart for chart in charts if chart.curves]


def validation_curves(records: Sequence[dict[str, Any]]) -> list[Curve]:
    """R@1 and MAP@R of the evaluations."""
    rows = [
        {"step": record.get("step"), "all": {"R@1": record.get("recall@1"), "MAP@R": record.get("map@r")}}
        for record in records
        if record.get("kind") == "evaluation"
    ]
    return _curves(rows, "all")


def total_curve(records: Sequence[dict[str, Any]], name: str) -> list[Curve]:
    """The total loss under another name."""
    rows = [{"step": r.get("step"), "all": {name: r.get("total")}} for r in records if r.get("kind") == "step"]
    return _curves(rows, "all")


def _dict(record: dict[str, Any], key: str) -> dict[str, Any]:
    value = record.get(key)
    return value if isinstance(value, dict) else {}


def _curves(records: Iterable[dict[str, Any]], key: str) -> list[Curve]:
    columns: dict[str, tuple[list[float], list[float]]] = {}
    for record in records:
        step = record.get("step")
        for name, value in _dict(record, key).items():
            if isinstance(step, int) and isinstance(value, int | float) and math.isfinite(value):
                steps, values = columns.setdefault(name, ([], []))
                steps.append(step)
                values.append(value)
    return [Curve(name, *_thinned(*column)) for name, column in columns.items()]


def _thinned(steps: list[float], values: list[float]) -> tuple[list[float], list[float]]:
    """Means of neighbours, so that few points are left."""
    size = math.ceil(len(steps) / POINTS)
    if size == 1:
        return steps, values
    parts = [slice(start, start + size) for start in range(0, len(steps), size)]
    return [steps[part][-1] for part in parts], [math.fsum(values[part]) / len(values[part]) for part in parts]


def draw(charts: Sequence[Chart]) -> str:
    """Charts as HTML. All have the same steps below them, and a name has the same colour in all of them."""
    curves = [curve for chart in charts for curve in chart.curves]
    if not curves:
        return ""
    steps = min(curve.steps[0] for curve in curves), max(curve.steps[-1] for curve in curves)
    names = list(dict.fromkeys(curve.name for curve in curves))
    colours = {name: row % COLOURS for row, name in enumerate(names)}
    figures = (_draw(chart, number, steps, colours) for number, chart in enumerate(charts))
    return f'<div class="charts">{"".join(figures)}</div>'


def _draw(chart: Chart, number: int, steps: tuple[float, float], colours: dict[str, int]) -> str:
    """A chart with its legend; by its number the script finds its values."""
    values = [value for curve in chart.curves for value in curve.values]
    is_logarithmic = 0 < min(values) * WIDE_RANGE < max(values)
    y = _Axis(min(values), max(values), HEIGHT - BOTTOM, TOP, is_logarithmic)
    x = _Axis(*steps, LEFT, WIDTH - RIGHT, is_logarithmic=False, is_tight=True)
    parts = []
    for tick in y.ticks():
        place = y.place(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place:.1f}" y2="{place:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{place + 4:.1f}" text-anchor="end">{_short(tick)}</text>')
    for tick in x.ticks():
        at = x.place(tick)
        anchor = "end" if at > WIDTH - RIGHT - 16 else "middle"
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{_short(tick)}</text>')
    for row, curve in enumerate(chart.curves):
        points = " ".join(f"{x.place(s):.1f},{y.place(v):.1f}" for s, v in zip(curve.steps, curve.values, strict=True))
        shape = f'<polyline points="{points}"/>'
        if len(curve.steps) == 1:
            shape = f'<circle cx="{x.place(curve.steps[0]):.1f}" cy="{y.place(curve.values[0]):.1f}" r="3"/>'
        parts.append(f'<g class="curve c{colours[curve.name]}" data-row="{row}">{shape}</g>')
    legend = "".join(
        f'<button type="button" class="c{colours[curve.name]}" data-row="{row}">{escape(curve.name)}</button>'
        for row, curve in enumerate(chart.curves)
    )
    scale = " (logarithmic)" if is_logarithmic else ""
    return (
        f'<figure class="chart" data-chart="{number}" data-x="{x.low:.9g},{x.high:.9g},{LEFT},{WIDTH - RIGHT},{WIDTH}">'
        f"<figcaption>{escape(chart.title)}{scale}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title)}">{"".join(parts)}'
        f'<line class="at" y1="{TOP}" y2="{HEIGHT - BOTTOM}" x1="-9" x2="-9"/></svg>'
        f'<div class="legend">{legend}</div><p class="read">&nbsp;</p></figure>'
    )


def values_of(chart: Chart) -> list[Any]:
    """What the script needs of a chart: name, steps and values of each curve."""
    return [
        [brief(curve.name), [int(step) for step in curve.steps], [float(f"{value:.4g}") for value in curve.values]]
        for curve in chart.curves
    ]


def _short(value: float) -> str:
    """A number of an axis."""
    if value == 0:
        return "0"
    if abs(value) >= 1e5:
        return f"{value / 1e6:g}M" if abs(value) >= 1e6 else f"{value / 1e3:g}k"
    return f"{value:g}" if abs(value) >= 1e-3 else f"{value:.0e}".replace("e-0", "e-")


class _Axis:
    """From values to places in a picture.

    Args:
        low, high: the values that are to be seen.
        begin, end: the places of the ends.
        is_logarithmic: in the logarithm.
        is_tight: without a margin.
    """

    def __init__(self, low: float, high: float, begin: float, end: float, is_logarithmic: bool, is_tight: bool = False) -> None:
        self.is_logarithmic, self.begin, self.end = is_logarithmic, begin, end
        if low == high:
            low, high = min(low, 0.0), max(high, 0.0) or 1.0
        self.low, self.high = low, high
        if not is_tight and not is_logarithmic:
            margin = (high - low) * 0.04
            # A measure that begins at 0 or ends at 1 does not go beyond.
            self.low = low if low == 0 else low - margin
            self.high = high + margin

    def place(self, value: float) -> float:
        low, high = (math.log(self.low), math.log(self.high)) if self.is_logarithmic else (self.low, self.high)
        part = ((math.log(value) if self.is_logarithmic else value) - low) / (high - low)
        return self.begin + part * (self.end - self.begin)

    def ticks(self) -> list[float]:
        """Round numbers, three to seven."""
        if self.is_logarithmic:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            few = [10.0**decade for decade in decades if self.low <= 10.0**decade <= self.high]
            if len(few) > 7:
                return few[:: math.ceil(len(few) / 6)]
            if len(few) >= 3:
                return few
            return [t for d in decades for t in (10.0**d, 2 * 10.0**d, 5 * 10.0**d) if self.low <= t <= self.high]
        rough = (self.high - self.low) / 4
        size = 10.0 ** math.floor(math.log10(rough))
        step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough)
        first = math.ceil(self.low / step - 1e-9)
        return [round(k * step, 12) for k in range(first, math.floor(self.high / step + 1e-9) + 1)]
