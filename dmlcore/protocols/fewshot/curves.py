"""The picture of a grid: accuracy against k, a panel per n, bands of one standard error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dmlcore.protocols.fewshot.arms import ADAPTED
from dmlcore.reports.pictures import pyplot

_COLOURS = ("tab:grey", "black", "tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink")

LEGEND = 1.4  # inches below the panels


def figure(grids: Sequence[tuple[str, Sequence[dict[str, Any]]]]) -> Any:
    """A figure with a row of panels per grid; adapted arms in the colour of their form without adaptation, but whole lines.

    Args:
        grids: a title and the rows of `analysis.means`.
    """
    plt = pyplot()
    width = max(len({row["n"] for row in rows}) for _, rows in grids)
    height = 3.4 * len(grids) + LEGEND
    picture, axes = plt.subplots(len(grids), width, figsize=(max(4.2 * width, 7), height), squeeze=False)
    colours: dict[str, str] = {}
    for (title, rows), line in zip(grids, axes, strict=True):
        numbers = sorted({row["n"] for row in rows})
        for axis, n in zip(line, numbers, strict=False):
            for arm in dict.fromkeys(row["arm"] for row in rows):
                _curve(axis, arm, [row for row in rows if row["arm"] == arm and row["n"] == n], colours)
            axis.set(xscale="log", xlabel="k", ylabel="accuracy", title=f"{title}{', ' if title else ''}n = {n}")
            shots = sorted({row["k"] for row in rows if row["n"] == n})
            axis.set_xticks(shots, [str(k) for k in shots])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
        for axis in line[len(numbers) :]:
            axis.set_visible(False)
    labels: dict[str, Any] = {}
    for axis in axes.flat:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            labels.setdefault(label, handle)
    picture.legend(labels.values(), labels.keys(), loc="lower center", fontsize=8, ncols=2)
    picture.tight_layout(rect=(0, LEGEND / height, 1, 1))
    return picture


def _curve(axis: Any, arm: str, rows: Sequence[dict[str, Any]], colours: dict[str, str]) -> None:
    if not rows:
        return
    base = arm.removeprefix(ADAPTED)
    colour = colours.setdefault(base, _COLOURS[len(colours) % len(_COLOURS)])
    rows = sorted(rows, key=lambda row: row["k"])
    shots, accuracy = [row["k"] for row in rows], [1 - row["error"] for row in rows]
    errors = [row["standard_error"] for row in rows]
    bands = [0.0 if error is None or math.isnan(error) else error for error in errors]
    is_dashed = arm == base and base not in ("baseline", "weight_transfer")
    axis.plot(shots, accuracy, "--" if is_dashed else "-", color=colour, marker=".", label=arm, linewidth=1.3)
    low = [a - b for a, b in zip(accuracy, bands, strict=True)]
    high = [a + b for a, b in zip(accuracy, bands, strict=True)]
    axis.fill_between(shots, low, high, color=colour, alpha=0.15, linewidth=0)
