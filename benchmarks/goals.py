"""The goals of performance, and what measured rows say about each. Only figures; `report.py` makes the table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.cases import ENSEMBLES, PAIRS, SCALING, SOFTMAX
from benchmarks.measuring import Row

Found = tuple[float, str]  # a figure, and which case and size it belongs to


@dataclass(frozen=True)
class Goal:
    """One line of the table.

    Attributes:
        what: the line's name.
        must, aim: bounds of every figure; NaN for no aim.
        figures: all measured figures that the goal speaks of.
        unit: behind figures and bounds.
        more_is_better: whether the bounds are lower bounds.
    """

    what: str
    must: float
    aim: float
    figures: Callable[[list[Row]], list[Found]]
    unit: str = "x"
    more_is_better: bool = False

    def worst(self, rows: list[Row]) -> Found | None:
        """The figure farthest on the wrong side, or None when nothing was measured."""
        figures = [figure for figure in self.figures(rows) if not math.isnan(figure[0])]
        return (min if self.more_is_better else max)(figures) if figures else None

    def holds(self, figure: float, bound: float) -> bool:
        return figure >= bound if self.more_is_better else figure <= bound


def number(row: Row, name: str) -> float:
    """A figure of a row read from CSV; NaN for an empty entry."""
    text = row.get(name)
    return float(text) if text not in (None, "") else math.nan


def _about(row: Row) -> str:
    classes = f", C = {row['classes']}" if int(row["classes"]) else ""
    whole, here = len(ENSEMBLES.get(row["case"], ())), int(row.get("members") or 0)
    part = f" ({here} of {whole} installed)" if 0 < here < whole else ""
    return f"{row['case']}{part}, N = {row['n']}{classes}"


def _rows(
    rows: list[Row], rival: str, cases: Iterator[str] | list[str], d: int, least: int = 0, most: int = 10**9
) -> list[Row]:
    names = set(cases)
    return [
        row
        for row in rows
        if row["benchmark"] == "losses"
        and (row["rival"], row["status"], row["malloc"]) == (rival, "ok", "default")
        and row["case"] in names
        and int(row["d"]) == d
        and least <= int(row["n"]) <= most
    ]


def _ratios(cases: list[str], d: int, least: int, most: int = 8192, classes: int = 0) -> Callable[[list[Row]], list[Found]]:
    return lambda rows: [
        (number(row, "ratio_to_products"), _about(row))
        for row in _rows(rows, "fused", cases, d, least, most)
        if int(row["classes"]) >= classes
    ]


def _faster(cases: list[str], rival: str, d: int, least: int) -> Callable[[list[Row]], list[Found]]:
    return lambda rows: [(number(row, "ratio_to_fused"), _about(row)) for row in _rows(rows, rival, cases, d, least)]


def _beyond(n: int, factor: float) -> Callable[[list[Row]], list[Found]]:
    """Microseconds of the whole call beyond so many times the products."""
    return lambda rows: [
        (1e6 * (number(row, "seconds") - factor * number(row, "products_seconds")), _about(row))
        for row in _rows(rows, "fused", ["ms", "eight"], 128, n, n)
    ]


def _memory(n: int) -> Callable[[list[Row]], list[Found]]:
    return lambda rows: [(number(row, "peak_mb"), _about(row)) for row in _rows(rows, "fused", ["ms", "eight"], 128, n, n)]


def _ran(rows: list[Row]) -> list[Found]:
    done = {row["case"] for row in _rows(rows, "fused", list(SCALING), 128, 32768)}
    tried = {row["case"] for row in rows if row["benchmark"] == "losses" and row["case"] in SCALING and int(row["n"]) == 32768}
    missing = ", ".join(case for case in SCALING if case not in done)
    return [(float(len(done)), f"without {missing}" if missing else "all")] if tried else []


def _threads(rows: list[Row]) -> list[Found]:
    return [(number(row, "speedup"), _about(row)) for row in _rows(rows, "threads", ["ms", "five"], 128, 2048)]


def _evaluator(rows: list[Row]) -> list[Found]:
    return [
        (number(row, "ratio_to_product"), row["case"])
        for row in rows
        if (row["benchmark"], row["rival"]) == ("evaluation", "dmlcore") and int(row["N"]) >= 60000
    ]


GOALS = [
    Goal("any one pair loss, N >= 2048, d = 128", 1.2, 1.05, _ratios(list(PAIRS), 128, 2048)),
    Goal("any one pair loss, N = 2048, d = 512", 1.15, 0.95, _ratios(list(PAIRS), 512, 2048, 2048)),
    Goal("five losses, d = 128, N >= 2048", 1.35, 1.2, _ratios(["five"], 128, 2048)),
    Goal("- times faster than pytorch-metric-learning", 60, math.nan, _faster(["five"], "pml", 128, 2048), "x", True),
    Goal("- times faster than torch.compile", 10, math.nan, _faster(["five"], "compiled", 128, 2048), "x", True),
    Goal("five losses, d = 512, N = 2048", 1.1, 1.0, _ratios(["five"], 512, 2048, 2048)),
    Goal("- times faster than pytorch-metric-learning", 30, math.nan, _faster(["five"], "pml", 512, 2048), "x", True),
    Goal("- times faster than torch.compile", 5, math.nan, _faster(["five"], "compiled", 512, 2048), "x", True),
    Goal("eight losses, d = 128, N >= 4096", 1.6, 1.35, _ratios(["eight"], 128, 4096)),
    Goal("one and eight losses, N = 512: call beyond 1.3 x products", 60, math.nan, _beyond(512, 1.3), " us"),
    Goal("one and eight losses, N = 128: call beyond 2 x products", 100, math.nan, _beyond(128, 2.0), " us"),
    Goal("proxy_anchor, C >= 1000, d = 128", 1.0, 0.85, _ratios(["proxy_anchor"], 128, 512, classes=1000)),
    Goal("softmax family, C >= 1000, N = 2048, d = 128", 1.0, math.nan, _ratios(SOFTMAX, 128, 2048, 2048, classes=1000)),
    Goal("extra memory, N = 8192", 32, 8, _memory(8192), " MB"),
    Goal("extra memory, N = 32768", 64, 32, _memory(32768), " MB"),
    Goal(f"run to the end at N = 32768: {', '.join(SCALING)}", len(SCALING), math.nan, _ran, " of 5", True),
    Goal("2 threads against 1, N >= 2048, d = 128", 1.7, 1.9, _threads, "x", True),
    Goal("evaluator, 60000 x 512 with exact mAP, of one full product", 0.6, 0.45, _evaluator),
]

SITUATIONS: dict[str, float] = {
    **{f"contrastive, {share} % of slopes": 0.6 for share in ("0.3", "1", "5")},
    "contrastive, 5 % of slopes, d = 512": 0.6,
    "one loss, N = 64": 3.0,
    "one loss, N = 128": 2.5,
    "five losses, N = 128": 3.0,
    "five losses, N = 256, d = 512": 1.5,
    "memory of 100,000, one loss": 1.15,
    "memory of 100,000, four losses": 1.3,
    "arcface, 100,000 proxies": 1.15,
    "proxy_anchor, 100,000 proxies": 1.15,
    "mined by windows": 1.3,
    "mined semihard, separated classes": 2.0,
    "smooth_ap, separated classes of 64": 4.0,
    "smooth_ap, separated classes of 256": 8.0,
    "smooth_ap, separated classes of 512": 15.0,
    "smooth_ap, classes of 4": 1.3,
    "smooth_ap, classes of 64": 4.0,
    "smooth_ap, classes of 256": 8.0,
    "triplet, classes of 256": 1.6,
    "triplet semihard, classes of 256": 1.6,
    "lifted_structure, classes of 256": 1.6,
    "ms, label matrix, N = 256": 2.5,
    "ms, label matrix, N = 2048": 1.6,
    "angular": 1.8,
    "snr_contrastive": 1.3,
    "intra_pair_variance, N = 128": 4.0,
    "training step on features, default losses": 1.25,
    "import of the losses": 2.3,
    "dmlcore plugins, again": 1.0,
    "a mistyped command": 0.3,
}
"""What cases of `situations` must reach: times the bare products, or CPU seconds for starts."""
