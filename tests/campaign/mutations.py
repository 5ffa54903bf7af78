"""Mutations of values and bytes, from draws. What they make of the files of each reader is in `malformed`."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np

Draws = np.random.Generator

TEXTS = [
    "",
    " ",
    "a",
    "\x1b[31mred\x1b[0m",
    "\x00",
    "\u202eevil",
    "ä" * 300,
    "../../x",
    "x" * 100_000,
    "nan",
    "1e999",
    "%s{}",
    "\ud800",
]
NUMBERS = [-1, 0, 1, 2**31, 2**63, 2**64, 10**400, -0.0, 1e308, 1e-320, math.nan, math.inf, -math.inf]


def pick(draws: Draws, values: Any) -> Any:
    """One of some values."""
    return values[int(draws.integers(len(values)))]


def wild(draws: Draws, depth: int = 0) -> Any:
    """Any value that JSON, TOML or a pickle can hold."""
    kind = int(draws.integers(8))
    if kind < 2:
        return pick(draws, TEXTS)
    if kind < 4:
        return pick(draws, NUMBERS)
    if kind == 4:
        return pick(draws, [None, True, False])
    if kind == 5 and depth < 3:
        return [wild(draws, depth + 1) for _ in range(int(draws.integers(4)))]
    if kind == 6 and depth < 3:
        return {pick(draws, TEXTS): wild(draws, depth + 1) for _ in range(int(draws.integers(3)))}
    return _nested(pick(draws, [3, 50, 150, 900]), pick(draws, [list, dict]))


def _nested(depth: int, kind: type) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value] if kind is list else {"a": value}
    return value


def damaged(draws: Draws, content: bytes) -> tuple[str, bytes]:
    """Bytes that are flipped, cut, repeated, exchanged or put in."""
    data = bytearray(content)
    kind = pick(draws, ["flip", "cut", "insert", "repeat", "zero", "append", "nothing", "drop"])
    at = int(draws.integers(max(len(data), 1)))
    size = int(draws.integers(1, 40))
    if kind == "flip":
        for _ in range(int(draws.integers(1, 8))):
            if data:
                data[int(draws.integers(len(data)))] ^= 1 << int(draws.integers(8))
    elif kind == "cut":
        del data[at:]
    elif kind == "insert":
        data[at:at] = draws.bytes(size)
    elif kind == "repeat":
        data[at:at] = data[at : at + size] * int(draws.integers(1, 50))
    elif kind == "zero":
        data[at : at + size] = bytes(len(data[at : at + size]))
    elif kind == "append":
        data += draws.bytes(pick(draws, [1, 100, 5000]))
    elif kind == "nothing":
        data.clear()
    else:
        del data[at : at + size]
    return kind, bytes(data)


def mutated(draws: Draws, value: Any) -> tuple[str, Any]:
    """A nested value with one to three of its parts replaced, removed, doubled or added."""
    value, done = copy.deepcopy(value), []
    for _ in range(int(draws.integers(1, 4))):
        parent, here = None, value
        key: Any = None
        while isinstance(here, dict | list) and here and (parent is None or draws.random() < 0.7):
            key = pick(draws, list(here)) if isinstance(here, dict) else int(draws.integers(len(here)))
            parent, here = here, here[key]
        if parent is None:
            return "replaced", wild(draws)
        kind = pick(draws, ["replace", "remove", "add", "double"])
        if kind == "remove":
            del parent[key]
        elif kind == "add" and isinstance(parent, dict):
            parent[pick(draws, TEXTS)] = wild(draws)
        elif kind == "double" and isinstance(parent, list):
            parent.append(here)
        else:
            parent[key] = wild(draws)
        done.append(f"{kind} {str(key)[:20]!r}")
    return ", ".join(done), value
