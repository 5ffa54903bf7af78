"""What the four functions that pickles of plain data name would make of their arguments, written out: bytes, numpy's types and
its scalars. The machine that follows a pickle is in `pickles`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

_NUMBER = re.compile(r"\?|b1|[iu][1248]|f[248]|[US][0-9]{0,9}")


@dataclass(frozen=True)
class Named:
    """A function that the file names: only its name."""

    name: str


@dataclass
class NumberType:
    """A numpy type that the file describes. `order` comes with its state."""

    code: str
    order: str = ""


@dataclass(frozen=True)
class Bytes:
    """Bytes: the content of a numpy scalar, and no value of their own."""

    content: bytes


class Refused(Exception):
    """Why a pickle is not read."""


def shown(value: Any) -> str:
    return printable(value[:60]) if isinstance(value, str) else f"({type(value).__name__})"


def printable(text: str) -> str:
    """Text of a file as it can stand in a line on a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _encode(arguments: tuple[Any, ...]) -> Bytes:
    """`codecs.encode(text, "latin1")`: how old protocols write bytes."""
    if len(arguments) != 2 or not isinstance(arguments[0], str) or arguments[1] not in ("latin1", "latin-1"):
        raise Refused("it encodes something other than bytes")
    try:
        return Bytes(arguments[0].encode("latin-1"))
    except UnicodeEncodeError:
        raise Refused("it writes bytes as text that is none") from None


def _empty_bytes(arguments: tuple[Any, ...]) -> Bytes:
    if arguments:
        raise Refused("it calls something that is no function of plain data")
    return Bytes(b"")


def _number_type(arguments: tuple[Any, ...]) -> NumberType:
    """`numpy.dtype(code, align, copy)`."""
    flags = all(isinstance(flag, bool | int) for flag in arguments[1:])
    if not 1 <= len(arguments) <= 3 or not isinstance(arguments[0], str) or not _NUMBER.fullmatch(arguments[0]) or not flags:
        kind = shown(arguments[0]) if arguments else "nothing"
        raise Refused(f"it has a numpy value of type {kind}, but only numbers and text are read")
    return NumberType(arguments[0])


def _scalar(arguments: tuple[Any, ...]) -> Any:
    """`numpy.core.multiarray.scalar(type, bytes)`, as a value of Python."""
    kind = arguments[0] if len(arguments) == 2 else None
    if not isinstance(kind, NumberType) or not kind.order:
        raise Refused("a numpy value has no type")
    raw = arguments[1]
    if isinstance(raw, str):  # Python 2 wrote bytes as text
        raw = _encode((raw, "latin1"))
    if not isinstance(raw, Bytes):
        raise Refused("a numpy value has no content")
    if kind.code[0] == "U":
        return _of_characters(kind, raw.content)
    if kind.code[0] == "S":
        if len(raw.content) != int(kind.code[1:] or 0):
            raise Refused("a numpy text has another length than its type says")
        return _decoded(raw.content, "utf-8")
    exact = np.dtype("?" if kind.code in ("?", "b1") else kind.order.replace("|", "=") + kind.code)
    if len(raw.content) != exact.itemsize:
        raise Refused("a numpy number has another length than its type says")
    return np.frombuffer(raw.content, dtype=exact)[0].item()


def _of_characters(kind: NumberType, content: bytes) -> str:
    if len(content) != 4 * int(kind.code[1:] or 0):
        raise Refused("a numpy text has another length than its type says")
    return _decoded(content, "utf-32-be" if kind.order == ">" else "utf-32-le")


def _decoded(content: bytes, encoding: str) -> str:
    try:
        return content.decode(encoding).rstrip("\0")
    except UnicodeDecodeError:
        raise Refused("a numpy text is no valid Unicode") from None


RESULTS: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    "dtype": _number_type,
    "scalar": _scalar,
    "encode": _encode,
    "bytes": _empty_bytes,
}
