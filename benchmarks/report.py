"""`python -m benchmarks report`: the tables between the markers of docs/reports/performance.md, from the measured rows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from benchmarks.cases import PROXIES, RIVALS
from benchmarks.goals import GOALS, SITUATIONS, number
from benchmarks.gpu.report import gpu
from benchmarks.markdown import fill, table
from benchmarks.measuring import Row, read

EARLIER = "°"
"""Behind a figure of another machine or version than most of the newest."""
PAGE = Path(__file__).parents[1] / "docs" / "reports" / "performance.md"


def _figure(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.0f}"


def _bare(value: float) -> str:
    return f"{value:g}"


def _losses(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["benchmark"] == "losses"]


def goals(rows: list[Row]) -> str:
    """Every goal beside the worst figure measured, wins and losses alike."""
    lines = []
    for goal in GOALS:
        worst = goal.worst(rows)
        bound = ("at least " if goal.more_is_better else "") + _bare(goal.must) + goal.unit
        aim = "" if math.isnan(goal.aim) else _bare(goal.aim) + goal.unit
        if worst is None:
            lines.append([goal.what, bound, aim, "not measured", ""])
            continue
        verdict = _verdict(goal.holds(worst[0], goal.must))
        if not math.isnan(goal.aim) and goal.holds(worst[0], goal.aim):
            verdict = "aim reached"
        lines.append([goal.what, bound, aim, f"{_figure(worst[0])}{goal.unit} ({worst[1]})", verdict])
    return table(["what", "must reach", "aim", "worst measured", ""], lines)


def _grid(rows: list[Row], entry: Callable[[Row], str], malloc: str = "default") -> str:
    """Tables per dimension: a line per case, a column per N; `entry` of the fused, plain, compiled and peer rows."""
    finished = [row for row in _losses(rows) if row["malloc"] == malloc and row["rival"] in RIVALS]
    rows_by_key = {(row["case"], row["classes"], row["d"], row["n"], row["rival"]): row for row in finished}
    newest = Counter(_machine(row) for row in finished if row["rival"] == "fused" and row["n"] == "2048").most_common(1)

    def text(row: Row) -> str:
        return entry(row) + ("" if newest and _machine(row) == newest[0][0] else EARLIER)

    parts = []
    for d in sorted({row["d"] for row in finished}, key=int):
        sizes = sorted({row["n"] for row in finished if row["d"] == d}, key=int)
        lines = []
        for case, classes in dict.fromkeys((row["case"], row["classes"]) for row in finished if row["d"] == d):
            entries = []
            for n in sizes:
                rivals = [rows_by_key.get((case, classes, d, n, rival)) for rival in RIVALS]
                texts = ["-" if row is None else text(row) for row in rivals]
                entries.append(" / ".join(texts) if set(texts) != {"-"} else "")
            if any(entries):
                lines.append([case + (f", C = {classes}" if case in PROXIES else ""), *entries])
        parts.append(f"d = {d}\n\n" + table(["case", *(f"N = {n}" for n in sizes)], lines))
    return "\n\n".join(parts)


def ratios(rows: list[Row]) -> str:
    """Ratios to the bare products: fused / plain / compiled / pytorch-metric-learning; `*` where a rival did not finish."""
    return _grid(rows, lambda row: _figure(number(row, "ratio_to_products")) if row["status"] == "ok" else "*")


def memory(rows: list[Row]) -> str:
    """MB over inputs and gradients, in the same order."""
    return _grid([row for row in rows if not math.isnan(number(row, "peak_mb"))], lambda row: _figure(number(row, "peak_mb")))


def calls(rows: list[Row]) -> str:
    """Whole calls of small batches in microseconds, and the products alone."""
    lines = [
        [row["case"], row["n"], row["d"], f"{number(row, 'microseconds'):.0f}", f"{1e6 * number(row, 'products_seconds'):.0f}"]
        for row in _losses(rows)
        if row["rival"] == "fused" and row["status"] == "ok" and int(row["n"]) <= 512 and row.get("microseconds")
    ]
    return table(["case", "N", "d", "forward + backward, us", "products, us"], lines)


def threads(rows: list[Row]) -> str:
    """Wall time of one thread over that of two."""
    lines = [
        [row["case"], row["n"], row["d"], row["threads"], _figure(number(row, "speedup"))]
        for row in _losses(rows)
        if row["rival"] == "threads" and row["status"] == "ok"
    ]
    return table(["case", "N", "d", "threads", "times faster than one"], lines)


def allocator(rows: list[Row]) -> str:
    """Rivals under glibc as it comes, and told to keep its memory: ratios to the bare products."""
    finished = {
        tuple(row[k] for k in ("case", "rival", "n", "d", "malloc")): row for row in _losses(rows) if row["status"] == "ok"
    }
    lines = []
    for (case, rival, n, d, malloc), row in finished.items():
        as_it_comes = finished.get((case, rival, n, d, "default"))
        if malloc == "keep" and as_it_comes is not None:
            pair = [_figure(number(either, "ratio_to_products")) for either in (as_it_comes, row)]
            lines.append([case, rival, n, d, *pair])
    return table(["case", "rival", "N", "d", "as it comes", "memory kept"], lines)


def unfinished(rows: list[Row]) -> str:
    """What did not run to the end, and why."""
    lines = [
        [row["case"], row["rival"], row["n"], row["d"], f"{row['status']}: {row.get('detail') or ''}"]
        for row in _losses(rows)
        if row["status"] != "ok"
    ]
    return table(["case", "rival", "N", "d", "why"], lines) if lines else "Everything that was tried ran to the end."


def evaluation(rows: list[Row]) -> str:
    """Ratios to one full product per size and rival, of rivals that were measured with the same code as dmlcore."""
    rows = [row for row in rows if row["benchmark"] == "evaluation"]
    rivals = [rival for rival in dict.fromkeys(row["rival"] for row in rows) if rival != "product"]
    rows_by_key = {(row["case"], row["rival"]): row for row in rows}
    lines = []
    for case in dict.fromkeys(row["case"] for row in rows):
        ours = _version(rows_by_key.get((case, "dmlcore"), {}))
        own = [rows_by_key.get((case, rival), {}) for rival in rivals]
        lines.append([case, *(_figure(number(row if _version(row) == ours else {}, "ratio_to_product")) for row in own)])
    return table(["case", *rivals], lines)


def _version(row: Row) -> list[str]:
    """With what a row was measured."""
    return [str(row.get("commit", "")), *_machine(row)]


def _machine(row: Row) -> tuple[str, ...]:
    return tuple(str(row.get(name, "")) for name in ("torch", "blas", "level", "device"))


def situations(rows: list[Row]) -> str:
    """Ratios to the bare products before and after, and CPU seconds of starts."""

    lines = [[*_case(row), _situation(row, "against_"), _situation(row, "")] for row in rows if row.get("against_seconds")]
    return table(["case", "N", "d", "before", "now"], lines)


def situations_now(rows: list[Row]) -> str:
    """The same of one installation, beside what must be reached."""
    lines = []
    for row in rows:
        if row.get("against_seconds"):
            continue
        must, ratio = SITUATIONS.get(str(row["case"])), number(row, "ratio_to_products")
        figure = number(row, "seconds") if math.isnan(ratio) else ratio
        verdict = ["", ""] if must is None else [f"{must:g}{' s' if math.isnan(ratio) else 'x'}", _verdict(figure <= must)]
        lines.append([*_case(row), _situation(row, ""), *verdict])
    return table(["case", "N", "d", "now", "must reach", ""], lines)


def _verdict(holds: bool) -> str:
    return "reached" if holds else "missed"


def _case(row: Row) -> list[str]:
    return [str(row.get(name, "")) for name in ("case", "n", "d")]


def _situation(row: Row, arm: str) -> str:
    ratio = number(row, f"{arm}ratio_to_products")
    return f"{number(row, f'{arm}seconds'):.2f} s" if math.isnan(ratio) else f"{_figure(ratio)}x"


def machine(rows: list[Row]) -> str:
    """Where, with what, and under which settings the rows were measured."""
    lines = []
    for name, noun in (
        ("device", "device"),
        ("level", "instruction set"),
        ("blas", "products"),
        ("torch", "torch"),
        ("commit", "commit"),
        ("allocator", "allocator"),
    ):
        values = sorted({str(row[name]) for row in rows if row.get(name)})
        if values:
            lines.append(f"- {noun}: {', '.join(values)}")
    return "\n".join(lines)


def products(rows: list[Row]) -> str:
    """Rates of products, and losses with our own products beside the vendor's."""
    sizes = list(dict.fromkeys((row["n"], row["d"]) for row in rows))
    rates = {(row["case"], row["n"], row["d"]): number(row, "gigaflops") for row in rows if row["gigaflops"]}
    shares = {(row["case"], row["n"], row["d"]): number(row, "ratio") for row in rows if row["ratio"]}
    names, losses = (list(dict.fromkeys(key[0] for key in part)) for part in (rates, shares))
    lines = []
    for n, d in sizes:
        entries = [f"{rates[name, n, d]:.0f}" if (name, n, d) in rates else "" for name in names]
        peak = rates.get(("peak", n, d), math.nan)
        of_peak = [_figure(rates[name, n, d] / peak) if (name, n, d) in rates else "" for name in names[1:]]
        lines.append([n, d, *entries, *of_peak, *(_figure(shares[x, n, d]) if (x, n, d) in shares else "" for x in losses)])
    header = [*names, *(f"{name}, of the peak" for name in names[1:]), *(f"{name}, own / vendor" for name in losses)]
    return table(["N", "d", *header], lines)


