"""Data that a Python program gives as objects: arrays, tensors, data sets of PyTorch and Hugging Face. Their forms are told
apart here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, IterableDataset

from dmlcore.data.array_tables import ARRAYS, array_table
from dmlcore.data.arrow_tables import ColumnOptions, arrow_table, joined_parts
from dmlcore.data.image_tables import PixelOptions
from dmlcore.data.indexed_datasets import dataset_table
from dmlcore.data.levels import LevelOptions
from dmlcore.data.multi_label import named_sets
from dmlcore.data.sources import DataSource, Table
from dmlcore.errors import DataError

_WHERE = "the data from Python"
_FORMS = (
    "give arrays or tensors (x, y), a dict with x and y, a map-style torch Dataset of (sample, label), a DataLoader, or a data"
    " set of Hugging Face"
)


@dataclass(frozen=True)
class PythonOptions(LevelOptions, PixelOptions):
    """Options of data from Python."""


class PythonData(DataSource):
    """What stands for data that a Python program gives. A configuration can name it, but not bring the data.

    Attributes:
        samples: the data. None: they are not in this process.
    """

    name = "python_data"
    Options = PythonOptions
    samples: Any = None

    def load(self) -> Table:
        """The samples as a table.

        Raises:
            DataError: there are none, or of a form that is not known, or they cannot be used.
        """
        data = self.samples
        if data is None:
            raise DataError(
                "python_data stands for data that a Python program gave, which are not here. Continue from Python:"
                " dmlcore.train(data=...), and dmlcore.train(resume=RUN, data=...) for a run"
            )
        if isinstance(data, DataLoader):
            data = data.dataset
        if isinstance(data, Mapping) and "x" in data:
            return self._of_arrays(data)
        if isinstance(data, tuple | list) and len(data) == 2 and all(map(_is_column, data)):
            return self._of_arrays({"x": data[0], "y": data[1]})
        if not self.needs_labels and isinstance(data, np.ndarray):
            return self._of_arrays({"x": data})
        sizes = {"image_size": self.image_size, "default_image_size": self.default_image_size}
        table, names, split = _columns_of(data)
        if table is not None:
            options = ColumnOptions(
                levels=self.options.levels,
                augment=self.options.augment,
                flip=self.options.flip,
                memory_mb=self.options.memory_mb,
            )
            return arrow_table(table, _WHERE, options, class_names=names, split=split, needs_labels=self.needs_labels, **sizes)
        if isinstance(data, IterableDataset) or not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
            raise DataError(f"data of the type {type(data).__name__} cannot be read by number: {_FORMS}")
        if isinstance(data, str | bytes | Mapping):
            raise DataError(f"data of the type {type(data).__name__} are not known: {_FORMS}")
        return dataset_table(data, self.options, _WHERE, **sizes)

    def _of_arrays(self, arrays: Mapping[str, Any]) -> Table:
        unknown = [str(name) for name in arrays if name not in (*ARRAYS, *self.options.levels)]
        if unknown:
            raise DataError(f"{_WHERE} have '{unknown[0]}', but arrays are called {', '.join(ARRAYS)}")
        sets = None
        if _are_lists_of_labels(arrays.get("y")):
            sets = named_sets(arrays["y"], arrays.get("class_name"), f"'y' in {_WHERE}")
            arrays = {name: values for name, values in arrays.items() if name not in ("y", "class_name")}
        plain = {name: as_array(values, name) for name, values in arrays.items() if values is not None}
        return array_table(plain, _WHERE, self.options, needs_labels=self.needs_labels, takes_floats=True, sets=sets)


def as_array(values: Any, name: str) -> np.ndarray:
    """An array of numbers or text out of a tensor, an array, a column of a data frame or a list.

    Raises:
        DataError: it holds objects, or rows of different lengths.
    """
    try:
        if hasattr(values, "detach"):
            values = values.detach().cpu()
            values = values.float() if str(values.dtype) == "torch.bfloat16" else values
        array = np.asarray(values)
        if array.dtype.kind in "OT" and all(isinstance(entry, str) for entry in array.flat):
            array = array.astype(str)
    except Exception as error:
        raise DataError(f"'{name}' in {_WHERE} is no array: {' '.join(str(error).split())}") from None
    if array.dtype.kind == "O":
        raise DataError(f"'{name}' in {_WHERE} holds Python objects, but must hold numbers or text, with rows of one length")
    return array


def _are_lists_of_labels(values: Any) -> bool:
    """Whether labels are lists of labels, and no rows of 0 and 1 of one length, which are a matrix."""
    if not isinstance(values, list | tuple) or not all(isinstance(entry, list | tuple | set) for entry in values):
        return False
    return len({len(entry) for entry in values}) != 1 or any(label not in (0, 1) for entry in values for label in entry)


def _is_column(values: Any) -> bool:
    """Whether something may be an array or a list of samples or labels, and no sample with its label."""
    return hasattr(values, "__len__") and not isinstance(values, str | bytes | tuple | Mapping)


def _columns_of(data: Any) -> tuple[Any, list[str] | None, np.ndarray | None]:
    """A table of Arrow, the names of its classes and its split, out of a data set of Hugging Face, a dict of such by part, or a
    table of Arrow. None: it is none of these."""
    parts: dict[str, Any] = dict(data) if isinstance(data, Mapping) else {}
    if parts and all(_is_hugging_face(part) for part in parts.values()):
        table, split = joined_parts({str(word): part.with_format("arrow")[:] for word, part in parts.items()}, _WHERE)
        return table, _class_names(next(iter(parts.values()))), split
    if not parts and _is_hugging_face(data):
        whole: Any = data
        return whole.with_format("arrow")[:], _class_names(whole), None
    is_arrow = type(data).__module__.partition(".")[0] == "pyarrow" and hasattr(data, "column_names")
    return (data if is_arrow else None), None, None


def _is_hugging_face(data: Any) -> bool:
    return all(hasattr(data, name) for name in ("with_format", "column_names", "features", "__getitem__", "__len__"))


def _class_names(data: Any) -> list[str] | None:
    """The names of the one column of classes; None where none or several are such."""
    inner = (getattr(feature, "feature", feature) for feature in data.features.values())  # of a list of classes, the class
    names = [list(feature.names) for feature in inner if getattr(feature, "names", None)]
    return names[0] if len(names) == 1 else None
