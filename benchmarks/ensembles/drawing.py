"""The pictures of the comparison of ensembles."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from pathlib import Path

from benchmarks.ensembles.arms import arms
from benchmarks.ensembles.report import summary
from benchmarks.ensembles.runs import Runs
from dmlcore.reports import pictures
from dmlcore.reports.intervals import mean_and_half as interval


def draw(runs: Runs, file: Path) -> Path:
    """Bars with intervals, one panel per data set."""
    pyplot = pictures.pyplot()
    data_sets = summary(runs)
    names = [arm.name for arm in arms() if any(("arms", arm.name, results.seeds[0]) in results.rows for results in data_sets)]
    figure, axes = pyplot.subplots(1, len(data_sets), figsize=(3.2 * len(data_sets) + 3, 0.22 * len(names) + 1), sharey=True)
    for axis, results in zip(axes if len(data_sets) > 1 else [axes], data_sets, strict=True):
        intervals: Iterable[tuple[float, float]] = [
            interval(values) if values else (math.nan, math.nan)
            for name in names
            for values in [results.differences(("arms", name, None), ("singles", results.ranking[0], None))]
        ]
        means, halves = zip(*intervals, strict=True)
        axis.barh(range(len(names)), means, xerr=halves, color="tab:blue", alpha=0.6)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_title(f"{results.data} (b: {results.ranking[0]})", fontsize=9)
        axis.set_xlabel("MAP@R - b, points")
        axis.set_yticks(range(len(names)), names, fontsize=7)
    next(iter(axes if len(data_sets) > 1 else [axes])).invert_yaxis()
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    return file


def draw_weights(runs: Runs, file: Path) -> Path | None:
    """Shares of the weights over the steps of every weighting that learns, on the first data set and seed; None without any."""
    pyplot = pictures.pyplot()
    learning = [
        row
        for results in summary(runs)[:1]
        for (stage, arm, seed), row in results.rows.items()
        if stage == "arms" and seed == results.seeds[0] and ("shared, " in arm or arm.startswith("WEL"))
    ]
    if not learning:
        return None
    columns = 4
    lines = -(-len(learning) // columns)
    figure, axes = pyplot.subplots(lines, columns, figsize=(3 * columns, 2.2 * lines), sharex=True, sharey=True, squeeze=False)
    for axis, row in zip(axes.flat, learning, strict=False):
        steps = sorted(row["weights"], key=int)
        for index, loss in enumerate(row["losses"]):
            shares = [row["weights"][step][index] / sum(row["weights"][step]) for step in steps]
            axis.plot([int(step) for step in steps], shares, label=loss)
        axis.set_title(row["arm"], fontsize=8)
        axis.set_ylim(0, 1)
        axis.legend(fontsize=6)
    for axis in axes.flat[len(learning) :]:
        axis.axis("off")
    figure.supxlabel("step", fontsize=8)
    figure.supylabel("share of the weight", fontsize=8)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    return file


SHORT = {  # the arms that a user decides between: what they are, and which embedding is served
    "wide: b, 256": ("one loss, 256 numbers brought to 64", "compressed"),
    "M3 wide, equal norms, untuned": ("three losses on one embedding, 256 to 64", "compressed"),
    "T3 wide heads": ("a head for each of three losses, 768 to 64", "compressed"),
    "same wide: b x 3, 256": ("three heads of one loss, 768 to 64", "compressed"),
    "nets: b x 3": ("three networks of one loss, 192 to 64", "compressed"),
}


def draw_short(runs: Runs, file: Path) -> Path:
    """What a user decides between, a point for each data set, against the best single loss of 64 numbers."""
    pyplot = pictures.pyplot()
    figure, axis = pyplot.subplots(figsize=(8, 3))
    for column, results in enumerate(summary(runs)):
        best = ("singles", results.ranking[0], None)
        means = [statistics.fmean(results.differences(("arms", arm, name), best)) for arm, (_, name) in SHORT.items()]
        rows = [row + (column - 2.5) * 0.1 for row in range(len(SHORT))]
        axis.plot(means, rows, "o", markersize=6, label=results.data)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(SHORT)), [words for words, _ in SHORT.values()], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("points of test MAP@R above the best single loss of 64 numbers")
    axis.legend(fontsize=7, loc="center right")
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)
    return file
