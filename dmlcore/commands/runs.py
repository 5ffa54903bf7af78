"""`dmlcore runs`: the runs in a folder, with the settings in which they differ and their scores."""

from __future__ import annotations

import dataclasses
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import App

from dmlcore import console
from dmlcore.errors import ConfigError, suggestion
from dmlcore.flags import COMMON, command, flag
from dmlcore.hookspecs import hookimpl

if TYPE_CHECKING:
    from dmlcore.training.catalogue import RunSummary

SCORES = {"val MAP@R": ("validation", "map@r"), "test R@1": ("test", "recall@1"), "test MAP@R": ("test", "map@r")}
COLUMNS = ("run", "state", "step", *SCORES)
DIFFERING = "settings that differ"
INDENT = "  "


@hookimpl
def dmlcore_commands(app: App) -> None:
    flags = [
        flag("folder", Path, "Where the runs lie, also in folders below.", is_positional=True).replace(default=Path("runs")),
        flag(
            "sort",
            str,
            f"What to sort by: {', '.join(COLUMNS)}, changed, or a setting, such as `learning_rate`; the highest scores and"
            " the latest changes come first.",
            "run",
        ),
        *COMMON,
    ]
    app.command(command(_runs, flags, "List the runs in a folder: states, scores, and settings that differ."), name="runs")


def _runs(folder: Path = Path("runs"), *, sort: str, json: bool, debug: bool) -> int:
    from dmlcore.training.catalogue import differing, list_runs

    runs = list_runs(folder)
    keys = differing(runs)
    runs = _sorted(runs, sort)
    if json:
        console.show_json({"folder": str(folder), "differing": keys, "runs": [dataclasses.asdict(run) for run in runs]})
    elif not runs:
        console.show(f"There is no run in {folder}. `dmlcore train` makes one.")
    else:
        show_runs(runs, keys)
    return 0


def _sorted(runs: list[RunSummary], column: str) -> list[RunSummary]:
    """In the order of a column: numbers of scores and times from the highest, others from the lowest; what is missing last."""
    names = {name.casefold(): name for name in (*COLUMNS, "changed")}
    names |= {name.removeprefix("test "): title for name, title in names.items()}
    settings = {key for run in runs for key in run.settings}
    name = names.get(column.casefold(), column)
    if name not in names.values() and name not in settings and runs:
        raise ConfigError(f"there is no column '{column}'.{suggestion(column, {*names.values(), *settings})}")
    is_falling = name in SCORES or name == "changed"

    def key(run: RunSummary) -> tuple[bool, bool, float, str]:
        value = _value(run, name)
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            return value is None, True, 0.0, str(value)
        return False, False, -number if is_falling else number, ""

    return sorted(runs, key=key)


def _value(run: RunSummary, name: str) -> Any:
    if name in SCORES:
        part, key = SCORES[name]
        return getattr(run, part).get(key)
    return {"run": run.name, "state": run.state, "step": run.step, "changed": run.changed}.get(name, run.settings.get(name))


def show_runs(runs: list[RunSummary], keys: list[str]) -> None:
    """A table with a column for each setting where that fits, else with one for all, else a block of lines for each run."""
    rows = [[*_cells(run), *(run.settings.get(key, "-") for key in keys)] for run in runs]
    entries = [_entries(run, keys) for run in runs]
    longest = [max(row, key=len, default="") for row in entries]
    if console.fits_table([*COLUMNS, *keys], rows):
        console.show_table([*COLUMNS, *keys], rows, has_names=True)
    elif console.fits_table([*COLUMNS, DIFFERING], [[*_cells(run), word] for run, word in zip(runs, longest, strict=True)]):
        folded = [[*_cells(run), ", ".join(row)] for run, row in zip(runs, entries, strict=True)]
        console.show_table([*COLUMNS, DIFFERING], folded, has_names=True)
    else:
        for run in runs:
            _show_block(run, keys)
    for run in runs:
        if run.problem:
            console.show(f"{run.name}: {run.problem}")


def _cells(run: RunSummary) -> list[str]:
    step = "-" if run.step is None else f"{run.step}/{run.steps}" if run.steps else str(run.step)
    scores = (_value(run, name) for name in SCORES)
    return [run.name, run.state, step, *("-" if score is None else f"{score:.3f}" for score in scores)]


def _entries(run: RunSummary, keys: list[str]) -> list[str]:
    return [f"{key}={run.settings[key]}" for key in keys if key in run.settings]


def _show_block(run: RunSummary, keys: list[str]) -> None:
    name, state, step, *scores = _cells(run)
    console.show(name)
    measures = [f"{label} {score}" for label, score in zip(SCORES, scores, strict=True) if score != "-"]
    for words in ([state, f"step {step}", *measures], _entries(run, keys)):
        # A blank within an entry must not part it from its beginning.
        entries = [word.replace(" ", "\0") for word in words]
        width = max(console.width(), 20)
        for line in textwrap.wrap(
            "  ".join(entries),
            width,
            initial_indent=INDENT,
            subsequent_indent=INDENT,
            break_on_hyphens=False,
            break_long_words=False,
        ):
            console.show(line.replace("\0", " "))
