"""MATLAB files of versions 4 to 7.2 as arrays. Nothing in them is run. What the arrays mean is known to the sources."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dmlcore.errors import DataError


def read_matlab(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Variables of a MATLAB file, with at least one dimension each.

    Args:
        path: of the file.
        names: of the variables.

    Raises:
        DataError: no such file, one that is damaged or of version 7.3, a variable that it lacks.
    """
    from scipy.io import loadmat  # 0.1 s, for few data only

    if not path.is_file():
        raise DataError(f"there is no file '{path}'")
    try:
        variables = loadmat(str(path), appendmat=False, squeeze_me=True, variable_names=list(names))
    except NotImplementedError:
        raise DataError(f"'{path}' is a MATLAB file of version 7.3, but those up to 7.2 are read. Save it with -v7") from None
    except Exception as error:  # its parser raises nearly every type for a malformed file
        raise DataError(
            f"'{path}' is damaged, or no MATLAB file: {str(error).splitlines()[0] if str(error) else error!r}"
        ) from None
    missing = [name for name in names if name not in variables]
    if missing:
        raise DataError(f"the MATLAB file '{path}' has no variable '{missing[0]}'")
    return {name: np.atleast_1d(variables[name]) for name in names}


def matlab_numbers(values: np.ndarray, what: str) -> np.ndarray:
    """Numbers of a MATLAB file, also those that stand in a struct one by one: int64 [N].

    Raises:
        DataError: some are no whole numbers.
    """
    numbers = np.array([_single(value) for value in values], dtype=object)
    if not all(isinstance(number, int | float) and float(number).is_integer() for number in numbers):
        raise DataError(f"{what} must be whole numbers")
    return numbers.astype(np.int64)


def matlab_texts(values: np.ndarray, what: str) -> list[str]:
    """Texts of a MATLAB file, from a cell array or the field of a struct.

    Raises:
        DataError: some are no texts.
    """
    single = [_single(value) for value in values]
    if not all(isinstance(value, str) for value in single):
        raise DataError(f"{what} must be texts")
    return single


def matlab_field(records: np.ndarray, name: str, where: Path) -> np.ndarray:
    """A field of all structs of an array.

    Raises:
        DataError: they have no such field.
    """
    if records.dtype.names is None or name not in records.dtype.names:
        raise DataError(f"the structs of '{where}' have no field '{name}'")
    return records[name]


def _single(value: Any) -> Any:
    """The one entry of what MATLAB stores as a matrix of one."""
    array = np.asarray(value)
    return array.reshape(-1)[0].item() if array.size == 1 and array.dtype != object else value
