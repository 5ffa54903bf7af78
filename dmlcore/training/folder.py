"""The folder of a run: what lies where, and writing that leaves earlier results intact. What is inside a checkpoint is
`checkpoints.py`'s.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from dmlcore.errors import ConfigError, TrainingError, suggestion
from dmlcore.files import in_file_name, make_folder, plain, write_atomically, write_error

CONFIG, METRICS, RESULT, CHECKPOINTS, SPLIT = "config.toml", "metrics.jsonl", "result.json", "checkpoints", "split.json"
NO_SPLIT = (
    "{folder} keeps no split.json, as an older version of dmlcore made it: its classes are split anew from the data as they are"
    " now. If they have changed since, classes may be held out that were trained on."
)


class RunFolder:
    """Paths of a run and the files in it.

    Args:
        path: the folder. Use `choose` and `open` instead, which check it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / CONFIG
        self.metrics = path / METRICS
        self.result = path / RESULT
        self.checkpoints = path / CHECKPOINTS
        self.split = path / SPLIT

    @classmethod
    def choose(cls, path: str | Path | None, losses: Sequence[str]) -> RunFolder:
        """A folder for a new run; nothing is written before `make`.

        Args:
            path: where; None gives `runs/<date-time>-<losses>`.
            losses: their names.

        Raises:
            ConfigError: there is something in it already.
        """
        if path is None:
            stem = f"{datetime.now():%Y%m%d-%H%M%S}-{in_file_name('+'.join(losses))[:60]}"
            path, number = Path("runs") / stem, 2
            while path.exists():
                path, number = Path("runs") / f"{stem}-{number}", number + 1
        path = Path(path)
        if (path / CONFIG).exists():
            raise ConfigError(
                f"{path} already holds a run. Choose another --out, or continue it with `dmlcore train --resume {path}`."
            )
        unfinished_search = {"search.json", "search.md", "search", SPLIT}
        if path.exists() and (not path.is_dir() or any(entry.name not in unfinished_search for entry in path.iterdir())):
            raise ConfigError(f"{path} exists and is not an empty folder. Choose another --out.")
        return cls(path)

    def make(self, config: str, split: bytes | None = None) -> None:
        """Make the folder and write `split.json` and `config.toml`.

        Args:
            config: the text of `config.toml`.
            split: the content of `split.json`. None: it stays as it is.

        Raises:
            ConfigError: the folder cannot be made.
            TrainingError: the disk is full.
        """
        make_folder(self.path)
        make_folder(self.checkpoints)
        if split is not None:
            write_atomically(self.split, split)
        write_atomically(self.config, config.encode())  # last: it says that there is a run

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """The folder of an earlier run.

        Raises:
            ConfigError: no run is there; the message has the nearest name beside it.
        """
        path = Path(path)
        if not (path / CONFIG).is_file():
            beside = [p.name for p in path.parent.iterdir() if (p / CONFIG).is_file()] if path.parent.is_dir() else []
            raise ConfigError(f"there is no run in {path} (no {CONFIG}).{suggestion(path.name, beside[:20])}")
        return cls(path)

    def append(self, record: dict[str, Any]) -> None:
        """Add one line to `metrics.jsonl`."""
        try:
            with open(self.metrics, "a", encoding="utf-8") as file:
                file.write(json.dumps(plain(record)) + "\n")
        except OSError as error:
            raise write_error(self.metrics, error) from error

    def records(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`; a last line that was cut off is left out.

        Raises:
            TrainingError: it cannot be read, or a line is no record.
        """
        if not self.metrics.exists():
            return []
        records = []
        try:
            lines = self.metrics.read_bytes().decode(errors="replace").splitlines()
        except OSError as error:
            raise TrainingError(f"cannot read {self.metrics}: {error.strerror}") from error
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                break
            step = record.get("step", 0) if isinstance(record, dict) else None
            if not isinstance(step, int | float):
                raise TrainingError(
                    f"line {number} of {self.metrics} is no record of a run; remove the line, or put the file back as it was"
                )
            records.append(record)
        return records

    def drop_records_after(self, step: int) -> None:
        """Drop the lines after a step, which a resumed run writes again."""
        lines = [json.dumps(record) + "\n" for record in self.records() if record.get("step", 0) <= step]
        write_atomically(self.metrics, "".join(lines).encode())

    def read_result(self) -> dict[str, Any]:
        """What `result.json` holds.

        Raises:
            TrainingError: it is damaged.
        """
        try:
            result = json.loads(self.result.read_bytes())
            if not isinstance(result, dict):
                raise ValueError("it is no table")
            return result
        except (OSError, ValueError, RecursionError) as error:
            raise TrainingError(f"{self.result} is damaged ({' '.join(str(error).split())[:120]})") from error

    def write_result(self, result: dict[str, Any]) -> None:
        """Write `result.json`."""
        write_atomically(self.result, (json.dumps(plain(result), indent=2) + "\n").encode())
