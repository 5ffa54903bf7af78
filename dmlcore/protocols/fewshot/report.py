"""The report of a grid: report.json, report.md and the picture, from the files of its cells alone."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dmlcore.errors import ConfigError
from dmlcore.files import plain, remove_temporaries, write_atomically
from dmlcore.protocols.cells import DONE, read_cell
from dmlcore.protocols.fewshot import curves
from dmlcore.protocols.fewshot.analysis import (
    UNADAPTED,
    Errors,
    means,
    orderings,
    paired,
    reduction,
    reductions_of_losses,
    regrets,
)
from dmlcore.protocols.fewshot.networks import INITS
from dmlcore.reports import pictures
from dmlcore.texts import in_markdown, in_picture

JSON, MARKDOWN, PICTURE = "report.json", "report.md", "curves.svg"


def read(folder: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Settings and result of every finished cell.

    Raises:
        ConfigError: the folder has none.
        TrainingError: a file is damaged.
    """
    paths = sorted((folder / DONE).glob("n*/*.json"))
    cells = [read_cell(path, lambda settings, result: result["arms"] and settings["n"]) for path in paths]
    if not cells:
        raise ConfigError(f"there is no result of `dmlcore fewshot` in {folder}: it has no {DONE}/n*/*.json")
    return cells


