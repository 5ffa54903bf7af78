"""The folder of a run: what lies where, and writing that leaves earlier results intact. What is inside a checkpoint is
`checkpoints.py`'s.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from dmlcore.errors import ConfigError, suggestion
from dmlcore.files import encoded, in_file_name, make_folder, plain, write_atomically, write_error

CONFIG, METRICS, RESULT, CHECKPOINTS = "config.toml", "metrics.jsonl", "result.json", "checkpoints"


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
        unfinished_search = {"search.json", "search.md", "search"}
        if path.exists() and (not path.is_dir() or any(entry.name not in unfinished_search for entry in path.iterdir())):
            raise ConfigError(f"{path} exists and is not an empty folder. Choose another --out.")
        return cls(path)

    def make(self, config: str) -> None:
        """Make the folder and write `config.toml`.

        Raises:
            ConfigError: the folder cannot be made, or a path of the settings is no UTF-8.
            TrainingError: the disk is full.
        """
        content = encoded(config, self.config.name)
        make_folder(self.path)
        make_folder(self.checkpoints)
        write_atomically(self.config, content)

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
        """The lines of `metrics.jsonl`; a last line that was cut off is left out."""
        if not self.metrics.exists():
            return []
        records = []
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return records

    def drop_records_after(self, step: int) -> None:
        """Drop the lines after a step, which a resumed run writes again."""
        lines = [json.dumps(record) + "\n" for record in self.records() if record.get("step", 0) <= step]
        write_atomically(self.metrics, "".join(lines).encode())

    def write_result(self, result: dict[str, Any]) -> None:
        """Write `result.json`."""
        write_atomically(self.result, (json.dumps(plain(result), indent=2) + "\n").encode())
