"""`python -m benchmarks losses --plot`: time and memory against the number of samples, logarithmic, a line per rival."""

from __future__ import annotations

import math
from pathlib import Path

from benchmarks.cases import RIVALS
from benchmarks.goals import number
from benchmarks.measuring import Row
from dmlcore.reports import pictures

CASES = {"ms": "one loss (ms)", "five": "five losses"}
NAMES = {"fused": "dmlcore", "plain": "plain PyTorch", "compiled": "torch.compile", "pml": "pytorch-metric-learning"}


def draw(rows: list[Row], file: Path) -> Path:
    """Draw the rows at d = 128 and return the file.

    Args:
        rows: as read from CSV.
        file: .svg or .png.

    Raises:
        SystemExit: matplotlib is not installed.
    """
    if not pictures.can_draw():
        raise SystemExit("--plot needs matplotlib: pip install dmlcore[plots]")
    pyplot = pictures.pyplot()
    figure, axes = pyplot.subplots(len(CASES), 2, figsize=(10, 4 * len(CASES)), sharex=True, squeeze=False)
    for line, (case, title) in zip(axes, CASES.items(), strict=True):
        measured = [
            row
            for row in rows
            if (row["case"], row["d"], row["malloc"], row["status"]) == (case, "128", "default", "ok")
            and row["benchmark"] == "losses"
        ]
        for axis, column, label in zip(line, ("seconds", "peak_mb"), ("seconds, forward + backward", "MB, extra"), strict=True):
            for rival in RIVALS:
                points = sorted((int(row["n"]), number(row, column)) for row in measured if row["rival"] == rival)
                points = [point for point in points if not math.isnan(point[1]) and point[1] > 0]
                if points:
                    axis.plot(*zip(*points, strict=True), marker="o", label=NAMES[rival])
            if column == "seconds":
                fused = [row for row in measured if row["rival"] == "fused"]
                bare = sorted((int(row["n"]), number(row, "products_seconds")) for row in fused)
                bare = [point for point in bare if not math.isnan(point[1])]
                if bare:
                    axis.plot(*zip(*bare, strict=True), color="gray", linestyle=":", label="bare products")
            axis.set(xscale="log", yscale="log", title=title, xlabel="samples N", ylabel=label)
            axis.grid(True, alpha=0.3)
            if axis.lines:
                axis.legend(fontsize="small")
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
    pyplot.close(figure)
    return file
