"""`python -m benchmarks.report FILE.csv ...`: the Markdown tables of docs/performance.md from measured rows."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from benchmarks.measuring import Row

RIVALS = ("fused", "plain", "compiled", "pml")


def _number(text: str) -> str:
    if text in ("", "nan"):
        return "-"
    value = float(text)
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def _table(header: list[str], lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *lines])


def losses(rows: list[Row]) -> str:
    """Ratios to the bare products (fused | plain | compiled | pytorch-metric-learning) per case and size, then memory."""
    rows = [row for row in rows if row["benchmark"] == "losses"]
    sizes = sorted({(int(row["d"]), int(row["N"])) for row in rows})
    names = list(dict.fromkeys(row["case"] for row in rows))
    found = {(row["case"], int(row["d"]), int(row["N"]), row["rival"]): row for row in rows}

    def cells(name: str, key: str, d: int, n: int) -> str:
        return " / ".join(_number(found.get((name, d, n, rival), {}).get(key, "")) for rival in RIVALS)

    parts = []
    for d in sorted({d for d, _ in sizes}):
        counts = [n for width, n in sizes if width == d]
        lines = [[name, *(cells(name, "ratio_to_products", d, n) for n in counts)] for name in names]
        parts.append(f"d = {d}\n\n" + _table(["case", *(f"N = {n}" for n in counts)], lines))
    memory = [[name, *(cells(name, "peak_mb", 128, n) for n in (2048, 8192))] for name in names]
    parts.append("MB over inputs and gradients, d = 128\n\n" + _table(["case", "N = 2048", "N = 8192"], memory))
    return "\n\n".join(parts)


def evaluation(rows: list[Row]) -> str:
    """Ratios to one full product per size and rival."""
    rows = [row for row in rows if row["benchmark"] == "evaluation"]
    rivals = list(dict.fromkeys(row["rival"] for row in rows))
    found = {(row["case"], row["N"], row["d"], row["rival"]): row for row in rows}
    keys = list(dict.fromkeys(key[:3] for key in found))
    lines = [[c, *(_number(found.get((c, n, d, r), {}).get("ratio_to_product", "")) for r in rivals)] for c, n, d in keys]
    return _table(["case", *rivals], lines)


if __name__ == "__main__":
    everything = [row for name in sys.argv[1:] for row in csv.DictReader(Path(name).open())]
    for table in (losses, evaluation):
        if any(row["benchmark"] == table.__name__ for row in everything):
            print(table(everything) + "\n")
