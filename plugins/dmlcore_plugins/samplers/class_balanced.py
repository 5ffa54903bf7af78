"""Batches of P classes times K samples."""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd
from typing import Any

import numpy as np

import dmlcore
from dmlcore.config import check_range
from dmlcore.data import BatchSampler
from dmlcore.errors import ConfigError
from dmlcore_plugins.samplers.label_balanced import LabelBalancedSampler


class ClassBalancedSampler(BatchSampler):
    """Batches of P classes with K samples each.

    The classes go round in shuffled rounds: each appears once before any appears again, and never twice in a batch. The
    samples of a class go round in the same way, and never repeat in a batch unless the class has fewer than K: then all of
    them are taken and the missing ones drawn again at random. The n-th batch depends on the labels, P, K and the seed only.

    Args:
        labels: int64 [N], any ids.
        classes_per_batch: P, 2..number of classes.
        samples_per_class: K >= 1.
        seed: of the stream.
        steps: batches of an epoch, as `BatchSampler`. None: it never ends.

    Where samples have several labels, `label_balanced` takes its place.

    Raises:
        ConfigError: P or K out of range.
    """

    name = "class_balanced"
    for_label_sets = LabelBalancedSampler

    def __init__(
        self,
        labels: np.ndarray,
        classes_per_batch: int,
        samples_per_class: int,
        seed: int,
        steps: int | None = None,
        options: Any = None,
    ) -> None:
        super().__init__(labels, classes_per_batch, samples_per_class, seed, steps, options)
        labels = self.labels
        _, dense, counts = np.unique(labels, return_inverse=True, return_counts=True)
        check_range("samples_per_class", samples_per_class, least=1)
        check_range("classes_per_batch", classes_per_batch, least=2)
        if classes_per_batch > len(counts):
            raise ConfigError(
                f"classes_per_batch is {classes_per_batch}, but there are only {len(counts)} training classes."
                f" Lower it to {len(counts)} or less"
            )
        self._rows = np.argsort(dense, kind="stable")  # rows of class c: _rows[_starts[c] : _starts[c] + _counts[c]]
        self._counts = counts
        self._starts = np.cumsum(counts) - counts
        self._visits_per_block = [n // gcd(n, samples_per_class) if n >= samples_per_class else 1 for n in counts.tolist()]
        self._visits: dict[int, tuple[int, list[list[int]]]] = {}  # class -> number of its block, rows [visits, K]
        self._round = 0
        self._position = 0
        self._order = self._class_round(0, np.empty(0, dtype=np.int64))

    def __iter__(self) -> Iterator[list[int]]:
        """Index lists of length P * K, class by class, from the current step on to the end of its epoch."""
        last = self.last_step()
        while last is None or self.step < last:
            yield self._next()

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is. Cheap: the order of the classes is shared, not copied."""
        return {"seed": self.seed, "step": self.step, "round": self._round, "position": self._position, "order": self._order}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue a stream of the same labels, P and K exactly where `state_dict` was taken.

        Raises:
            ConfigError: the state is of data with another number of classes.
        """
        order = np.asarray(state["order"], dtype=np.int64)
        if len(order) != len(self._counts):
            raise ConfigError(f"the saved sampler is of {len(order)} training classes, but the data has {len(self._counts)}")
        self.seed, self.step = int(state["seed"]), int(state["step"])
        self._round, self._position, self._order = int(state["round"]), int(state["position"]), order
        self._visits.clear()

    def _next(self) -> list[int]:
        visits: list[tuple[int, int]] = []
        tail = self._order[self._position : self._position + self.classes_per_batch]
        visits += [(label, self._round) for label in tail.tolist()]
        self._position += len(tail)
        missing = self.classes_per_batch - len(tail)
        if missing:
            self._round += 1
            self._order = self._class_round(self._round, tail)
            self._position = missing
            visits += [(label, self._round) for label in self._order[:missing].tolist()]
        self.step += 1
        rows: list[int] = []
        for label, visit in visits:
            rows += self._class_rows(label, visit)
        return rows

    def _class_round(self, number: int, tail: np.ndarray) -> np.ndarray:
        generator = np.random.default_rng((self.seed, 3, number))
        return _shuffled_after(generator, len(self._counts), tail, self.classes_per_batch)

    def _class_rows(self, label: int, visit: int) -> list[int]:
        """Rows [K] of a class when it is drawn for the `visit`-th time."""
        number, offset = divmod(visit, self._visits_per_block[label])
        block = self._visits.get(label)
        if block is None or block[0] != number:
            generator = np.random.default_rng((self.seed, 4, label, number))
            order = _visit_block(generator, int(self._counts[label]), self.samples_per_class)
            block = self._visits[label] = number, self._rows[self._starts[label] + order].tolist()
        return block[1][offset]


def _visit_block(generator: np.random.Generator, count: int, per_visit: int) -> np.ndarray:
    """The shortest whole number of rounds over 0..count - 1 that is also a whole number of visits: int [visits, K]."""
    if count < per_visit:
        again = generator.integers(0, count, per_visit - count)
        return np.concatenate([generator.permutation(count), again])[None]
    rounds: list[np.ndarray] = []
    open_visit = np.empty(0, dtype=np.int64)  # the samples of a visit that the next round has to complete
    for _ in range(per_visit // gcd(count, per_visit)):
        order = _shuffled_after(generator, count, open_visit, per_visit)
        rounds.append(order)
        unfinished = (len(open_visit) + count) % per_visit
        open_visit = order[count - unfinished :]
    return np.concatenate(rounds).reshape(-1, per_visit).astype(np.int32)


def _shuffled_after(generator: np.random.Generator, count: int, tail: np.ndarray, group: int) -> np.ndarray:
    """A permutation of 0..count - 1 whose first elements complete a group begun by `tail` without repeating any of it."""
    order = generator.permutation(count)
    missing = (group - len(tail)) % group
    if not len(tail) or not missing:
        return order
    # The tail is shorter than a group, so enough other elements are among as many elements as a group has.
    first, taken = order[:group].tolist(), set(tail.tolist())
    head = [element for element in first if element not in taken][:missing]
    moved = set(head)
    order[:group] = head + [element for element in first if element not in moved]
    return order


@dmlcore.hookimpl
def dmlcore_samplers() -> list[type]:
    return [ClassBalancedSampler]
