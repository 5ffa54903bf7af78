"""Harder and easier divisions of classes into training and test: swapping classes between the sides, then leaving some out.
Which divisions become splits is `split_choice`'s, what the vectors of classes are is not here.

Source: Milbich, Roth, Sinha, Schmidt, Ghassemi, Ommer, "Characterizing Generalization under Out-Of-Distribution Shifts in Deep
Metric Learning", NeurIPS 2021. Deviations: an iteration that moves the distance the wrong way, or not at all, is undone, so
that the recorded curve is monotone. Removal leaves classes out only where that raises the distance. The published script
deletes where it does not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from dmlcore.protocols.shift.frechet import frechet_distance

LEAST_SIDE = 5  # classes: so many training classes give two for validation, as every part of the data needs


@dataclass(frozen=True)
class Division:
    """A division on the way.

    Attributes:
        stage: `easier`, `default`, `swap` or `removal`.
        fid: Fréchet distance between the two sides.
        swapped: classes of each side that came from the other, counted from the default. Negative where made easier.
        removed: classes left out of each side.
        train: int64 [n], classes of the training side.
        test: int64 [m].
    """

    stage: str
    fid: float
    swapped: int
    removed: int
    train: np.ndarray
    test: np.ndarray


class Driver(Protocol):
    """What decides which classes change sides. Positions are returned best first."""

    undoes: bool
    """Whether a swap is undone that does not raise the distance (or lower it, towards easier ones)."""

    def swaps(self, train: np.ndarray, test: np.ndarray, easier: bool) -> tuple[np.ndarray, np.ndarray]:
        """Positions on the training and on the test side whose classes are to be exchanged, pair by pair."""
        ...

    def removals(self, train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions on both sides whose classes are to be left out, equally many."""
        ...