BLOCKS = {f.__name__: f for f in (goals, ratios, memory, calls, threads, allocator, unfinished, evaluation, machine)}


def starts(rows: list[Row]) -> str:
    """The first and the second start with very many pictures, now and before there was an index of the source's files."""
    by_key = {(row["case"], int(row["n"]), row["start"], row["rival"]): row for row in rows}
    lines = []
    for n, case, start in sorted({(int(row["n"]), str(row["case"]), str(row["start"])) for row in rows}):
        entries = [f"`{case}`", f"{n:,}", start]
        for rival in ("dmlcore", "against"):
            row = by_key.get((case, n, start, rival))
            if row is None:
                entries += ["-", "-", "-"]
                continue
            entries += [f"{number(row, 'cpu_seconds'):.1f}", f"{number(row, 'held_bytes') + number(row, 'mapped_bytes'):.0f}"]
            entries.append(f"{number(row, 'peak_bytes'):.0f}")
        lines.append(entries)
    header = ["CPU s", "bytes", "at most"]
    return table(["source", "pictures", "start", *header, *(f"{name}, before" for name in header)], lines)


def write(page: Path | None, results: Path) -> str:
    """Fill the page's markers, `<!-- table: NAME -->` to `<!-- end -->`, and return it.

    Args:
        page: None: docs/reports/performance.md.
        results: a CSV file, or a folder of them.

    Raises:
        KeyError: a marker with an unknown name.
    """
    files = [file for file in sorted(results.glob("*.csv")) if "quick" not in file.name] if results.is_dir() else [results]
    every = [row for file in files for row in read(file)]
    rows = [row for row in every if row["benchmark"] in ("losses", "evaluation")]
    blocks = {name: block(rows) for name, block in BLOCKS.items()} | {"gpu": gpu([r for r in every if r["benchmark"] == "gpu"])}
    met = [row for row in every if row["benchmark"] == "situations"]
    blocks |= {"situations": situations(met), "situations_now": situations_now(met)}
    blocks["products"] = products([row for row in every if row["benchmark"] == "products"])
    blocks["starts"] = starts([row for row in every if row["benchmark"] == "starts"])
    return fill(page or PAGE, lambda name, _: blocks[name])
