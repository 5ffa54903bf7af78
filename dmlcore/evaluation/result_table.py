"""The table of what was measured: its columns and rows. How it is shown is of commands and pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dmlcore.evaluation.metrics import RECALL_AT

HALF = "± (95 %)"  # the row of half intervals


def columns(recall_at: Sequence[int] = RECALL_AT) -> dict[str, str]:
    """The columns of a table of results: their headings, and the measure in each."""
    return {**{f"R@{k}": f"recall@{k}" for k in recall_at}, "R-prec": "r_precision", "MAP@R": "map@r", "mAP": "map"}


def columns_of(metrics: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The columns of a table of what was measured, by part."""
    ks = dict.fromkeys(int(name[7:]) for values in metrics.values() for name in values if name.startswith("recall@"))
    return columns(tuple(ks) or RECALL_AT)


def table_rows(
    metrics: dict[str, dict[str, Any]],
    baselines: dict[str, dict[str, dict[str, Any]]],
    halves: dict[str, dict[str, float]] | None = None,
    measures: Sequence[str] = tuple(columns().values()),
) -> list[tuple[str, list[float | None]]]:
    """Rows of the table of results: a label, and a number per measure.

    Args:
        metrics: by part (`validation`, `test`).
        baselines: by name, then by part.
        halves: of intervals, by part, which stand below the metrics.
        measures: their names.
    """
    rows = []
    for part, values in metrics.items():
        rows.append((part, [values.get(key) for key in measures]))
        if halves and part in halves:
            rows.append((f"  {HALF}", [halves[part].get(key) for key in measures]))
        for name, parts in baselines.items():
            if part in parts:
                rows.append((f"  {name}", [parts[part].get(key) for key in measures]))
    return rows