class ByMeans:
    """The published ranking: a class is exchanged that lies nearer to the other side's mean than to its own, or nearly so.

    Args:
        vectors: float64 [C, F], one per class.
    """

    undoes = True

    def __init__(self, vectors: np.ndarray) -> None:
        self.vectors = vectors

    def swaps(self, train: np.ndarray, test: np.ndarray, easier: bool) -> tuple[np.ndarray, np.ndarray]:
        of_train, of_test = self.vectors[train].mean(0), self.vectors[test].mean(0)
        leaning = self._distances(train, of_test) - self._distances(train, of_train)  # small: looks like the other side
        leaning_test = self._distances(test, of_train) - self._distances(test, of_test)
        sign = -1 if easier else 1
        return np.argsort(sign * leaning, kind="stable"), np.argsort(sign * leaning_test, kind="stable")

    def removals(self, train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.swaps(train, test, False)

    def _distances(self, classes: np.ndarray, mean: np.ndarray) -> np.ndarray:
        return np.linalg.norm(self.vectors[classes] - mean, axis=1)


class ByGroups:
    """Classes of some groups move to the test side and those of all other groups to the training side, in an order drawn once.

    Args:
        is_test: bool [C], the classes that belong on the test side.
        seed: of the order.
    """

    undoes = False

    def __init__(self, is_test: np.ndarray, seed: int) -> None:
        self.is_test = is_test
        self.order = np.random.RandomState([seed, 11]).permutation(len(is_test))  # the same numbers in every numpy

    def swaps(self, train: np.ndarray, test: np.ndarray, easier: bool) -> tuple[np.ndarray, np.ndarray]:
        assert not easier, "groups are driven apart only"
        return self._positions(train, self.is_test[train]), self._positions(test, ~self.is_test[test])

    def removals(self, train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        wrong, wrong_test = self.swaps(train, test, False)
        count = max(len(wrong), len(wrong_test))
        fitting, fitting_test = self._positions(train, ~self.is_test[train]), self._positions(test, self.is_test[test])
        return np.concatenate([wrong, fitting])[:count], np.concatenate([wrong_test, fitting_test])[:count]

    def _positions(self, classes: np.ndarray, is_meant: np.ndarray) -> np.ndarray:
        positions = np.flatnonzero(is_meant)
        return positions[np.argsort(self.order[classes[positions]])]


def isometric(vectors: np.ndarray) -> np.ndarray:
    """Vectors with the same distances in at most as many columns as there are rows, so that every distance is cheaper.

    Args:
        vectors: [C, F].

    Returns:
        float64 [C, min(C, F)].
    """
    vectors = np.asarray(vectors, dtype=np.float64)
    vectors = vectors - vectors.mean(0)
    if vectors.shape[0] >= vectors.shape[1]:
        return vectors
    triangle = torch.linalg.qr(torch.from_numpy(vectors.T.copy()), mode="r").R  # [C, C]
    return triangle.T.contiguous().numpy()


def default_division(vectors: np.ndarray, train: np.ndarray, test: np.ndarray) -> Division:
    """The division that everything starts from."""
    return Division("default", frechet_distance(vectors[train], vectors[test]), 0, 0, train, test)


def swap(
    vectors: np.ndarray,
    start: Division,
    driver: Driver,
    *,
    pairs: int,
    history: int,
    patience: int,
    iterations: int,
    easier: bool = False,
    tell: Callable[[Division], None] = lambda division: None,
) -> list[Division]:
    """Exchange classes until the distance rises (or, towards easier divisions, falls) no more.

    An iteration costs O(C F) for the ranking and O(min(C, F)^2 max(C, F)) for the distance, whatever the number of pairs.

    Args:
        vectors: float64 [C, F], one per class.
        start: the default division.
        driver: ranks the classes.
        pairs: exchanged per iteration, at least 1.
        history: positions of the last so many pairs are not exchanged again. Those of the last iteration never are.
        patience: iterations without success in a row that end it, at least 1.
        iterations: at most.
        easier: lower the distance instead.
        tell: receives every division.

    Returns:
        The divisions behind `start`, in their order.
    """
    train, test = start.train.copy(), start.test.copy()
    from_test = np.zeros(len(vectors), dtype=bool)
    from_test[test] = True
    recent: deque[tuple[int, int]] = deque(maxlen=max(history, pairs))
    divisions: list[Division] = []
    fid, failures = start.fid, 0
    for _ in range(iterations):
        left, right = _next_pairs(*driver.swaps(train, test, easier), recent, pairs)
        if len(left) == 0:
            break
        train[left], test[right] = test[right], train[left]
        recent.extend(zip(left.tolist(), right.tolist(), strict=True))
        reached = frechet_distance(vectors[train], vectors[test])
        if driver.undoes and not (reached < fid if easier else reached > fid):
            train[left], test[right] = test[right], train[left]
            failures += 1
            if failures == patience:
                break
            continue
        failures, fid = 0, reached
        swapped = int(from_test[train].sum())
        stage, signed = ("easier", -swapped) if easier else ("swap", swapped)
        divisions.append(Division(stage, fid, signed, 0, train.copy(), test.copy()))
        tell(divisions[-1])
    return divisions


def _next_pairs(
    left: np.ndarray, right: np.ndarray, recent: deque[tuple[int, int]], pairs: int
) -> tuple[np.ndarray, np.ndarray]:
    """The first positions on both sides, equally many, that are not of pairs exchanged recently.

    Without that memory the ranking would exchange the same two classes to and fro, iteration after iteration.
    """
    left = left[~np.isin(left, [pair[0] for pair in recent])][:pairs]
    right = right[~np.isin(right, [pair[1] for pair in recent])][:pairs]
    count = min(len(left), len(right))
    return left[:count], right[:count]


def remove(
    vectors: np.ndarray,
    start: Division,
    driver: Driver,
    *,
    count: int,
    most: int,
    patience: int,
    tell: Callable[[Division], None] = lambda division: None,
) -> list[Division]:
    """Leave equally many classes out of both sides, as long as that raises the distance.

    Args:
        vectors: float64 [C, F].
        start: the hardest division by swapping.
        driver: ranks the classes.
        count: left out of each side per iteration, at least 1.
        most: left out of each side at most. `LEAST_SIDE` classes stay in any case.
        patience: iterations without success in a row that end it. The classes tried stay where they are.
        tell: receives every division.

    Returns:
        The divisions behind `start`, in their order.
    """
    train, test = start.train, start.test
    most = min(most, len(train) - LEAST_SIDE, len(test) - LEAST_SIDE)
    stays = np.zeros(len(vectors), dtype=bool)
    divisions: list[Division] = []
    fid, removed, failures = start.fid, 0, 0
    while removed < most:
        left, right = driver.removals(train, test)
        each_side = min(count, most - removed)
        left, right = left[~stays[train[left]]][:each_side], right[~stays[test[right]]][:each_side]
        both = min(len(left), len(right))
        if both == 0:
            break
        fewer, fewer_test = np.delete(train, left[:both]), np.delete(test, right[:both])
        reached = frechet_distance(vectors[fewer], vectors[fewer_test])
        if reached <= fid:
            stays[train[left[:both]]] = stays[test[right[:both]]] = True
            failures += 1
            if failures == patience:
                break
            continue
        failures, fid, removed = 0, reached, removed + both
        train, test = fewer, fewer_test
        divisions.append(Division("removal", fid, start.swapped, removed, train, test))
        tell(divisions[-1])
    return divisions


def halved(groups: Sequence[np.ndarray], test_fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A share of every group of classes at random for the test side, the others for the training side.

    Args:
        groups: int64 arrays of classes.
        test_fraction: in (0, 1). What rounding a group takes away is made up for in the next.
        seed: of the draw.

    Returns:
        Sorted classes of the training side and of the test side.
    """
    draw = np.random.RandomState([seed, 7])
    train, test, owed = [], [], 0.0
    for group in groups:
        shuffled = draw.permutation(group)
        owed += test_fraction * len(group)
        count = min(len(group), max(0, round(owed)))
        owed -= count
        test.append(shuffled[:count])
        train.append(shuffled[count:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(test))
