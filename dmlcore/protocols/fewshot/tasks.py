"""Drawing a task: source classes with training and validation samples, target classes with support and test samples.

Only numbers of samples are drawn here; nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dmlcore.errors import ConfigError
from dmlcore.protocols.fewshot.classes import Sides


@dataclass(frozen=True)
class Part:
    """Some samples with labels of their own.

    Attributes:
        rows: int64 `[N]`, samples of the table.
        labels: int64 `[N]`, 0..C - 1 in the order in which the classes were drawn.
    """

    rows: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, classes: Sequence[np.ndarray]) -> Part:
        """From the rows of each class."""
        return cls(np.concatenate(classes), np.repeat(np.arange(len(classes)), [len(rows) for rows in classes]))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def classes(self) -> int:
        """C."""
        return int(self.labels.max()) + 1 if len(self.labels) else 0

    def by_class(self) -> list[np.ndarray]:
        """Positions in this part of each class's samples, in their order."""
        order = np.argsort(self.labels, kind="stable")
        return np.split(order, np.cumsum(np.bincount(self.labels))[:-1])

    def first(self, count: int) -> Part:
        """At most `count` samples of each class, the first ones."""
        return self.at(np.concatenate([positions[:count] for positions in self.by_class()]))

    def without_first(self, count: int) -> Part:
        """All but the first `count` samples of each class."""
        return self.at(np.concatenate([positions[count:] for positions in self.by_class()]))

    def at(self, positions: np.ndarray) -> Part:
        """The samples at some positions."""
        return Part(self.rows[positions], self.labels[positions])


@dataclass(frozen=True)
class Task:
    """What one replication learns from and is tested on.

    Attributes:
        source_train, source_validation: of the source classes, disjoint.
        target: all samples of the target classes, shuffled within each class.
        source_classes, target_classes: ids of the table.
        test_most: test samples of each class; 0: all.
    """

    source_train: Part
    source_validation: Part
    target: Part
    source_classes: list[int]
    target_classes: list[int]
    test_most: int = 0

    def support(self, k: int) -> Part:
        """k labelled samples of each target class; a smaller k's are the first of a larger one's."""
        return self.target.first(k)

    def test(self, k: int) -> Part:
        """The other samples of the target classes."""
        remaining = self.target.without_first(k)
        return remaining.first(self.test_most) if self.test_most else remaining


def draw_task(
    labels: np.ndarray,
    sides: Sides,
    n: int,
    source_n: int | None,
    *,
    seed: int,
    replication: int,
    validation_share: float = 0.25,
    source_most: int = 0,
    test_most: int = 0,
) -> Task:
    """Draw a task; the same arguments draw the same one.

    Args:
        labels: int64 `[N]`, classes of the table's samples.
        sides: where classes are drawn from.
        n: target classes, >= 2.
        source_n: source classes; None: all.
        seed: of all replications.
        replication: number of this one.
        validation_share: of the samples of a source class, in (0, 1); at least two validate and two train.
        source_most: samples kept of each source class; 0: all.
        test_most: as `Task`.

    Raises:
        ConfigError: fewer classes than asked for.
    """
    check_counts(sides, n, source_n)
    rng = np.random.default_rng((seed, replication, n, 1))
    target = [int(label) for label in rng.permutation(sides.target)]
    source = [int(label) for label in rng.permutation(sides.source)] if sides.source else target[n:]
    target, source = target[:n], source[:source_n]
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], np.arange(int(labels.max()) + 2))

    def shuffled(label: int) -> np.ndarray:
        return rng.permutation(order[starts[label] : starts[label + 1]])

    train, validation = [], []
    for label in source:
        rows = shuffled(label)[: source_most or None]
        held = min(max(round(validation_share * len(rows)), 2), len(rows) - 2)
        validation.append(rows[:held])
        train.append(rows[held:])
    target_rows = [shuffled(label) for label in target]
    return Task(Part.of(train), Part.of(validation), Part.of(target_rows), source, target, test_most)


def check_counts(sides: Sides, n: int, source_n: int | None) -> None:
    """Whether so many classes can be drawn.

    Raises:
        ConfigError: they cannot.
    """
    if n < 2:
        raise ConfigError(f"n is {n}, but at least two target classes must be told apart")
    if n > len(sides.target):
        raise ConfigError(f"n is {n}, but there are {len(sides.target)} target classes")
    there = len(sides.source) if sides.source else len(sides.target) - n
    needed = 2 if source_n is None else source_n
    if needed > there:
        left = "" if sides.source else f" beside {n} target classes"
        raise ConfigError(
            f"{needed} source classes are needed, but there are {there}{left}: give a smaller --source-n (default: n) or --n"
        )
