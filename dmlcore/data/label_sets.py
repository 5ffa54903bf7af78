"""Which labels each of many things has, where it may have several: kept as lists of those that are there, not as a matrix."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LabelSets:
    """A set of labels for each of n things.

    Attributes:
        starts: int64 [n + 1]; the labels of thing `i` are `index[starts[i]:starts[i + 1]]`.
        index: int64, labels in 0..count - 1, rising within a thing.
        count: L, of labels.
    """

    starts: np.ndarray
    index: np.ndarray
    count: int

    @classmethod
    def of(cls, sets: Sequence[Sequence[int]], count: int) -> LabelSets:
        """Sets out of lists of labels in 0..count - 1; a label that is listed twice counts once."""
        sizes = np.array([len(labels) for labels in sets], dtype=np.int64)
        things = np.repeat(np.arange(len(sets)), sizes)
        return cls.of_pairs(things, np.array([label for labels in sets for label in labels], dtype=np.int64), len(sets), count)

    @classmethod
    def of_matrix(cls, matrix: np.ndarray) -> LabelSets:
        """Sets out of a bool matrix [n, L]."""
        things, labels = np.nonzero(matrix)
        return cls.of_pairs(things, labels, *matrix.shape)

    @classmethod
    def of_pairs(cls, things: np.ndarray, labels: np.ndarray, n: int, count: int) -> LabelSets:
        """Sets out of pairs of a thing and a label, int64 [p] each, in any order."""
        pairs = np.unique(things.astype(np.int64) * max(count, 1) + labels)
        sizes = np.bincount(pairs // max(count, 1), minlength=n)
        return cls(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64), pairs % max(count, 1), count)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def sizes(self) -> np.ndarray:
        """int64 [n], how many labels each has."""
        return np.diff(self.starts)

    def bounds(self) -> Iterator[tuple[int, int]]:
        """Where the labels of each thing begin and end in `index`."""
        return itertools.pairwise(self.starts.tolist())

    def select(self, things: np.ndarray) -> LabelSets:
        """The sets of some things, int64 [m], in their order."""
        sizes = self.sizes[things]
        starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        places = np.arange(starts[-1]) + np.repeat(self.starts[:-1][things] - starts[:-1], sizes)
        return LabelSets(starts, self.index[places], self.count)

    def only(self, labels: np.ndarray) -> LabelSets:
        """The same sets with some labels only, bool [L]; labels keep their numbers."""
        things = np.repeat(np.arange(len(self)), self.sizes)
        is_kept = labels[self.index]
        return LabelSets.of_pairs(things[is_kept], self.index[is_kept], len(self), self.count)

    def holders(self) -> LabelSets:
        """For each label the things that have it."""
        things = np.repeat(np.arange(len(self)), self.sizes)
        return LabelSets.of_pairs(self.index, things, self.count, len(self))

    def matrix(self, things: np.ndarray | None = None) -> np.ndarray:
        """bool [m, L] of some things, int64 [m], or of all."""
        sets = self if things is None else self.select(things)
        matrix = np.zeros((len(sets), self.count), dtype=bool)
        matrix[np.repeat(np.arange(len(sets)), sets.sizes), sets.index] = True
        return matrix

    def distinct(self) -> tuple[LabelSets, np.ndarray]:
        """The sets that differ, in the order in which they come first, and int64 [n]: which of them each thing has."""
        numbers: dict[bytes, int] = {}
        place = np.empty(len(self), dtype=np.int64)
        first = []
        for thing, (start, stop) in enumerate(self.bounds()):
            key = self.index[start:stop].tobytes()
            if key not in numbers:
                numbers[key] = len(numbers)
                first.append(thing)
            place[thing] = numbers[key]
        return self.select(np.array(first, dtype=np.int64)), place
