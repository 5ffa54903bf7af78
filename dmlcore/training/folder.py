"""The folder of a run: what lies where, and writing that leaves earlier results intact. What is inside a checkpoint is
`checkpoints.py`'s.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from dmlcore.errors import ConfigError, TrainingError, suggestion
from dmlcore.files import encoded, in_file_name, make_folder, plain, remove_temporaries, write_atomically, write_error
from dmlcore.locks import NAME as LOCK
from dmlcore.locks import FolderLock
from dmlcore.seals import seal, unseal

CONFIG, METRICS, RESULT, CHECKPOINTS, SPLIT = "config.toml", "metrics.jsonl", "result.json", "checkpoints", "split.json"
TRUNK = "trunk"
REPORT = "report.html"
NO_SPLIT = (
    "{folder} keeps no split.json, as an older version of dmlcore made it: its classes are split anew from the data as they are"
    " now. If they have changed since, classes may be held out that were trained on."
)

_WITHOUT_RECORDS = "Bring it back, or remove it: the run then goes on without the records of its earlier steps"


def default_folder(losses: Sequence[str]) -> Path:
    """`runs/<date-time>-<losses>`, which is not there yet."""
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{in_file_name('+'.join(losses))[:60]}"
    path, number = Path("runs") / stem, 2
    while path.exists():
        path, number = Path("runs") / f"{stem}-{number}", number + 1
    return path


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
        self.trunk = path / TRUNK
        self.report = path / REPORT
        self._lock: FolderLock | None = None
        self._is_new = False
        self._size, self._digest = 0, hashlib.sha256()  # of the lines in `metrics.jsonl`

    @property
    def kept_trunk(self) -> Path | None:
        """The folder in which a run keeps what its trunk was made of. None: there is no run yet, or nothing is kept."""
        return self.trunk if self.config.is_file() and self.trunk.is_dir() else None

    @property
    def is_begun(self) -> bool:
        """Whether a run has been made in it."""
        return self.config.is_file()

    @classmethod
    def choose(cls, path: str | Path | None, losses: Sequence[str]) -> RunFolder:
        """A folder for a new run; nothing is written before `make`.

        Args:
            path: where; None gives `runs/<date-time>-<losses>`.
            losses: their names.

        Raises:
            ConfigError: there is something in it already.
        """
        path = default_folder(losses) if path is None else Path(path)
        cls(path).check_is_new()
        if path.exists() and (not path.is_dir() or any(not _is_of_a_beginning(entry) for entry in path.iterdir())):
            raise ConfigError(f"{path} exists and is not an empty folder. Choose another --out.")
        folder = cls(path)
        folder._is_new = True
        return folder

    def check_is_new(self) -> None:
        """Raise ConfigError where a run is."""
        if self.config.exists():
            raise ConfigError(
                f"{self.path} already holds a run. Choose another --out, or continue it with"
                f" `dmlcore train --resume {self.path}`."
            )

    def make(self, config: str, split: bytes | None = None) -> None:
        """Make the folder, which is locked, and write `split.json` and `config.toml`.

        Args:
            config: the text of `config.toml`.
            split: the content of `split.json`. None: it stays as it is.

        Raises:
            ConfigError: the folder cannot be made, or a path of the settings is no UTF-8.
            TrainingError: the disk is full.
        """
        make_folder(self.checkpoints)
        if split is not None:
            write_atomically(self.split, split)
        self.write_config(config)  # last: it says that there is a run

    def write_config(self, config: str) -> None:
        """Write `config.toml`."""
        write_atomically(self.config, encoded(config, self.config.name))

    def lock(self, note: Callable[[str], None] = lambda text: None) -> None:
        """Take the folder for this process until `unlock`, and remove what dead ones left half written.

        Args:
            note: is told in a sentence where the file system cannot lock.

        Raises:
            ConfigError: another process has it or made a run in it, or it cannot be made.
        """
        if self._lock is not None:
            return
        make_folder(self.path)
        self._lock = FolderLock(self.path, note)
        if self._is_new:
            self.check_is_new()  # another process may have made a run since the folder was chosen
            self._is_new = False
        for folder in (self.path, self.checkpoints, self.trunk):
            remove_temporaries(folder)

    def unlock(self) -> None:
        """Let other processes in."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

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
        """Add one line to `metrics.jsonl`. A line that cannot be written whole is taken back."""
        line, size = (json.dumps(plain(record)) + "\n").encode(), None
        try:
            with open(self.metrics, "ab", buffering=0) as file:
                size = file.seek(0, os.SEEK_END)
                if file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            if size is not None:
                with contextlib.suppress(OSError):
                    os.truncate(self.metrics, size)
            raise write_error(self.metrics, error) from error
        self._size += len(line)
        self._digest.update(line)

    def records(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`. A last line that was cut off is left out.

        Raises:
            TrainingError: it cannot be read, or another line is damaged.
        """
        if not self.metrics.exists():
            return []
        try:
            lines = self.metrics.read_bytes().decode(errors="replace").splitlines()
        except OSError as error:
            raise TrainingError(f"cannot read {self.metrics}: {error.strerror}") from error
        records = []
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                if not isinstance(record, dict) or not isinstance(record.get("step", 0), int):
                    raise ValueError("no record")
            except (ValueError, RecursionError):
                if number == len(lines):
                    break
                raise TrainingError(
                    f"line {number} of {self.metrics} is damaged; {len(lines) - number} lines follow. {_WITHOUT_RECORDS}"
                ) from None
            records.append(record)
        return records

    def clear_records(self) -> None:
        """Begin an empty `metrics.jsonl`."""
        write_atomically(self.metrics, b"")
        self._size, self._digest = 0, hashlib.sha256()

    def mark_of_records(self) -> dict[str, Any]:
        """Size and SHA-256 of `metrics.jsonl` as it is now, for a checkpoint: the records that belong to it.

        Raises:
            TrainingError: the records cannot be brought to the disk, where they are to be before the checkpoint is.
        """
        try:
            with open(self.metrics, "ab") as file:
                os.fsync(file.fileno())
        except OSError as error:
            raise write_error(self.metrics, error) from error
        return {"size": self._size, "sha256": self._digest.hexdigest()}

    def keep_records(self, mark: dict[str, Any], note: Callable[[str], None]) -> None:
        """Drop the lines after those that belong to a checkpoint, which a resumed run writes again.

        Args:
            mark: what `mark_of_records` gave.
            note: is told in a sentence where there are no records any more.

        Raises:
            TrainingError: the lines are not those that were written.
        """
        size = mark["size"]
        if not self.metrics.exists():
            if size:
                note(f"{self.metrics} is gone: the run goes on without the records of its earlier steps")
            return self.clear_records()
        try:
            content = self.metrics.read_bytes()
        except OSError as error:
            raise TrainingError(f"cannot read {self.metrics}: {error.strerror}") from error
        digest = hashlib.sha256(content[:size])
        if digest.hexdigest() != mark["sha256"]:
            what = f"it has {len(content)} bytes, not {size}" if len(content) < size else "bytes have changed"
            raise TrainingError(f"{self.metrics} is not as the checkpoint knows it ({what}). {_WITHOUT_RECORDS}")
        if len(content) > size:
            write_atomically(self.metrics, content[:size])
        self._size, self._digest = size, digest

    def read_result(self) -> dict[str, Any]:
        """What `result.json` holds.

        Raises:
            TrainingError: it is damaged.
        """
        try:
            result, _ = unseal(json.loads(self.result.read_bytes()))
            if not isinstance(result, dict):
                raise ValueError("it is no table")
            return result
        except (OSError, ValueError, RecursionError) as error:
            raise TrainingError(f"{self.result} is damaged ({' '.join(str(error).split())[:120]})") from error

    def write_result(self, result: dict[str, Any]) -> None:
        """Write `result.json`."""
        write_atomically(self.result, (json.dumps(seal(plain(result)), indent=2) + "\n").encode())


def _is_of_a_beginning(path: Path) -> bool:
    """Whether a file may be left by a run or a search that ended before its configuration was written."""
    if path.name == CHECKPOINTS and path.is_dir():
        return not any(path.iterdir())
    if path.name == TRUNK and path.is_dir():
        return True
    is_temporary = path.name.startswith(".") and path.name.endswith(".tmp")
    return is_temporary or path.name in (LOCK, SPLIT, "search.json", "search.md", "search")
