"""Samples with several labels each. Those with the same labels make a class of a table, so that whatever knows classes works,
and a table says which labels each of its classes has."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dmlcore.data.class_names import is_missing, tidy_names
from dmlcore.data.label_sets import LabelSets
from dmlcore.errors import DataError

_BETWEEN = re.compile(r"[;|]")


class NamedSets(NamedTuple):
    """The labels of N samples.

    Attributes:
        sets: of the samples; empty where one has no label.
        names: of the labels, a name each.
        notes: what the user should know.
    """

    sets: LabelSets
    names: list[str]
    notes: list[str]


class SetClasses(NamedTuple):
    """Classes of samples with the same labels.

    Attributes:
        labels: int64 [n], the class of each sample.
        class_names: the names of their labels, one behind the other.
        sets: labels of each class.
    """

    labels: np.ndarray
    class_names: list[str]
    sets: LabelSets


def parted_labels(text: str) -> list[str]:
    """The labels in a text, where semicolons or bars stand between them."""
    return [label.strip() for label in _BETWEEN.split(text)]


def named_sets(lists: Sequence[Sequence[Any] | None], names: Sequence[str] | None = None, where: str = "") -> NamedSets:
    """Sets out of lists of labels, texts or whole numbers.

    Args:
        lists: of N samples; None or empty: no label.
        names: of whole numbers 0..L - 1. None: they go by themselves.
        where: what holds them, for messages.

    Raises:
        DataError: a label that is no text and no whole number, or has no name.
    """
    texts = [
        [_named(label, names, where) for label in labels if label is not None] for labels in (some or () for some in lists)
    ]
    tidied, notes = tidy_names(label for labels in texts for label in labels if not is_missing(label))
    ordered = sorted(set(tidied.values()))
    number = {name: label for label, name in enumerate(ordered)}
    sets = LabelSets.of([[number[tidied[label]] for label in labels if label in tidied] for labels in texts], len(ordered))
    return NamedSets(sets, ordered, notes)


def _named(label: Any, names: Sequence[str] | None, where: str) -> str:
    if isinstance(label, str):
        return label
    label = label.item() if isinstance(label, np.generic) else label
    if isinstance(label, bool) or not isinstance(label, int):
        raise DataError(f"{where} has the label {label!r} in a list, but labels are whole numbers or text")
    if names is None:
        return str(label)
    if not 0 <= label < len(names):
        raise DataError(f"{where} has the label {label} in a list, but names for 0..{len(names) - 1}")
    return str(names[label])


def sets_of_matrix(matrix: np.ndarray, names: np.ndarray | None, where: str, noun: str = "y") -> NamedSets:
    """Sets out of a matrix [N, L] of 0 and 1.

    Args:
        matrix: of any type of numbers.
        names: text [L], or None: labels go by their numbers.
        where: what holds it, for messages.
        noun: of the matrix.

    Raises:
        DataError: other numbers, or another number of names.
    """
    if matrix.dtype.kind not in "iubf" or not np.isin(matrix, (0, 1)).all():
        raise DataError(
            f"'{noun}' in {where} is a matrix {list(matrix.shape)}, so it must hold 0 and 1: which labels each row has"
        )
    if names is not None and names.shape != (matrix.shape[1],):
        raise DataError(f"'{noun}' in {where} has {matrix.shape[1]} columns, but there are {len(names)} names of labels")
    tidied, _ = tidy_names(str(name) for name in names) if names is not None else ({}, [])
    labels = [tidied[str(name)] for name in names] if names is not None else [str(label) for label in range(matrix.shape[1])]
    return NamedSets(LabelSets.of_matrix(matrix.astype(bool)), labels, [])


def labelled_rows(sets: NamedSets, count: int, where: str, noun: str = "y") -> tuple[np.ndarray, list[str]]:
    """The samples that have a label, int64, and the notes with one about the others.

    Args:
        sets: of the samples.
        count: of samples that are expected.
        where: what holds them, for messages.
        noun: of the labels.

    Raises:
        DataError: another number of samples, no label at all.
    """
    if len(sets.sets) != count:
        raise DataError(f"'{noun}' in {where} has labels of {len(sets.sets)} samples, but there are {count}")
    rows = np.flatnonzero(sets.sets.sizes)
    if not len(rows):
        raise DataError(f"'{noun}' in {where} has no label: all are empty")
    left_out = [f"{count - len(rows)} rows without a label were left out"] if len(rows) < count else []
    return rows, [*sets.notes, *left_out]


def set_classes(sets: LabelSets, names: Sequence[str]) -> SetClasses:
    """The classes of samples, each of which has a label, in the order of their names."""
    distinct, place = sets.distinct()
    listed = ["; ".join(names[int(label)] for label in distinct.index[start:stop]) for start, stop in distinct.bounds()]
    order = np.array(sorted(range(len(listed)), key=listed.__getitem__), dtype=np.int64)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return SetClasses(rank[place], [listed[number] for number in order], distinct.select(order))


def split_by_label(sets: LabelSets, fractions: Sequence[float], seed: int) -> tuple[np.ndarray, list[str]]:
    """A split at random that holds labels out: labels are taken for test one by one, with all samples that have them, and then
    for validation, until these are as large as they shall be. A sample with labels of both sides is held out. Where the labels
    of samples are too mixed for that, the samples are split.

    Args:
        sets: of N samples.
        fractions: of the samples for train, validation and test.
        seed: of the draw.

    Returns:
        text [N], and notes for the user.

    Raises:
        DataError: fewer than three samples for each part.
    """
    count = len(sets)
    generator = np.random.default_rng((seed, 1))
    holders = sets.holders()
    order = generator.permutation(np.flatnonzero(holders.sizes > 1))
    split = np.full(count, "train", dtype="<U10")
    held = {"test": 0, "validation": 0}
    for part, share in (("test", fractions[2]), ("validation", fractions[1])):
        is_free = np.ones(len(order), dtype=bool)
        for place, label in enumerate(order):
            rows = holders.index[holders.starts[label] : holders.starts[label + 1]]
            rows = rows[split[rows] == "train"]
            taken = int((split == part).sum())
            if len(rows) < 2 or taken + len(rows) > 1.2 * share * count:
                continue
            split[rows], is_free[place] = part, False
            held[part] += 1
        order = order[is_free]
    least = min(
        int((split == part).sum()) / share for part, share in zip(("train", "validation", "test"), fractions, strict=True)
    )
    if min(held.values()) >= 2 and least > 0.5 * count:
        return split, [
            f"labels split at random: {held['validation']} of {sets.count} are held out for validation and {held['test']} for"
            f" test, with all samples that have them"
        ]
    if count < 9:
        raise DataError(f"the data has {count} samples with several labels each, too few for three parts. Add samples")
    split = np.full(count, "train", dtype="<U10")
    rows = generator.permutation(count)
    sizes = [max(3, round(count * share)) for share in fractions[1:]]
    split[rows[: sizes[0]]], split[rows[sizes[0] : sum(sizes)]] = "validation", "test"
    return split, [
        "the labels of samples are too mixed to hold some out, so samples are split at random: the test labels are trained on,"
        " and the scores say nothing about new labels"
    ]


def held_out_labels(sets: LabelSets, trained: LabelSets) -> np.ndarray | None:
    """Labels bool [L] by which a part is judged: those that no training sample has, if all samples of the part have one of them
    and they are several; else None, which is all.

    Args:
        sets: of the samples of the part.
        trained: of the training samples.
    """
    is_new = np.ones(sets.count, dtype=bool)
    is_new[trained.index] = False
    new = sets.only(is_new)
    return is_new if len(sets) and new.sizes.min() > 0 and len(np.unique(new.index)) > 1 else None
