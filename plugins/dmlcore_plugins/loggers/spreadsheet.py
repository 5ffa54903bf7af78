"""Steps as a table for a spreadsheet."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import dmlcore
from dmlcore.config import check_range
from dmlcore.training import Logger

if TYPE_CHECKING:
    from dmlcore.training import Run


class SpreadsheetLogger(Logger):
    """Steps as a table for a spreadsheet: `steps.csv` in the run folder, a column per number."""

    name: ClassVar[str] = "spreadsheet"

    @dataclass(frozen=True)
    class Options:
        every: int = 1
        """Write every so many steps."""

        def __post_init__(self) -> None:
            check_range("every", self.every, least=1)

    def started(self, run: Run) -> None:
        path = run.folder.path / "steps.csv"
        if path.exists():  # a resumed run writes what came after its checkpoint again
            header, *rows = path.read_text(encoding="utf-8").splitlines()
            column = header.split(",").index("step")
            whole = [row for row in rows if row.count(",") == header.count(",")]  # a killed run may leave half a row
            earlier = [row for row in whole if int(row.split(",")[column]) <= run.step]
            path.write_text("\n".join([header, *earlier]) + "\n", encoding="utf-8")

    def step_ended(self, run: Run, record: dict[str, Any]) -> None:
        if record["step"] % self.options.every:
            return
        flat = {key: value for key, value in record.items() if not isinstance(value, dict)}
        flat |= {
            f"{key}.{name}": number
            for key, value in record.items()
            if isinstance(value, dict)
            for name, number in value.items()
        }
        path: Path = run.folder.path / "steps.csv"
        is_new = not path.exists()
        with open(path, "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(flat))
            if is_new:
                writer.writeheader()
            writer.writerow(flat)


@dmlcore.hookimpl
def dmlcore_loggers() -> list[type]:
    return [SpreadsheetLogger]
