"""Verification: are two samples of one class? Curves of decisions by a threshold of their similarity, and the threshold for a
wanted rate of false accepts. Pairs are counted exactly, and no N x N matrix is kept.

A pair is accepted where its similarity is at least the threshold. FAR is the share of pairs of different classes that are
accepted, TAR the share of pairs of one class.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmlcore import progress
from dmlcore.config import check_range
from dmlcore.errors import DataError
from dmlcore.evaluation.plain import prepared

FARS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
FOLDS = 10
BALANCED = 6_000  # pairs of the accuracy in ten folds where the data give none, as many as LFW has
REPLICATES = 1_000
MOST_POSITIVES = 20_000_000  # similarities of pairs of one class that are kept
MOST_HIGHEST = 2_000_000  # of pairs of different classes, for the interval
ROWS = 1_024


@dataclass(frozen=True)
class Curve:
    """Counts of accepted pairs by threshold: every corner of the ROC curve.

    Attributes:
        thresholds: float64 [T], the distinct similarities of pairs of one class, falling.
        accepted: int64 [T], pairs of one class at least as similar.
        wrong: int64 [T], pairs of different classes at least as similar.
        wrong_equal: int64 [T], of these exactly as similar.
        positives: pairs of one class.
        negatives: pairs of different classes.
    """

    thresholds: np.ndarray
    accepted: np.ndarray
    wrong: np.ndarray
    wrong_equal: np.ndarray
    positives: int
    negatives: int

    @property
    def tar(self) -> np.ndarray:
        """True accept rates, [T]."""
        return self.accepted / self.positives

    @property
    def far(self) -> np.ndarray:
        """False accept rates, [T]."""
        return self.wrong / self.negatives

    def auc(self) -> float:
        """The chance that a pair of one class is more similar than one of different classes; ties count half."""
        own = np.diff(self.accepted, prepend=0)  # positives of each threshold
        below = self.negatives - self.wrong
        return float((own * (below + self.wrong_equal / 2)).sum() / (float(self.positives) * self.negatives))

    def eer(self) -> tuple[float, float]:
        """The rate where false accepts are as frequent as false rejects, and its threshold."""
        far, frr = np.concatenate([[0.0], self.far]), np.concatenate([[1.0], 1 - self.tar])
        at = int(np.argmax(far >= frr))  # there is one: at the last corner no pair of one class is rejected
        # Towards a lower threshold false accepts grow first, and then false rejects fall: the crossing is on one of the two.
        return float(min(far[at], frr[at - 1])), float(self.thresholds[at - 1])

    def tar_at(self, far: float) -> float | None:
        """The highest TAR at this FAR or below; None where there are too few pairs to tell."""
        if far * self.negatives < 1:
            return None
        at = int(np.searchsorted(self.wrong, far * self.negatives, side="right"))
        return float(self.tar[at - 1]) if at else 0.0

    def points(self, most: int = 400) -> tuple[list[float], list[float], list[float]]:
        """FAR, TAR and the threshold at no more than so many thresholds, for a picture: even steps of the logarithm of FAR."""
        wanted = np.concatenate([[0], np.geomspace(1, max(self.negatives, 2), most - 1)])
        at = np.unique(np.clip(np.searchsorted(self.wrong, wanted, side="right") - 1, 0, len(self.wrong) - 1))
        return self.far[at].tolist(), self.tar[at].tolist(), self.thresholds[at].tolist()


def curve_of_pairs(scores: np.ndarray, same: np.ndarray) -> Curve:
    """The curve of given pairs.

    Args:
        scores: [P] similarities.
        same: bool [P], whether a pair is of one class.

    Raises:
        DataError: all pairs are of one class, or none is.
    """
    return _curve(scores[same], iter([scores[~same]]), int((~same).sum()))


def _curve(positives: np.ndarray, negatives: Iterator[np.ndarray], count: int) -> Curve:
    """The curve of similarities of pairs of one class, and in pieces of so many pairs of different classes."""
    if not len(positives) or not count:
        what = "of one class" if not len(positives) else "of different classes"
        raise DataError(f"there is no pair {what}, so nothing can be verified; give samples of two classes, two of one of them")
    values, accepted = np.unique(positives, return_counts=True)
    wrong, above = np.zeros((2, len(values)), dtype=np.int64)
    for piece in negatives:
        piece = np.sort(piece)
        wrong += len(piece) - np.searchsorted(piece, values, side="left")
        above += len(piece) - np.searchsorted(piece, values, side="right")
    wrong, above = wrong[::-1].copy(), above[::-1]
    return Curve(values[::-1].astype(np.float64), np.cumsum(accepted[::-1]), wrong, wrong - above, len(positives), count)


class AllPairs:
    """All pairs of samples, or of as many of them as can be looked at.

    Args:
        embeddings: [N, D], finite; their cosines are compared.
        labels: [N], int64.

    Attributes:
        note: what the user should know; empty where all pairs are counted.
    """

    def __init__(self, embeddings: Tensor, labels: np.ndarray) -> None:
        _, dense = np.unique(labels, return_inverse=True)
        order = np.argsort(dense, kind="stable")
        self.note = ""
        sizes = np.bincount(dense).astype(np.int64)
        pairs = int((sizes * (sizes - 1) // 2).sum())
        if pairs > MOST_POSITIVES:  # an even part of each class
            step = int(np.ceil(np.sqrt(pairs / MOST_POSITIVES)))
            order = order[::step]
            self.note = f"of {len(dense):,} samples every {step}th is compared: there are {pairs:,} pairs of one class"
        self.labels = dense[order]
        self.x = prepared(embeddings.detach()[torch.from_numpy(order).to(embeddings.device)].float(), "cosine")
        self.starts = np.searchsorted(self.labels, np.arange(len(sizes) + 1))
        self.sizes = np.diff(self.starts)

    def positives(self) -> np.ndarray:
        """Similarities of the pairs of one class, float32."""
        parts = []
        for start, stop in zip(self.starts[:-1], self.starts[1:], strict=True):
            for first in range(start, stop, ROWS):
                last = min(first + ROWS, stop)
                s = (self.x[first:last] @ self.x[first:stop].T).cpu().numpy()  # [r, n], what is right of the diagonal counts
                parts.append(s[np.triu(np.ones_like(s, dtype=bool), 1)])
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.float32)

    def negatives(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Tiles of similarities: the first row and column, float32 [r, n], and bool [r, n], which are pairs of different
        classes that no other tile holds."""
        count = len(self.x)
        for first in progress.track(range(0, count, ROWS), "comparing pairs", count, ROWS):
            s = (self.x[first : first + ROWS] @ self.x[first:].T).cpu().numpy()
            yield first, s, self.labels[first : first + ROWS, None] < self.labels[first:]  # samples stand in order of classes

    def negative_count(self) -> int:
        """How many pairs of different classes there are."""
        count = int(self.sizes.sum())
        return (count * count - int((self.sizes.astype(np.int64) ** 2).sum())) // 2

    def curve(self) -> Curve:
        """The curve of all these pairs."""
        return _curve(self.positives(), (s[is_pair] for _, s, is_pair in self.negatives()), self.negative_count())

    def balanced(self, seed: int = 0, most: int = BALANCED) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Drawn pairs, half of them of one class: scores [P], same [P], fold int64 [P]. Fold by fold the classes are others."""
        generator = np.random.default_rng((seed, 3))
        folds = FOLDS
        several = np.flatnonzero(self.sizes > 1)
        while folds > 2 and len(several) < 2 * folds:
            folds -= 1
        groups = np.array_split(generator.permutation(several), folds)
        each = most // (2 * folds)
        scores, same, fold = [], [], []
        for number, classes in enumerate(groups):
            if len(classes) < 2:
                continue
            of = generator.choice(classes, each)
            first = (generator.random(each) * self.sizes[of]).astype(np.int64)
            second = (first + 1 + (generator.random(each) * (self.sizes[of] - 1)).astype(np.int64)) % self.sizes[of]
            at = generator.integers(len(classes), size=each)
            other = (at + 1 + generator.integers(len(classes) - 1, size=each)) % len(classes)
            a, b = classes[at], classes[other]
            left = np.concatenate(
                [self.starts[of] + first, self.starts[a] + (generator.random(each) * self.sizes[a]).astype(int)]
            )
            right = np.concatenate(
                [self.starts[of] + second, self.starts[b] + (generator.random(each) * self.sizes[b]).astype(int)]
            )
            scores.append(similarities(self.x, left, right))
            same.append(np.arange(2 * each) < each)
            fold.append(np.full(2 * each, number))
        if not scores:
            return np.empty(0), np.empty(0, dtype=bool), np.empty(0, dtype=np.int64)
        return np.concatenate(scores), np.concatenate(same), np.concatenate(fold)

    def threshold(self, far: float, *, seed: int = 0, replicates: int = REPLICATES) -> dict[str, Any]:
        """The lowest threshold whose FAR is at most `far`, with a 95 % interval by a bootstrap over classes.

        A replicate draws the classes anew, with their samples. A pair of classes counts as often as the product of the times
        that its classes were drawn.

        Args:
            far: wanted, in 0..1.
            seed: of the draws.
            replicates: of the bootstrap.

        Returns:
            `threshold`, `low`, `high`, `far` (of the threshold), `pairs`. The interval is None where too few pairs are wrong to
            draw one.

        Raises:
            ConfigError: `far` is out of range.
            DataError: there is no pair of different classes, or so few that none may be accepted at this rate.
        """
        check_range("far", far, above=0, below=1)
        count = self.negative_count()
        allowed = int(np.floor(far * count))
        if allowed < 1:
            raise DataError(
                f"a rate of {far:g} needs at least {int(np.ceil(1 / far)):,} pairs of different classes, but the data have"
                f" {count:,}; ask for a higher rate, or give more data"
            )
        s, a, b = self._highest(min(max(min(4 * allowed + 1_000, MOST_HIGHEST), allowed + 2), count))
        # Accepted are similarities at least as high: the threshold lies just above the first that must be rejected.
        threshold = _above(s, allowed)
        accepted = int((s >= threshold).sum())
        about = {"threshold": threshold, "far": accepted / count, "wanted_far": far, "pairs": count, "classes": len(self.sizes)}
        if 4 * allowed > MOST_HIGHEST:  # an even part of the samples tells how far the threshold of other classes lies
            part = slice(None, None, int(np.ceil(np.sqrt(4 * allowed / MOST_HIGHEST))))
            rest = AllPairs(self.x[part], self.labels[part]).threshold(far, seed=seed, replicates=replicates)
            if rest["low"] is None:
                return {**about, "low": None, "high": None}
            shift = threshold - rest["threshold"]
            return {**about, "low": rest["low"] + shift, "high": rest["high"] + shift}
        values = self._replicates(s, a, b, far, replicates, seed)
        if len(values) < replicates / 2:
            return {**about, "low": None, "high": None}
        low, high = np.quantile(values, (0.025, 0.975))
        return {**about, "low": float(min(low, threshold)), "high": float(max(high, threshold))}

    def _highest(self, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The most similar pairs of different classes, falling: similarities and both classes."""
        kept: tuple[np.ndarray, ...] = (np.empty(0, dtype=np.float32), np.empty(0, np.int64), np.empty(0, np.int64))
        floor = -np.inf
        for first, s, is_pair in self.negatives():
            at = np.flatnonzero(is_pair & (s > floor))
            values = s.ravel()[at]
            if len(at) > most:
                top = np.argpartition(-values, most - 1)[:most]
                at, values = at[top], values[top]
            row, column = np.divmod(at, s.shape[1])
            new = (values, self.labels[first + row], self.labels[first + column])
            kept = tuple(np.concatenate(pair) for pair in zip(kept, new, strict=True))
            if len(kept[0]) > 2 * most:
                top = np.argpartition(-kept[0], most - 1)[:most]
                kept = tuple(part[top] for part in kept)
                floor = kept[0].min()
        order = np.argsort(-kept[0], kind="stable")[:most]
        return kept[0][order], kept[1][order], kept[2][order]

    def _replicates(self, s: np.ndarray, a: np.ndarray, b: np.ndarray, far: float, replicates: int, seed: int) -> np.ndarray:
        generator = np.random.default_rng((seed, 4))
        classes, values = len(self.sizes), []
        sizes = self.sizes.astype(np.float64)
        for _ in progress.track(range(replicates), "drawing classes anew", replicates):
            times = np.bincount(generator.integers(classes, size=classes), minlength=classes).astype(np.float64)
            drawn = times * sizes
            total = (drawn.sum() ** 2 - (drawn**2).sum()) / 2  # two draws of one class are no pair of different classes
            reached = np.cumsum(times[a] * times[b])
            at = int(np.searchsorted(reached, far * total, side="right"))
            if at < len(s) and total > 0:
                values.append(s[at])
        return np.array(values)


