"""Rows of results in files of JSON lines: read, and appended to as runs end. A crash may cut the last line of such a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def read(file: Path) -> list[Row]:
    """The rows of a file, the earliest first; none where there is no such file.

    A damaged line is skipped, and a line on stderr says so. The run that it was of is missing then, and is run again.
    """
    rows = []
    lines = file.read_bytes().splitlines() if file.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:  # also of bytes that are no text
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif line.strip():
            print(f"{file}: line {number} is damaged and was skipped", file=sys.stderr, flush=True)
    return rows


@contextmanager
def appending(file: Path) -> Iterator[Callable[[Row], None]]:
    """Open a file, made where it is missing, to be given rows. Each is written before the call returns.

    The first row gets a line of its own also where a crash cut the last one.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab+") as out:
        if out.tell():  # where "a" begins: the end
            out.seek(-1, 2)
            if out.read(1) != b"\n":
                out.write(b"\n")

        def append(row: Row) -> None:
            out.write(json.dumps(row).encode() + b"\n")
            out.flush()

        yield append
