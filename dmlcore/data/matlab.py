"""MATLAB files of versions 5 to 7.2: numbers, texts, cells and structs. Nothing in them is run, and a damaged file is refused;
scipy's reader, which knows more, can crash on one. What the values mean is known to the sources.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dmlcore.errors import DataError

_DTYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_TEXTS = {1: "utf-8", 2: "utf-8", 4: "utf-16", 16: "utf-8", 17: "utf-16"}
_MATRIX, _COMPRESSED = 14, 15
_CELL, _STRUCT, _TEXT = 1, 2, 4
_NUMBERS = range(6, 16)
_HEADER = 128  # bytes
_LARGEST = 2**30  # bytes of a variable once unpacked
_DEEPEST = 8  # structs and cells within one another
_MOST = 2**53  # up to which doubles are whole numbers


def read_matlab(path: Path, names: Sequence[str]) -> dict[str, Any]:
    """Variables of a MATLAB file: an array [N] of numbers, a text, a list of values for cells, or for structs a list of values
    by field. All are flat, in MATLAB's order.

    Args:
        path: of the file.
        names: of the variables.

    Raises:
        DataError: no such file, one that is damaged or of another version, a variable that it lacks.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read '{path}': {error.strerror}") from None
    order = {b"IM": "<", b"MI": ">"}.get(content[126:_HEADER])
    if order is None:
        raise DataError(f"'{path}' is damaged, or no MATLAB file of version 5 to 7.2")
    if struct.unpack_from(order + "H", content, 124)[0] >= 0x0200:
        raise DataError(f"'{path}' is a MATLAB file of version 7.3, but those up to 7.2 are read. Save it with -v7")
    try:
        variables = _variables(content, order)
    except (ValueError, struct.error, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"'{path}' is damaged, or no MATLAB file: {error}") from None
    missing = [name for name in names if name not in variables]
    if missing:
        raise DataError(f"the MATLAB file '{path}' has no variable '{missing[0]}'")
    return {name: variables[name] for name in names}


def matlab_numbers(values: Any, what: str) -> np.ndarray:
    """Whole numbers of an array, or of a field that has one in each struct: int64 [N].

    Raises:
        DataError: some are no whole numbers.
    """
    if isinstance(values, list) and all(isinstance(value, np.ndarray) and len(value) == 1 for value in values):
        values = np.array([value[0] for value in values])
    if not isinstance(values, np.ndarray) or not bool(((np.abs(values) < _MOST) & (values == np.floor(values))).all()):
        raise DataError(f"{what} must be whole numbers")
    return values.astype(np.int64)


def matlab_texts(values: Any, what: str) -> list[str]:
    """Texts of cells, or of a field of structs.

    Raises:
        DataError: some are no texts.
    """
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise DataError(f"{what} must be texts")
    return values


def matlab_field(records: Any, name: str, where: Path) -> list[Any]:
    """A field of all structs of an array.

    Raises:
        DataError: they have no such field.
    """
    if not isinstance(records, dict) or name not in records:
        raise DataError(f"the structs of '{where}' have no field '{name}'")
    return records[name]


def _variables(content: bytes, order: str) -> dict[str, Any]:
    variables, view, at = {}, memoryview(content), _HEADER
    while at < len(view):
        kind, data, at = _element(view, at, order, is_padded=False)
        if kind == _COMPRESSED:
            unpacked = zlib.decompressobj().decompress(data, _LARGEST)
            kind, data, _ = _element(memoryview(unpacked), 0, order)
        if kind == _MATRIX:
            name, value = _matrix(data, order, 0)
            variables[name] = value
    return variables


def _element(view: memoryview, at: int, order: str, *, is_padded: bool = True) -> tuple[int, memoryview, int]:
    """The kind of the element at a place, its bytes, and the place behind it."""
    (word,) = struct.unpack_from(order + "I", view, at)
    if word >> 16:  # up to four bytes, in the tag itself
        kind, size, start, end = word & 0xFFFF, word >> 16, at + 4, at + 8
    else:
        kind, (size,), start = word, struct.unpack_from(order + "I", view, at + 4), at + 8
        end = start + size + (-size % 8 if is_padded else 0)
    if start + size > len(view) or (end == at + 8 and size > 4 and start == at + 4):
        raise ValueError("it is cut off")
    return kind, view[start : start + size], end


def _matrix(view: memoryview, order: str, depth: int) -> tuple[str, Any]:
    """The name and the value of a matrix."""
    if not len(view):
        return "", np.empty(0)
    if depth > _DEEPEST:
        raise ValueError("its structs are too deep")
    _, flags, at = _element(view, 0, order)
    kind = struct.unpack_from(order + "I", flags)[0] & 0xFF
    _, sizes, at = _element(view, at, order)
    dimensions = np.frombuffer(sizes, order + "i4").tolist()
    count = math.prod(dimensions)
    if min(dimensions, default=-1) < 0 or count > len(view):
        raise ValueError("its sizes are wrong")
    _, letters, at = _element(view, at, order)
    name = bytes(letters).decode("latin-1")
    if kind == _CELL:
        return name, _several(view, at, order, count, depth)
    if kind == _STRUCT:
        _, length, at = _element(view, at, order)
        _, words, at = _element(view, at, order)
        width = struct.unpack_from(order + "i", length)[0]
        if width < 1:
            raise ValueError("its names of fields are wrong")
        fields = [
            bytes(words[start : start + width]).partition(b"\0")[0].decode("latin-1") for start in range(0, len(words), width)
        ]
        values = _several(view, at, order, count * len(fields), depth)
        return name, {field: values[place :: len(fields)] for place, field in enumerate(fields)}
    if kind != _TEXT and kind not in _NUMBERS:
        raise ValueError(f"it holds values of the class {kind}, which are not read")
    stored, data, _ = _element(view, at, order)
    if kind == _TEXT:
        code = _TEXTS.get(stored, "")
        if not code:
            raise ValueError("its texts are wrong")
        return name, bytes(data).decode(code + ({"<": "-le", ">": "-be"}[order] if code == "utf-16" else ""))
    if stored not in _DTYPES:
        raise ValueError("its numbers are wrong")
    values = np.frombuffer(data, order + _DTYPES[stored])
    if len(values) != count:
        raise ValueError("its sizes are wrong")
    return name, values


def _several(view: memoryview, at: int, order: str, count: int, depth: int) -> list[Any]:
    values = []
    for _ in range(count):
        kind, data, at = _element(view, at, order)
        if kind != _MATRIX:
            raise ValueError("its cells are wrong")
        values.append(_matrix(data, order, depth + 1)[1])
    return values
