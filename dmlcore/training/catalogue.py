"""The runs below a folder: their states, scores and settings, read from their files. No model is loaded, no code is run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dmlcore.config import differing_keys, flat_values
from dmlcore.errors import ConfigError, DmlcoreError
from dmlcore.locks import is_locked
from dmlcore.training.changes import CHANGEABLE
from dmlcore.training.folder import CONFIG, RunFolder
from dmlcore.training.sources import Source

DEPTH = 3  # folders below each other in which runs are looked for
State = Literal["finished", "running", "interrupted", "damaged"]


@dataclass(frozen=True)
class RunSummary:
    """A run as its files tell of it.

    Attributes:
        name: its path below the folder.
        path: of the run.
        state: `running` while a process has its lock; `damaged`: a file cannot be read.
        step: that is recorded last; None where nothing is.
        steps: of the whole run.
        validation: measures on the validation classes, of the checkpoint that was chosen or is the best so far.
        test: measures on the test classes, of a finished run.
        settings: of `config.toml` as text: settings by key, options by `table.option`.
        seconds: that a finished run took.
        changed: time of the last change, seconds since 1970.
        problem: what is damaged.
    """

    name: str
    path: Path
    state: State
    step: int | None
    steps: int | None
    validation: dict[str, float]
    test: dict[str, float]
    settings: dict[str, str]
    seconds: float | None
    changed: float
    problem: str = ""


def list_runs(folder: str | Path) -> list[RunSummary]:
    """All runs in a folder and below it, in the order of their names.

    Raises:
        ConfigError: there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigError(f"there is no folder '{folder}'; name the one that your runs lie in")
    return [_summary(path, folder) for path in _run_folders(folder)]


def differing(runs: Sequence[RunSummary]) -> list[str]:
    """The settings that are not the same in all runs and may change what is learnt, in the order of the configuration."""
    idle = {*CHANGEABLE} - {"steps", "epochs", "patience", "accumulate"}
    return [key for key in differing_keys([run.settings for run in runs]) if key not in idle]


def _run_folders(folder: Path) -> Iterator[Path]:
    for path, below, files in os.walk(folder):
        place = Path(path)
        if CONFIG in files and RunFolder(place).checkpoints.is_dir():
            below.clear()  # a search for members keeps its trials below
            yield place
        elif len(place.relative_to(folder).parts) >= DEPTH:
            below.clear()
        below[:] = sorted(name for name in below if not name.startswith("."))


def _summary(path: Path, folder: Path) -> RunSummary:
    run = RunFolder(path)
    name = path.resolve().name if path == folder else str(path.relative_to(folder))
    settings: dict[str, str] = {}
    step, steps, seconds, problem = None, None, None, ""
    validation: dict[str, float] = {}
    test: dict[str, float] = {}
    state: State = "running" if is_locked(path) else "interrupted"
    try:
        source = Source.read_run(run.config)
        settings = flat_values({**source.values, **source.tables})
        steps = _count(source.values.get("steps"))
        if run.result.exists() and state != "running":
            result = run.read_result()
            state, step, steps = "finished", _count(result.get("steps")), _count(result.get("steps"))
            seconds = result.get("wall_seconds")
            metrics = result.get("metrics", {})
            validation, test = _numbers(metrics.get("validation")), _numbers(metrics.get("test"))
        else:
            records = run.records()
            step = max((record.get("step", 0) for record in records), default=None)
            evaluations = [_numbers(record) for record in records if record.get("kind") == "evaluation"]
            validation = max(evaluations, key=lambda values: values.get("map@r", -1.0), default={})
    except DmlcoreError as error:
        state, problem = "damaged", str(error)
    return RunSummary(name, path, state, step, steps, validation, test, settings, seconds, _changed(run), problem)


def _numbers(values: Any) -> dict[str, float]:
    if not isinstance(values, dict):
        return {}
    return {
        key: float(value) for key, value in values.items() if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _changed(run: RunFolder) -> float:
    times = [path.stat().st_mtime for path in (run.config, run.metrics, run.result) if path.exists()]
    return max(times, default=0.0)
