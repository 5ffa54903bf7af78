"""Labels with coarser ones above them, such as species, genus and family: every class of a table has a group at each level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dmlcore.data.class_names import is_missing, tidy_names
from dmlcore.errors import ConfigError, DataError
from dmlcore.files import writable_text


@dataclass(frozen=True)
class LevelOptions:
    """An option of sources whose samples may have coarser labels."""

    levels: tuple[str, ...] = ()
    """The columns or arrays of coarser labels beside the label, from fine to coarse, separated by commas."""

    def __post_init__(self) -> None:
        parent = getattr(super(), "__post_init__", None)
        if parent is not None:
            parent()
        if len(set(self.levels)) < len(self.levels) or not all(self.levels):
            raise ConfigError(f"levels is '{','.join(self.levels)}', but must name different columns")


class Levelled(NamedTuple):
    """Classes that each have a group at every level.

    Attributes:
        labels: int64 [N].
        class_names: a name per class.
        levels: by level, from fine to coarse, the group of each class.
        notes: what the user should know.
    """

    labels: np.ndarray
    class_names: list[str]
    levels: dict[str, list[str]]
    notes: list[str]


def levelled(labels: np.ndarray, class_names: Sequence[str], columns: Mapping[str, Sequence[str]], where: str) -> Levelled:
    """Classes with their groups. A name that stands in several groups means another class or group in each.

    Args:
        labels: int64 [N], index into `class_names`.
        class_names: of the finest labels.
        columns: by level, from fine to coarse, text [N].
        where: what holds them, for messages.

    Raises:
        DataError: a sample without a group.
    """
    names = [np.array([str(name) for name in class_names])[labels], *map(_tidied, columns.values())]
    for level, column in zip(columns, names[1:], strict=True):
        missing = np.flatnonzero([is_missing(name) for name in column.tolist()])
        if len(missing):
            raise DataError(f"'{writable_text(level)}' of sample {missing[0]} in {where} is empty, but all need one")
    notes = []
    for place in range(len(names) - 2, -1, -1):  # from coarse to fine, so that a group's name is unique already
        pairs = np.unique(np.stack([names[place], names[place + 1]]), axis=1)
        values, counts = np.unique(pairs[0], return_counts=True)
        several = values[counts > 1]
        if len(several):
            is_several = np.isin(names[place], several)
            both = [f"{name} ({group})" for name, group in zip(names[place], names[place + 1], strict=True)]
            names[place] = np.where(is_several, np.array(both), names[place])
            what = "label" if place == 0 else list(columns)[place - 1]
            shown = ", ".join(f"'{name}'" for name in several[:3])
            notes.append(f"{len(several)} names of '{what}' stand in several groups and are one in each: {shown}")
    present, first, dense = np.unique(names[0], return_index=True, return_inverse=True)
    levels = {level: [str(column[row]) for row in first] for level, column in zip(columns, names[1:], strict=True)}
    return Levelled(dense.astype(np.int64), [str(name) for name in present], levels, notes)


def _tidied(column: Sequence[str]) -> np.ndarray:
    tidied, _ = tidy_names(str(name) for name in column)
    return np.array([tidied[str(name)] for name in column])