def _above(s: np.ndarray, allowed: int) -> float:
    """The lowest threshold that accepts at most so many of the falling similarities."""
    if allowed >= len(s):
        return float(s[-1])
    return float(np.nextafter(s[allowed], np.float32(np.inf)))


def similarities(x: Tensor, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Products of pairs of rows, float64 [P]."""
    parts = []
    for start in range(0, len(left), 65_536):
        part = slice(start, start + 65_536)
        pair = [x[torch.from_numpy(side[part].astype(np.int64)).to(x.device)] for side in (left, right)]
        parts.append((pair[0] * pair[1]).sum(1).double().cpu().numpy())
    return np.concatenate(parts) if parts else np.empty(0)


def accuracy_in_folds(scores: np.ndarray, same: np.ndarray, fold: np.ndarray) -> dict[str, Any]:
    """Accuracy of each fold at the threshold that is best on the others: its mean, standard deviation and number of folds.

    Args:
        scores: [P] similarities.
        same: bool [P].
        fold: int64 [P].
    """
    accuracies = []
    for number in np.unique(fold):
        inside = fold == number
        threshold = best_threshold(scores[~inside], same[~inside])
        accuracies.append(float(((scores[inside] >= threshold) == same[inside]).mean()))
    deviation = float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else None
    return {"accuracy": float(np.mean(accuracies)), "accuracy_deviation": deviation, "folds": len(accuracies)}


def best_threshold(scores: np.ndarray, same: np.ndarray) -> float:
    """The threshold at which most pairs are decided rightly; the highest of several."""
    order = np.argsort(-scores, kind="stable")
    s, right = scores[order], same[order]
    correct = np.concatenate([[0], np.cumsum(right) - np.cumsum(~right)])  # less the pairs of different classes
    is_corner = np.concatenate([[True], np.diff(s) < 0, [True]])  # equal similarities are accepted together
    at = int(np.argmax(np.where(is_corner, correct, -len(s) - 1)))
    return float(np.inf) if at == 0 else float(s[at - 1])


def summary(curve: Curve, fars: Sequence[float] = FARS) -> dict[str, Any]:
    """The figures of a curve by name: `auc`, `eer`, `eer_threshold`, `tar@far` by FAR, and the numbers of pairs."""
    eer, threshold = curve.eer()
    return {
        "positives": curve.positives,
        "negatives": curve.negatives,
        "auc": curve.auc(),
        "eer": eer,
        "eer_threshold": threshold,
        "tar@far": {f"{far:g}": curve.tar_at(far) for far in fars},
    }
