"""Runs cases one after the other, each in a process of its own, and writes a result after each. Knows nothing of devices.

A case may have parts: one process does them in turn and prints a line of JSON after each. A part that hangs or crashes ends the
process. It is written down, and another process goes on with the parts after it.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.first.watching import Ending, watch

Row = dict[str, Any]
MARK = "@part "
"""Begins a line with a part's result: a JSON object with at least `status`."""
SPOILED = 70
"""Exit status of a process that reported its part, but whose device answers no more: another process does the rest."""
WRONG = ("failed", "crashed", "hung")
AGAIN = ("time", "skipped")
"""States that a later run tries again. All others are results."""


def by_exit_status(ending: Ending) -> tuple[str, str]:
    """State and detail of a process without parts."""
    return ("passed" if ending.status == 0 else "failed", " | ".join(ending.lines[-3:])[:600])


@dataclass(frozen=True)
class Case:
    """What one process does.

    Attributes:
        name: unique.
        stage: what it belongs to, in the report and in the shares of the time.
        command: program and arguments.
        parts: their names, added to the command. Without any, the end of the process is the result.
        seconds: limit of the process, or of each part.
        start: seconds more for the first part of a process, which imports and opens the device.
        environment: added to the process's.
        needs: case, or case/part, that must have passed.
        skip: why it cannot run here; empty where it can.
        judge: state and detail from the end of a process without parts.
        advice: what to do where it goes wrong.
    """

    name: str
    stage: str
    command: tuple[str, ...]
    parts: tuple[str, ...] = ()
    seconds: float = 30.0
    start: float = 60.0
    environment: Mapping[str, str] = field(default_factory=dict)
    needs: str = ""
    skip: str = ""
    judge: Callable[[Ending], tuple[str, str]] = by_exit_status
    advice: str = ""

    @property
    def keys(self) -> list[str]:
        return [f"{self.name}/{part}" for part in self.parts] or [self.name]


class Results:
    """The file of results, a line of JSON each. It is complete after every result.

    Args:
        file: where it lies. One of another identity is set aside, since its results say nothing about this one.
        identity: what all rows have in common: device, versions, commit.
        fresh: set what there is aside in any case.
    """

    def __init__(self, file: Path, identity: Row, fresh: bool = False) -> None:
        self.file, self.identity = file, identity
        rows = read(file)
        self.set_aside: Path | None = None
        if rows and (fresh or any(row.get(name) != value for row in rows for name, value in identity.items())):
            self.set_aside = file.with_name(f"{file.stem}-earlier{file.suffix}")
            file.replace(self.set_aside)
            rows = []
        self.rows: dict[str, Row] = {str(row["key"]): row for row in rows if row["status"] not in AGAIN}

    def add(self, row: Row) -> None:
        """Keep a row and write all."""
        self.rows[str(row["key"])] = {**row, **self.identity}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.file.with_name(self.file.name + ".new")  # an interruption leaves the old file
        unfinished.write_text("".join(json.dumps(row) + "\n" for row in self.rows.values()))
        unfinished.replace(self.file)

    def passed(self, key: str) -> bool:
        return self.rows.get(key, {}).get("status") == "passed"


