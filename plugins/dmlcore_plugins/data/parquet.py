"""Tables in Parquet and Arrow files. What their columns mean is told by `dmlcore.data.arrow_table`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dmlcore
from dmlcore.data import ColumnOptions, DataSource, Table, arrow_table, pyarrow
from dmlcore.errors import DataError
from dmlcore.files import expanded

_PARQUET, _ARROW = (".parquet", ".pq"), (".arrow", ".feather", ".ipc")


@dataclass(frozen=True)
class TableOptions(ColumnOptions):
    """Options of tables in files."""

    path: str = ""
    """Where the data lies."""


class TableFile(DataSource):
    """A Parquet or Arrow file with a column of labels, and one of images or several of features. Images are bytes, or paths
    that are relative to the folder of the file.
    """

    name = "parquet"
    Options = TableOptions
    reads = "a .parquet or .arrow with label and image or features"

    @classmethod
    def claims(cls, path: Path) -> bool:
        """Files that end in .parquet, .pq, .arrow, .feather or .ipc."""
        return path.suffix.lower() in (*_PARQUET, *_ARROW) and not path.is_dir()

    def load(self) -> Table:
        """Read the file. Arrow files stay on the disk and are read where they are needed.

        Raises:
            DataError: pyarrow is missing, no such file, a damaged one, missing columns.
        """
        if not self.options.path:
            raise DataError("the data 'parquet' needs a path: --data FILE.parquet, or --parquet.path FILE.parquet")
        file = expanded(self.options.path)
        return arrow_table(
            read_table(file),
            f"'{file}'",
            self.options,
            folder=file.parent,
            needs_labels=self.needs_labels,
            image_size=self.image_size,
            default_image_size=self.default_image_size,
        )


def read_table(file: Path) -> Any:
    """The `pyarrow.Table` of a file, checked.

    Raises:
        DataError: pyarrow is missing, no such file, a damaged one.
    """
    arrow = pyarrow()
    try:
        if not os.path.isfile(file):
            raise DataError(f"there is no file '{file}'")
        table = arrow.parquet.read_table(file) if file.suffix.lower() in _PARQUET else _mapped(arrow, file)
        table.validate(full=True)  # a damaged file may point outside of itself
        return table
    except (arrow.ArrowException, OSError, ValueError, MemoryError) as error:
        if isinstance(error, DataError):
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"'{file}' is no Parquet or Arrow file, or a damaged one: {reason}") from None


def _mapped(arrow: Any, file: Path) -> Any:
    source = arrow.memory_map(str(file))
    try:
        return arrow.ipc.open_file(source).read_all()
    except arrow.ArrowInvalid:  # the form of a stream, as Hugging Face writes it
        source.seek(0)
        return arrow.ipc.open_stream(source).read_all()


@dmlcore.hookimpl
def dmlcore_datasets() -> list[type]:
    return [TableFile]
