"""Conditions on the columns of an index, as they are typed: `label=cup,bowl`, `label!=cup`, `price<10`."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dmlcore.errors import ConfigError, suggestion

_CONDITION = re.compile(r"\s*(?P<column>[^=!<>]+?)\s*(?P<sign>!=|<=|>=|=|<|>)(?P<value>.*)", re.S)
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


def column_of(table: Any, name: str) -> np.ndarray:
    """A column, [N].

    Args:
        table: of Arrow.
        name: of the column.

    Raises:
        ConfigError: there is none.
    """
    if name not in table.column_names:
        raise ConfigError(f"the entries have no column '{name}'.{suggestion(name, table.column_names)}")
    return table[name].to_numpy()


def met(table: Any, conditions: Sequence[str]) -> np.ndarray:
    """Which rows meet all conditions, bool [N].

    Raises:
        ConfigError: a condition that cannot be read, an unknown column, or a comparison of text by size.
    """
    result = np.ones(len(table), dtype=bool)
    for condition in conditions:
        match = _CONDITION.fullmatch(condition)
        if match is None:
            raise ConfigError(f"'{condition}' is no condition; expected COLUMN=VALUE[,VALUE], COLUMN!=VALUE or COLUMN<NUMBER")
        values, sign, text = column_of(table, match["column"]), match["sign"], match["value"].strip()
        is_text = values.dtype.kind not in "iufb"
        if sign in _COMPARE:
            if is_text:
                raise ConfigError(f"'{condition}' compares by size, but '{match['column']}' holds text")
            result &= _COMPARE[sign](values, _number(text, condition))
        else:
            is_in = _is_text_in(values, text) if is_text else np.isin(values, [_number(t, condition) for t in text.split(",")])
            result &= is_in if sign == "=" else ~is_in
    return result


def _is_text_in(values: np.ndarray, text: str) -> np.ndarray:
    """A value that holds commas is meant as a whole where there is such a value."""
    whole = values == text
    return whole if whole.any() else np.isin(values.astype(str), [part.strip() for part in text.split(",")])


def _number(text: str, condition: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"'{condition}' compares with '{text}', but a number is needed") from None