def read(file: Path) -> list[Row]:
    """The rows of a file of results; none where there is no file."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def run(
    cases: Sequence[Case],
    results: Results,
    seconds: float,
    shares: Mapping[str, float],
    folder: Path,
    say: Callable[[Row], object] = print,
) -> list[Row]:
    """Do what has no result yet.

    Args:
        cases: in this order; those of a stage follow each other.
        results: gets a row per case or part: `key`, `stage`, `status`, `seconds`, `detail`, and what a part reported.
        seconds: for everything; what runs then is ended.
        shares: of the seconds, by stage. No part begins after its stage's share; what a stage leaves goes to the next.
        folder: where processes run.
        say: gets every new row.

    Returns:
        The rows of all cases, new and old, in their order.
    """
    began = time.monotonic()
    allowed = 0.0
    ends: dict[str, float] = {}
    for stage in dict.fromkeys(case.stage for case in cases):
        allowed += shares.get(stage, 0.0)
        ends[stage] = began + seconds * min(allowed, 1.0)
    for case in cases:
        _Turn(case, results, ends[case.stage], began + seconds, folder, say).run()
    return [results.rows[key] for case in cases for key in case.keys]


class _Turn:
    """A case's turn: what of it is left, and the limits that hold now."""

    def __init__(self, case: Case, results: Results, stage_ends: float, ends: float, folder: Path, say: Callable) -> None:
        self.case, self.results, self.stage_ends, self.ends = case, results, stage_ends, ends
        self.folder, self.say = folder, say
        self.left = [key for key in case.keys if key not in results.rows]
        self.began = self.limit = 0.0

    def run(self) -> None:
        case = self.case
        reason = case.skip
        if not reason and case.needs and not self.results.passed(case.needs):
            reason = f"{case.needs} did not pass"
        while self.left:
            if reason:
                self._add(self.left[0], "skipped", reason)
            elif time.monotonic() >= self.stage_ends:
                self._add(self.left[0], "time", "no time was left for it")
            else:
                self._run_process()

    def _run_process(self) -> None:
        case, before = self.case, len(self.left)
        command = [*case.command, *(key.removeprefix(f"{case.name}/") for key in self.left if case.parts)]
        self.began = time.monotonic()
        self.limit = self.began + case.seconds + (case.start if case.parts else 0.0)
        try:
            ending = watch(command, self.folder, case.environment, lambda: min(self.limit, self.ends), self._receive)
        except OSError as error:
            self._add(self.left[0], "failed", f"cannot start {command[0]}: {error}")
            return
        if not self.left or (case.parts and self._needs_no_blame(ending, before)):
            return
        self._add(self.left[0], *self._judge(ending))

    def _receive(self, line: str) -> None:
        """A line of the process: where it is a part's result, keep it and give the next part its time."""
        if not (self.case.parts and self.left and line.startswith(MARK)):
            return
        try:
            row = json.loads(line.removeprefix(MARK))
            status = row.pop("status")
        except (ValueError, KeyError):  # torn by the output of something else: the end of the process decides
            return
        self._add(self.left[0], status, row.pop("detail", ""), **row)
        self.began = time.monotonic()
        self.limit = self.began + self.case.seconds if self.left and self.began < self.stage_ends else 0.0

    def _needs_no_blame(self, ending: Ending, before: int) -> bool:
        """Whether a process with parts ended between two of them: by itself, or because the stage's time is over."""
        return len(self.left) < before and (ending.status == SPOILED or self.limit == 0.0)

    def _judge(self, ending: Ending) -> tuple[str, str]:
        lines = [line for line in ending.lines if not line.startswith(MARK)]
        last = " | ".join(lines[-3:])[:600]
        stuck = "" if ending.is_gone else "; it could not even be killed, so the device may need a restart"
        if ending.status is None and self.limit > self.ends:
            return "time", f"cut off after {time.monotonic() - self.began:.0f} s, when all time was spent{stuck}"
        if ending.status is None:
            return "hung", f"killed after {time.monotonic() - self.began:.0f} s{stuck}; {last}"
        if ending.status < 0:
            return "crashed", f"{signal.Signals(-ending.status).name}; {last}"
        if self.case.parts:
            return "failed", f"exit status {ending.status} without a result; {last}"
        return self.case.judge(ending)

    def _add(self, key: str, status: str, detail: str, **figures: Any) -> None:
        self.left.remove(key)
        seconds = round(time.monotonic() - self.began, 2) if self.began else 0.0
        row = {"key": key, "stage": self.case.stage, "status": status, "seconds": seconds, "detail": detail, **figures}
        self.results.add(row)
        self.say(self.results.rows[key])
