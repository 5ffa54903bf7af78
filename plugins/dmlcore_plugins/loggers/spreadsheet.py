"""Steps as a table for a spreadsheet."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import dmlcore
from dmlcore.files import write_atomically
from dmlcore.training import Logger, SeriesOptions, flat_numbers

if TYPE_CHECKING:
    from dmlcore.training import Run


class SpreadsheetLogger(Logger):
    """Steps as a table for a spreadsheet: `steps.csv` in the run folder, a column per number. Also by the name `csv`."""

    name: ClassVar[str] = "spreadsheet"
    aliases: ClassVar[tuple[str, ...]] = ("csv",)  # which is a source of data as well, whose options have that table
    Options: ClassVar[type] = SeriesOptions

    def started(self, run: Run) -> None:
        self._path: Path = run.folder.path / "steps.csv"
        self._columns: list[str] = []
        if self._path.exists():  # a resumed run writes what came after its checkpoint again
            rows = self._read()
            self._columns = list(rows[0]) if rows else []
            self._rewrite([row for row in rows if int(row["step"]) <= run.step])

    def step_ended(self, run: Run, record: dict[str, Any]) -> None:
        if record["step"] % self.options.every:
            return
        row = {"step": record["step"], **flat_numbers(record)}
        if new := [name for name in row if name not in self._columns]:  # some numbers are not measured in every step
            self._columns += new
            self._rewrite(self._read() if self._path.exists() else [])
        with open(self._path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns).writerow(row)

    def _read(self) -> list[dict[str, str]]:
        """The whole rows; a killed run may leave half a one."""
        with open(self._path, newline="", encoding="utf-8") as file:
            return [row for row in csv.DictReader(file) if None not in row.values() and row.get("step")]

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self._path, text.getvalue().encode())


@dmlcore.hookimpl
def dmlcore_loggers() -> list[type]:
    return [SpreadsheetLogger]
