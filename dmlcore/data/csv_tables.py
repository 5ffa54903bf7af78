"""Tables in text files: rows of fields behind a line that names the columns, separated by commas, semicolons or tabs. A row is
one line. What the columns mean is not here.
"""

from __future__ import annotations

import csv
import itertools
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dmlcore.data.path_lists import TextColumn
from dmlcore.errors import DataError

_SEPARATORS = (",", ";", "\t")


@dataclass(frozen=True)
class CsvRow:
    """A row.

    Attributes:
        line: its number in the file, from 1.
        values: by the names of the columns, without blanks at their ends. Columns that the row ends before are empty.
    """

    line: int
    values: dict[str, str]


class CsvRows(Sequence[CsvRow]):
    """The rows of a file, as their lines until they are asked for: so very many take little memory.

    Args:
        columns: their names.
        separator: of fields.
        lines: of the rows.
        numbers: int64 [N], of the lines in the file.
    """

    def __init__(self, columns: list[str], separator: str, lines: TextColumn, numbers: np.ndarray) -> None:
        self.columns = columns
        self.separator = separator
        self.lines = lines
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[place] for place in range(*row.indices(len(self)))]
        fields = _fields(self.lines[row], self.separator)
        return CsvRow(
            int(self.numbers[row]), dict(itertools.zip_longest(self.columns, fields[: len(self.columns)], fillvalue=""))
        )


def read_csv(file: Path, needed: Sequence[str]) -> tuple[list[str], Sequence[CsvRow]]:
    """The columns and rows of a file. Empty lines are left out.

    Args:
        file: in UTF-8, with or without a byte-order mark.
        needed: columns by which the separator is recognised, and which no file may have twice. They may be missing.

    Returns:
        The names of the columns as they stand, and the rows.

    Raises:
        DataError: no such file, another encoding, a quote that is not closed in its line, a row with more fields than columns.
    """
    columns: list[str] = []
    separator, numbers = "", array("q")

    def rows() -> Iterator[str]:
        nonlocal separator
        for number, line in enumerate(_lines(file), 1):
            if number == 1:  # the first of equals
                separator = max(_SEPARATORS, key=lambda mark: len(set(needed) & set(_columns(line, mark))))
            if not line.strip("\r\n"):
                continue
            try:
                fields = _fields(line, separator)
            except csv.Error as error:
                unclosed = "unexpected end" in str(error)
                problem = "a quote that is opened is not closed in the same line" if unclosed else str(error)
                raise DataError(
                    f"line {number} of '{file}' cannot be read: {problem}. Is a \" missing, or one too many?"
                ) from None
            if not columns:
                columns.extend(fields)
                twice = next((name for name in columns if name in needed and columns.count(name) > 1), None)
                if twice:
                    raise DataError(f"'{file}' has the column '{twice}' twice: rename or remove one of them")
                continue
            if any(fields[len(columns) :]):
                raise DataError(
                    f"line {number} of '{file}' has {len(fields)} fields, but the first line names {len(columns)} columns."
                    f" Put a value that holds '{separator}' in quotes"
                )
            numbers.append(number)
            yield line

    lines = TextColumn.of(rows())
    return columns, CsvRows(columns, separator, lines, np.frombuffer(numbers, dtype=np.int64))


def _fields(line: str, separator: str) -> list[str]:
    return [field.strip() for field in next(csv.reader([line], delimiter=separator, strict=True))]


def _lines(file: Path) -> Iterator[str]:
    number = 0
    try:
        with open(file, newline="", encoding="utf-8-sig") as opened:  # any kind of line end
            for number, line in enumerate(opened, 1):
                if "\0" in line:
                    raise DataError(
                        f"'{file}' cannot be read as a UTF-8 CSV file: line {number} holds a NUL byte. Save it as UTF-8 text"
                    )
                yield line
    except FileNotFoundError:
        raise DataError(f"there is no file '{file}'") from None
    except UnicodeDecodeError as error:
        reason = f"byte 0x{error.object[error.start]:02x} is no UTF-8"
        raise DataError(
            f"'{file}' cannot be read as a UTF-8 CSV file: {reason} (after line {number}). Save it as UTF-8"
        ) from None
    except OSError as error:
        raise DataError(f"'{file}' cannot be read as a UTF-8 CSV file: {error.strerror or error}") from error


def _columns(line: str, separator: str) -> list[str]:
    try:
        return _fields(line, separator)
    except (csv.Error, StopIteration):
        return []
