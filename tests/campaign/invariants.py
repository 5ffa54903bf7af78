"""What must hold whatever happened: how a command may end and what it may print, and when two results are the same."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from .process import Said

DONE, FAILED, MISTAKE = 0, 1, 2
INTERRUPTED, TERMINATED, HUNG_UP = 130, 143, 129
_TIMES = ("seconds", "wall_seconds", "cpu_seconds", "images_per_second", "training_seconds", "checksum")  # that is of times too
_RAW = re.compile(r"^error: [A-Za-z_.]*(Error|Exception|Warning|Exit|Interrupt)\b.*`--debug` shows where", re.M)
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_UNFINISHED = ("*.tmp", "*.new", "*.new.*", "*.tmp.*", ".*.tmp", "making-*", "work")


def wrong(said: Said, statuses: Collection[int] = (DONE, FAILED, MISTAKE)) -> str:
    """What is wrong with how a command ended, or an empty text.

    Args:
        said: by the command.
        statuses: of the exit that are right here.
    """
    if said.is_late:
        return "it hung and was killed"
    if "Traceback (most recent call last)" in said.err:
        return f"a traceback: {_last_line(said.err)}"
    if said.status not in statuses:
        return f"exit status {said.status}: {_last_line(said.err)}"
    if match := _CONTROLS.search(said.out + said.err):
        return f"the character {match[0]!r} reaches the terminal"
    if said.status == DONE:
        return ""
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    if said.status > 0 and (len(errors) != 1 or said.err.splitlines()[-1] != errors[0] or len(errors[0]) < 16):
        return f"exit status {said.status} with {len(errors)} lines of error: {_last_line(said.err)}"
    if _RAW.search(said.err):
        return f"a raw message: {_last_line(said.err)}"
    return ""


def error_of(said: Said) -> str:
    """The last line that a command printed to stderr."""
    return _last_line(said.err)


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:300].encode("unicode_escape").decode() if lines else "nothing was printed"


def unfinished(folder: Path) -> list[str]:
    """Files and folders below that should not outlive the process that made them."""
    return sorted({str(path.relative_to(folder)) for pattern in _UNFINISHED for path in folder.rglob(pattern)})


def timeless(value: Any) -> Any:
    """A result without what differs between two equal runs."""
    if isinstance(value, dict):
        return {key: timeless(entry) for key, entry in value.items() if key not in _TIMES}
    return [timeless(entry) for entry in value] if isinstance(value, list) else value


def difference(actual: Any, expected: Any, where: str = "") -> str:
    """The first place where two results differ, or an empty text."""
    if isinstance(actual, dict) and isinstance(expected, dict):
        for key in {**expected, **actual}:
            if key not in actual or key not in expected:
                return f"{where}{key} is {'missing' if key not in actual else 'new'}"
            if text := difference(actual[key], expected[key], f"{where}{key}."):
                return text
        return ""
    if isinstance(actual, list) and isinstance(expected, list):
        for index, (one_side, other_side) in enumerate(zip(actual, expected, strict=False)):
            if text := difference(one_side, other_side, f"{where}{index}."):
                return text
        return "" if len(actual) == len(expected) else f"{where[:-1]} has {len(actual)} entries instead of {len(expected)}"
    is_same = actual == expected or (actual != actual and expected != expected)
    return "" if is_same else f"{where[:-1]} is {str(actual)[:60]} instead of {str(expected)[:60]}"


def hash_of(value: Any) -> str:
    """A hash of nested dicts and lists of tensors, arrays, numbers and texts, bit for bit."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, dict):
            for key in sorted(value, key=str):
                digest.update(f"{key}:".encode())
                add(value[key])
        elif isinstance(value, list | tuple):
            for entry in value:
                add(entry)
        elif hasattr(value, "detach"):
            add(value.detach().cpu().numpy())
        elif isinstance(value, np.ndarray):
            digest.update(f"{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes())
        else:
            digest.update(repr(value).encode())

    add(value)
    return digest.hexdigest()[:16]


def read_json(path: Path) -> Any:
    """A JSON file without times, or what is wrong with it as a text."""
    try:
        return timeless(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        return f"unreadable: {type(error).__name__}"


def records(path: Path) -> list[Any]:
    """The lines of a `metrics.jsonl` without times."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    try:
        return [timeless(json.loads(line)) for line in lines]
    except ValueError:
        return ["unreadable"]
