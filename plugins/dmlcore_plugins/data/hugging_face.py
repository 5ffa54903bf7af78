"""Data sets of Hugging Face's `datasets` as `save_to_disk` writes them: folders of Arrow files, read by pyarrow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dmlcore
from dmlcore.data import DataSource, Table, arrow_table, joined_parts, pyarrow
from dmlcore.errors import DataError
from dmlcore.files import expanded
from dmlcore_plugins.data.parquet import TableOptions, read_table

_STATE, _PARTS = "state.json", "dataset_dict.json"
_MOST_BYTES = 2**24  # of a description


class SavedDataset(DataSource):
    """A folder that `save_to_disk` of Hugging Face's `datasets` wrote: one data set, or several by part."""

    name = "hugging_face"
    Options = TableOptions
    reads = "a folder that save_to_disk wrote"

    @classmethod
    def claims(cls, path: Path) -> bool:
        """Folders with the descriptions that `save_to_disk` writes."""
        return (path / _PARTS).is_file() or ((path / _STATE).is_file() and (path / "dataset_info.json").is_file())

    def load(self) -> Table:
        """Map the Arrow files, whose samples stay on the disk.

        Raises:
            DataError: pyarrow is missing, no such folder, a damaged description or file, missing columns.
        """
        if not self.options.path:
            raise DataError("the data 'hugging_face' need a path: --data FOLDER, or --hugging_face.path FOLDER")
        root = expanded(self.options.path)
        where, split = f"'{root}'", None
        if (root / _PARTS).is_file():
            words = _described(root / _PARTS, "splits")
            table, split = joined_parts({word: _read(root / word) for word in words}, where)
        else:
            table = _read(root)
        return arrow_table(
            table,
            where,
            self.options,
            folder=root,
            split=split,
            needs_labels=self.needs_labels,
            image_size=self.image_size,
            default_image_size=self.default_image_size,
        )


def _read(folder: Path) -> Any:
    """The table of one data set."""
    arrow = pyarrow()
    names = _described(folder / _STATE, "_data_files", "filename")
    if not names:
        raise DataError(f"'{folder}' names no Arrow files")
    try:
        return arrow.concat_tables([read_table(folder / name) for name in names])
    except arrow.ArrowException as error:
        raise DataError(f"the Arrow files in '{folder}' do not fit together: {' '.join(str(error).split())[:200]}") from None


def _described(file: Path, key: str, inner: str = "") -> list[str]:
    """The names that a description lists, none of which leads out of its folder."""
    try:
        with open(file, "rb") as opened:
            listed = json.loads(opened.read(_MOST_BYTES))[key]
        names = [entry[inner] if inner else entry for entry in listed]
        if not all(isinstance(name, str) and name and Path(name).name == name and "\0" not in name for name in names):
            raise ValueError(f"its '{key}' are no names")
    except OSError as error:
        raise DataError(f"cannot read '{file}': {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:120]
        raise DataError(f"'{file}' is damaged: {reason}") from None
    return names


@dmlcore.hookimpl
def dmlcore_datasets() -> list[type]:
    return [SavedDataset]
