"""How sure means over queries are, and whether two models differ: a bootstrap and a permutation test, both over classes.

A model is measured on classes in order to say how it will do on others, and queries of one class are easy or hard together. So
classes are drawn anew, each with all of its queries, and not single queries: intervals over queries would be too narrow. The
references stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

REPLICATES = 1_000
FLIPS = 9_999  # the smallest p-value is 1 / (FLIPS + 1)
LEVEL = 0.95
_CELLS = 1 << 22  # numbers drawn at a time


@dataclass(frozen=True)
class ClassSums:
    """Sums of measures over the queries of each class that are counted, at least one each.

    Attributes:
        measures: M names.
        classes: int64 [C], rising.
        counts: float64 [C], queries.
        sums: float64 [C, M].
    """

    measures: tuple[str, ...]
    classes: np.ndarray
    counts: np.ndarray
    sums: np.ndarray

    @classmethod
    def of(cls, values: Mapping[str, np.ndarray], classes: np.ndarray) -> ClassSums:
        """Sums out of the measures of queries.

        Args:
            values: float64 [q] by name; all are NaN for a query that does not count.
            classes: int64 [q], at least 0.
        """
        counted = ~np.isnan(next(iter(values.values())))
        classes = classes[counted]
        counts = np.bincount(classes)
        present = np.flatnonzero(counts)
        sums = [np.bincount(classes, rows[counted])[present] for rows in values.values()]
        return cls(tuple(values), present, counts[present].astype(np.float64), np.stack(sums, axis=1))

    def means(self) -> np.ndarray:
        """Means over the queries of each class, [C, M]."""
        return self.sums / self.counts[:, None]


@dataclass(frozen=True)
class Difference:
    """By how much the mean of a measure over queries is higher with the second of two models.

    Attributes:
        value: second less first.
        low, high: of the 95 % interval. None: no bootstrap.
        p_bootstrap: twice the share of replicates on the rarer side of zero. None: no bootstrap.
        p_flips: of the permutation test, two-sided.
    """

    value: float
    low: float | None
    high: float | None
    p_bootstrap: float | None
    p_flips: float


def intervals(sums: ClassSums, replicates: int = REPLICATES, seed: int = 0) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals of means over queries, by measure.

    A replicate draws as many classes as there are, with replacement. Its mean is over all queries of the classes drawn.

    Args:
        sums: of C classes, at least one.
        replicates: at least 1. O(replicates * C * M) time, bounded memory.
        seed: of the draws. The same seed gives the same classes for every model.

    Source: Efron, Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3; classes as clusters as in Davison,
    Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8.
    """
    means = _replicated(sums.counts, sums.sums, replicates, seed)
    low, high = np.quantile(means, ((1 - LEVEL) / 2, (1 + LEVEL) / 2), axis=0)
    return {name: (float(low[at]), float(high[at])) for at, name in enumerate(sums.measures)}


def differences(first: ClassSums, second: ClassSums, replicates: int = REPLICATES, seed: int = 0) -> dict[str, Difference]:
    """Paired comparison of two models on the same queries, by measure.

    The bootstrap draws classes, each with what both models find. The permutation test flips the sign of a class's summed
    difference: if the models do not differ, it is chance which of them is the better one on a class.

    Args:
        first, second: of the same classes with the same counts.
        replicates: of the bootstrap; 0: none.
        seed: of the draws.
    """
    assert np.array_equal(first.classes, second.classes) and np.array_equal(first.counts, second.counts)
    changes = second.sums - first.sums  # [C, M]
    values = changes.sum(0) / first.counts.sum()
    p_flips = _flipped(changes, seed)
    low = high = p_bootstrap = None
    if replicates:
        means = _replicated(first.counts, changes, replicates, seed)
        low, high = np.quantile(means, ((1 - LEVEL) / 2, (1 + LEVEL) / 2), axis=0)
        rarer = np.minimum((means <= 0).sum(0), (means >= 0).sum(0))
        p_bootstrap = np.minimum(1, 2 * (rarer + 1) / (replicates + 1))  # never 0, which no number of draws shows
    return {
        name: Difference(
            float(values[at]),
            None if low is None else float(low[at]),
            None if high is None else float(high[at]),
            None if p_bootstrap is None else float(p_bootstrap[at]),
            float(p_flips[at]),
        )
        for at, name in enumerate(first.measures)
    }


def holm(p_values: np.ndarray) -> np.ndarray:
    """p-values of several tests, so that the chance of any false claim stays below the level: the smallest times their number,
    the next times one less, and so on; never falling, at most 1.

    Source: Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics, 1979.
    """
    order = np.argsort(p_values, kind="stable")
    scaled = p_values[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(1, np.maximum.accumulate(scaled))
    return corrected


def _replicated(counts: np.ndarray, sums: np.ndarray, replicates: int, seed: int) -> np.ndarray:
    """Means over the queries of classes drawn anew, [replicates, M]."""
    generator, classes = np.random.default_rng((seed, 5)), len(counts)
    parts = []
    for rows in _pieces(replicates, classes):
        drawn = generator.integers(classes, size=(rows, classes)) + np.arange(rows)[:, None] * classes
        times = np.bincount(drawn.ravel(), minlength=rows * classes).reshape(rows, classes).astype(np.float64)
        parts.append((times @ sums) / (times @ counts)[:, None])
    return np.concatenate(parts)


def _flipped(changes: np.ndarray, seed: int) -> np.ndarray:
    """Two-sided p-values [M] of sums of changes, [C, M], under random signs of the classes; exact where all can be tried."""
    changes = changes[(changes != 0).any(1)]  # the sign of nothing does not matter
    classes = len(changes)
    least = np.abs(changes.sum(0)) * (1 - 1e-9)  # sums in another order are rounded differently
    if classes <= np.log2(FLIPS + 1):
        signs = 1.0 - 2 * (np.arange(1 << classes)[:, None] >> np.arange(classes) & 1)
        return (np.abs(signs @ changes) >= least).mean(0)
    generator, reached = np.random.default_rng((seed, 6)), np.zeros(changes.shape[1])
    for rows in _pieces(FLIPS, classes):
        bits = np.unpackbits(np.frombuffer(generator.bytes(rows * -(-classes // 8)), np.uint8).reshape(rows, -1), axis=1)
        signs = 1.0 - 2 * bits[:, :classes]
        reached += (np.abs(signs @ changes) >= least).sum(0)
    return (reached + 1) / (FLIPS + 1)


def _pieces(count: int, classes: int) -> Iterator[int]:
    """How many draws to make at a time."""
    size = max(1, _CELLS // classes)
    for start in range(0, count, size):
        yield min(size, count - start)