def summarise(cells: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    """Everything the report says, as one object."""
    errors = Errors.read((settings["n"], settings["replication"], result) for settings, result in cells)
    settings = {key: value for key, value in cells[0][0].items() if key not in ("n", "source_n", "replication")}
    counted = [arm for arm in UNADAPTED if arm in errors.values]
    diverged = {}
    for _, result in cells:
        for arm, shots in result["arms"].items():
            diverged[arm] = diverged.get(arm, 0) + sum(bool(measured.get("diverged")) for measured in shots.values())
    seconds = sum(trained.get("seconds", 0.0) for _, result in cells for trained in result["sources"].values())
    by_arm = [shots for _, result in cells for shots in result["arms"].values()]
    seconds += sum(measured.get("seconds", 0.0) for shots in by_arm for measured in shots.values())
    return {
        "settings": settings,
        "cells": len(cells),
        "training_seconds": seconds,
        "diverged": {arm: count for arm, count in diverged.items() if count},
        "means": means(errors),
        "paired": paired(errors),
        "reduction": reduction(errors),
        "reductions_of_losses": reductions_of_losses(errors),
        "orderings": orderings(errors),
        "regrets": regrets(errors, counted),
    }


def write(folder: Path) -> dict[str, Any]:
    """Write report.json, report.md and, where matplotlib is installed, curves.svg; returns what the first holds.

    Raises:
        ConfigError, TrainingError: as `read`.
    """
    summary = plain(summarise(read(folder)))
    remove_temporaries(folder)
    write_atomically(folder / JSON, (json.dumps(summary, indent=1) + "\n").encode())
    picture = pictures.can_draw()
    if picture:
        pictures.save(curves.figure([("", in_picture(summary["means"]))]), folder / PICTURE)
    write_atomically(folder / MARKDOWN, as_markdown(summary, picture=picture).encode(errors="backslashreplace"))
    return summary


def as_markdown(summary: dict[str, Any], *, picture: bool) -> str:
    """The report as a page."""
    summary = in_markdown(summary)
    settings = summary["settings"]
    target = settings["target_classes"] or ("drawn too" if settings["source_classes"] == "random" else "all others")
    lines = [
        "# Few-shot transfer",
        "",
        f"`{settings['data']}`: source classes {settings['source_classes']}, target classes {target};"
        f" {summary['cells']} cells, {summary['training_seconds']:.0f} s of training. Network:"
        f" {' '.join(str(part) for part in (settings['model'] or 'default', settings['model_options']) if part)},"
        f" {settings['embedding_dim']} numbers; {INITS[settings['init']]}; stopping:"
        f" {settings['stopping']}.",
        "",
        "Error in % ± standard error over replications; the smallest of a column in bold. At k = 1 no adaptation is defined.",
        "",
        *errors_table(summary["means"]),
        "",
    ]
    if picture:
        lines += [f"![accuracy against k]({PICTURE})", ""]
    if summary["diverged"]:
        named = ", ".join(f"{arm} {count}" for arm, count in summary["diverged"].items())
        lines += [f"Trainings ended by a loss that was not finite: {named}.", ""]
    lines += ["## What adaptation gains", "", *describe_reduction(summary["reduction"]), ""]
    for arm, reduction_of_loss in summary["reductions_of_losses"].items():
        lines += [f"{arm} over the best of all arms without adaptation: {percent(reduction_of_loss)}.", ""]
    lines += [
        "Paired differences in points of error, with 95 % t-intervals over replications: above zero where the adapted arm errs"
        " less; bold where the interval leaves zero out.",
        "",
        *paired_table(summary["paired"]),
        "",
        "## The paper's orderings",
        "",
        *orderings_table(summary["orderings"]),
        "",
        *describe_regrets(summary["regrets"]),
        "",
    ]
    return "\n".join(lines)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, a line per row."""
    return ["| " + " | ".join(entries) + " |" for entries in [list(header), ["---"] * len(header), *rows]]


def errors_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Mean errors, an arm per row, a column per n and k."""
    places = sorted({(row["n"], row["k"]) for row in rows})
    by_key = {(row["arm"], row["n"], row["k"]): row for row in rows}
    least = {place: min(row["error"] for row in rows if (row["n"], row["k"]) == place) for place in places}
    lines = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        entries = [arm]
        for place in places:
            row = by_key.get((arm, *place))
            if row is None:
                entries.append("")
                continue
            error = "" if _is_missing(row["standard_error"]) else f" ± {100 * row['standard_error']:.1f}"
            text = f"{100 * row['error']:.1f}"
            entries.append((f"**{text}**" if row["error"] == least[place] else text) + error)
        lines.append(entries)
    return table(["arm", *(f"n {n}, k {k}" for n, k in places)], lines)


def paired_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Differences, a pair of arms per row, a column per n and k."""
    places = sorted({(row["n"], row["k"]) for row in rows})
    by_key = {(row["arm"], row["against"], row["n"], row["k"]): row for row in rows}
    lines = []
    for arm, other in dict.fromkeys((row["arm"], row["against"]) for row in rows):
        rows_of_pair = [by_key.get((arm, other, *place)) for place in places]
        lines.append([f"{arm} against {other}", *("" if row is None else describe_difference(row) for row in rows_of_pair)])
    return table(["", *(f"n {n}, k {k}" for n, k in places)], lines)


def describe_difference(row: dict[str, Any]) -> str:
    """A paired difference in points of error with its interval."""
    if _is_missing(row["half"]):
        return f"{100 * row['difference']:+.1f}"
    text = f"{100 * row['difference']:+.1f} ± {100 * row['half']:.1f}"
    return text if row["verdict"] == "noise" else f"**{text}**"


def describe_reduction(reduction: dict[str, Any] | None) -> list[str]:
    """The mean reduction of the error as a sentence."""
    if reduction is None:
        return ["No k with adapted arms, so no reduction of the error."]
    by_arm = ", ".join(f"{arm} {percent(of_arm)}" for arm, of_arm in reduction["by_arm"].items())
    left = f", {reduction['left_out']} left out, where the best method has no error" if reduction["left_out"] else ""
    return [
        f"Mean reduction of the error by the two hybrids over the best method without adaptation: **{percent(reduction)}**"
        f" ({by_arm}; {reduction['places']} pairs of n and k{left}; the paper reports 34 %). The interval is over replications."
    ]


def percent(reduction: dict[str, Any]) -> str:
    """A reduction with its interval."""
    half = "" if _is_missing(reduction["half"]) else f" ± {100 * reduction['half']:.0f}"
    return f"{100 * reduction['mean']:.0f}{half} %"


def orderings_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Every claim with its counts."""
    lines = [
        [row["claim"], f"{row['holds']} of {row['places']}", str(row["clear"]), str(row["against"]), row["verdict"]]
        for row in rows
    ]
    return table(["claim", "holds by means", "interval for it", "interval against it", "verdict"], lines)


def describe_regrets(regrets: dict[str, dict[str, float]]) -> list[str]:
    """How robust the methods without adaptation are, as a sentence."""
    named = [f"{arm} {100 * regret['mean']:.1f} (worst {100 * regret['worst']:.1f})" for arm, regret in regrets.items()]
    return [f"Behind the best of them, mean over n and k, in points: {', '.join(named)}."] if named else []


def _is_missing(value: float | None) -> bool:
    return value is None or math.isnan(value)
