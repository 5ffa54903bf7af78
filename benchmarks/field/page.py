"""The report of a comparison: a page of Markdown with its tables, and a picture with error bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from benchmarks.field import comparing
from benchmarks.field.arms import Arm
from benchmarks.field.comparing import COLUMNS, FORMS, Column
from benchmarks.field.stages import Budget, Results
from benchmarks.markdown import table
from dmlcore.files import write_atomically
from dmlcore.reports import pictures

SHOWN: Column = ("concatenated", "MAP@R")  # that sorts the arms
HEADS = tuple(f"{form} {measure}" for form, measure in COLUMNS)


def write(results: Results, arms: Sequence[Arm], budget: Budget, about: str, page: Path) -> Path | None:
    """Write the page, and the picture beside it where matplotlib is installed; returns the picture's path.

    Args:
        results: that are there, possibly not all yet.
        arms: of the comparison.
        budget: of each.
        about: a paragraph in front, or nothing.
        page: a .md file.
    """
    picture = None
    if pictures.can_draw() and any(results.repeats.values()):
        picture = draw(results, arms, page.with_suffix(".svg"))
    page.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(page, text(results, arms, budget, about, picture.name if picture else "").encode())
    return picture


def text(results: Results, arms: Sequence[Arm], budget: Budget, about: str, picture: str) -> str:
    """The page, without a picture where its name is empty."""
    reference = comparing.best_single(results, arms)
    blocks = ["# Losses and ensembles on one data set", about, _protocol(arms, budget), _state(results, arms, budget)]
    blocks += ["## Test classes", measures(results, arms)]
    if picture:
        blocks.append(f"![MAP@R of every arm on test classes, with 95 % intervals]({picture})")
    if reference is not None:
        blocks += ["## Difference to the best single loss", _about_differences(reference), gaps(results, arms, reference)]
    blocks += ["## What the searches found", searches(results, arms)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _protocol(arms: Sequence[Arm], budget: Budget) -> str:
    settings = arms[0].config.settings
    name = settings.model.trunk
    trunk = "the default" if name is None else f"`{name}`"
    return (
        f"Data: `{Path(str(settings.data.source)).name}`. Trunk: {trunk}. The protocol is that of Musgrave, Belongie"
        f" and Lim, *A Metric Learning Reality Check*, ECCV 2020. Every arm got {budget.trials} trials of equal length"
        f" (pruner: {budget.pruner}), each on {budget.folds} folds of the training and validation classes. What was best there"
        f" was trained with {budget.seeds} seeds, a model for each of {budget.folds} folds. The models are measured on the test"
        f" classes apart (*separate*, their mean) and side by side (*concatenated*). No test class chose anything."
    )


def _state(results: Results, arms: Sequence[Arm], budget: Budget) -> str:
    done = sum(len(results.repeats[arm.name]) for arm in arms)
    of = budget.seeds * len(arms)
    return "" if done == of else f"**Not complete: {done} of {of} repeats are there.** The same command goes on."


def _sorted(results: Results, arms: Sequence[Arm]) -> list[Arm]:
    """The best first, as far as there are results."""
    return sorted(
        (arm for arm in arms if results.repeats[arm.name]), key=lambda arm: -comparing.mean(results, arm.name, SHOWN)[0]
    )


def measures(results: Results, arms: Sequence[Arm]) -> str:
    """Means over seeds with halves of their intervals."""
    lines = []
    for arm in _sorted(results, arms):
        repeats = list(results.repeats[arm.name].values())
        columns = [interval(*comparing.mean(results, arm.name, column)) for column in COLUMNS]
        hours = sum(repeat["seconds"] for repeat in repeats) / 3600
        lines.append([f"`{arm.name}`", *columns, str(repeats[0]["length"]), str(len(repeats)), f"{hours:.2f}"])
    for name, columns in _baselines(results).items():
        lines.append([name, *columns, "", "", ""])
    return table(["arm", *HEADS, "concatenated length", "seeds", "hours"], lines) if lines else "No repeat is complete yet."


def _baselines(results: Results) -> dict[str, list[str]]:
    """What needs no training, of the first repeat."""
    first = next((repeat for repeats in results.repeats.values() for repeat in repeats.values()), None)
    rows = {}
    for name, values in (first or {"baselines": {}})["baselines"].items():
        if name.startswith("raw"):
            rows[name] = [f"{100 * values[m]:.1f}" if form == FORMS[0] and m in values else "" for form, m in COLUMNS]
    return rows


def _about_differences(reference: str) -> str:
    return (
        f"`{reference}` had the best score of all single losses on the folds of the search. Points of the arm less those of"
        f" `{reference}`, paired by seed, with 95 % t-intervals. In brackets the p-value of the paired t-test, by Holm's"
        f" correction for the number of arms in the column. **Bold** are those below 0.05. All seeds have the same test"
        f" classes, so the intervals say nothing about other data."
    )


def gaps(results: Results, arms: Sequence[Arm], reference: str) -> str:
    """Paired differences to a single loss, with corrected p-values."""
    names = [arm.name for arm in _sorted(results, arms) if arm.name != reference]
    columns = {column: comparing.differences(results, names, reference, column) for column in COLUMNS}
    corrected = {column: comparing.corrected(by_arm) for column, by_arm in columns.items()}
    lines = []
    for name in names:
        entries = []
        for column, by_arm in columns.items():
            if name not in by_arm:
                entries.append("")
                continue
            entry = f"{by_arm[name].mean:+.2f}"
            if name in corrected[column]:
                p = corrected[column][name]
                entry = f"{entry} ± {by_arm[name].half:.2f} ({_p_value(p)})"
                entry = f"**{entry}**" if p < 0.05 else entry
            entries.append(entry)
        lines.append([f"`{name}`", *entries])
    return table(["arm", *HEADS], lines)


def searches(results: Results, arms: Sequence[Arm]) -> str:
    """Score and values of every search, and its cost."""
    lines = []
    for arm in arms:
        if arm.name not in results.tuned:
            continue
        row = results.tuned[arm.name]
        values = ", ".join(f"{name} {_number(value)}" for name, value in row["values"].items())
        before = "" if row["before"] is None else f"{100 * row['before']:.1f}"
        score = f"{100 * row['validation']:.1f}"
        lines.append([f"`{arm.name}`", before, score, str(row["trials"]), f"{row['seconds'] / 3600:.2f}", values])
    head = ["arm", "MAP@R as it was", "best MAP@R", "trials", "hours", "best values"]
    return table(head, lines) if lines else "No search is complete yet."


def draw(results: Results, arms: Sequence[Arm], file: Path) -> Path:
    """MAP@R of every arm, separate and concatenated, with 95 % intervals."""
    pyplot = pictures.pyplot()
    rows = _sorted(results, arms)[::-1]
    figure, axis = pyplot.subplots(figsize=(7, 0.45 * len(rows) + 1.4))
    for offset, (form, colour) in enumerate(zip(FORMS, ("#b0b0b0", "#2060a0"), strict=True)):
        pairs = [comparing.mean(results, arm.name, (form, "MAP@R")) for arm in rows]
        halves = [0.0 if math.isnan(half) else half for _, half in pairs]
        places = [place + 0.16 * (offset - 0.5) for place in range(len(rows))]
        axis.errorbar([pair[0] for pair in pairs], places, xerr=halves, fmt="o", color=colour, capsize=3, label=form)
    axis.set_yticks(range(len(rows)), [arm.name for arm in rows])
    axis.set_xlabel("MAP@R on test classes, percent, 95 % intervals over seeds")
    axis.grid(axis="x", alpha=0.3)
    axis.legend(loc="lower right")
    figure.tight_layout()
    return pictures.save(figure, file)


def interval(average: float, half: float) -> str:
    return f"{average:.1f}" if math.isnan(half) else f"{average:.1f} ± {half:.1f}"


def _p_value(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _number(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
