"""The stored results, and the rate that they choose for a plain loop."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from benchmarks import rows as kept_rows
from benchmarks.outside.plan import RATED, RATES, Cell

Rows = dict[Cell, dict[str, Any]]


def read(file: Path) -> Rows:
    """The results so far."""
    return {Cell(**row["cell"]): row for row in kept_rows.read(file)}


def figure(rows: Rows, cell: Cell, name: str = "served", part: str = "test") -> float:
    """MAP@R of a run: of the embedding `served` or `whole`, on the classes of `test` or `validation`."""
    return rows[cell]["figures"][name][part]["MAP@R"]


def validated(rows: Rows, data: str, loss: str) -> dict[float, float] | None:
    """The mean validation MAP@R of a plain loop by its rate; None: not all of its runs are there."""
    means = {}
    for rate in RATES[loss]:
        own = [Cell("compare", data, loss, seed, rate) for seed in RATED]
        if any(cell not in rows for cell in own):
            return None
        means[rate] = statistics.fmean(figure(rows, cell, part="validation") for cell in own)
    return means


def rate_of(rows: Rows, data: str, loss: str) -> float | None:
    """The rate of a plain loop with the best mean validation MAP@R; None: not all of its runs are there."""
    means = validated(rows, data, loss)
    return max(means, key=lambda rate: means[rate]) if means else None
