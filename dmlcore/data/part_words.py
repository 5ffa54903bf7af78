"""What a split says of each sample: the words that are understood, and queries and a gallery among the test samples. How
samples are split is in `splits`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dmlcore.errors import DataError

PARTS = ("train", "validation", "test")
ROLES = ("query", "gallery")  # of test samples: what is asked, and among what the answers are looked for
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "0": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "1": "validation",
    "test": "test",
    "testing": "test",
    "2": "test",
    "query": "query",
    "queries": "query",
    "q": "query",
    "probe": "query",
    "gallery": "gallery",
    "reference": "gallery",
    "references": "gallery",
}


def split_words(words: Sequence[Any] | np.ndarray, where: str) -> np.ndarray:
    """Text [N] of `train`, `validation`, `test`, `query`, `gallery` from the usual spellings (`val`, 0, `probe`, ...).

    Args:
        words: one per sample.
        where: the file, for messages.

    Raises:
        DataError: an unknown word or none at all.
    """
    unique, inverse = np.unique(np.asarray(words).astype(str), return_inverse=True)
    for word in unique:
        if word.strip().lower() not in SPLIT_WORDS:
            row = int(np.flatnonzero(unique[inverse] == word)[0])
            shown = f"is '{word}'" if word.strip() else "is empty"
            raise DataError(
                f"the split of sample {row} in {where} {shown}, but must be train, validation, test, query or gallery"
            )
    return np.array([SPLIT_WORDS[word.strip().lower()] for word in unique])[inverse]


def rows_of_part(split: np.ndarray, part: str) -> tuple[np.ndarray, np.ndarray | None]:
    """The rows of a part, int64 [n], and the role of each, text [n] of `test` (both), `query` and `gallery`, or None where all
    are both. Queries and the gallery belong to the test part.

    Args:
        split: text [N], empty for rows that are in no part.
        part: a word of the split.
    """
    words = ("test", *ROLES) if part == "test" else (part,)
    rows = [np.flatnonzero(split == word) for word in words]
    roles = np.repeat(words, [len(some) for some in rows])
    return np.concatenate(rows), roles if sum(map(len, rows[1:])) else None


def join_own_entries(split: np.ndarray, labels: np.ndarray, digests: Callable[[], np.ndarray]) -> tuple[np.ndarray, list[str]]:
    """A split in which no query is in the gallery a second time: such a sample is one of `test` instead, which is both, and the
    other row is in no part.

    Args:
        split: text [N].
        labels: int64 [N].
        digests: gives uint64 [N], of the content of the samples.

    Returns:
        text [N] and notes.
    """
    queries, gallery = (np.flatnonzero(split == role) for role in ROLES)
    if not len(queries) or not len(gallery):
        return split, []
    values = digests()
    entries = {(label, digest): [] for label, digest in zip(labels[gallery].tolist(), values[gallery].tolist(), strict=True)}
    for row, key in zip(gallery.tolist(), zip(labels[gallery].tolist(), values[gallery].tolist(), strict=True), strict=True):
        entries[key].append(row)
    split, joined = split.copy(), 0
    for row, key in zip(queries.tolist(), zip(labels[queries].tolist(), values[queries].tolist(), strict=True), strict=True):
        if entries.get(key):
            split[entries.pop(key)] = ""
            split[row] = "test"
            joined += 1
    return split, [f"{joined} queries are in the gallery too: no query finds itself"] if joined else []


def check_roles(present: set[str]) -> None:
    """Refuse queries without a gallery, and a gallery without queries; samples of `test` are both.

    Raises:
        DataError: there is one without the other.
    """
    roles = present & set(ROLES)
    if len(roles) == 1 and "test" not in present:
        has, lacks = ("query", "gallery") if "query" in roles else ("gallery", "query")
        raise DataError(
            f"the split given by the data has samples of '{has}', but none of '{lacks}', so nothing can be ranked: give both,"
            f" or call them test, where each is a query against all others"
        )
