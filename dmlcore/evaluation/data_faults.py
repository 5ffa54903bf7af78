"""Faults of data that vectors show: near duplicates, labels that neighbours contradict, outliers, classes that overlap.

All work on unit vectors and their nearest others. What is done with them is in `serving/clean.py`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np

TEMPERATURE = 0.1  # of the weights of neighbours: a similarity lower by it weighs 1 / e
MAJORITY = 0.5  # share of the neighbours without which no other label is believed
SPREAD = 1.4826  # times the median deviation is the standard deviation of normal numbers


@dataclass(frozen=True)
class Neighbours:
    """The nearest others of N samples.

    Attributes:
        positions: int64 [N, k], the nearest first.
        scores: float32 [N, k], cosines.
    """

    positions: np.ndarray
    scores: np.ndarray


def duplicates(near: Neighbours, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs at least so similar: int64 [P, 2], the smaller first, and float32 [P], the most similar first."""
    rows, ranks = np.nonzero(near.scores >= least)
    pairs = np.stack([rows, near.positions[rows, ranks]], axis=1)
    pairs.sort(axis=1)
    pairs, first = np.unique(pairs, axis=0, return_index=True)
    scores = near.scores[rows, ranks][first]
    order = np.argsort(-scores, kind="stable")
    return pairs[order], scores[order]


@dataclass(frozen=True)
class LabelDoubts:
    """Samples whose neighbours are of another class.

    Attributes:
        positions: int64 [S], the most doubtful first.
        likely: int64 [S], the class that the neighbours say.
        doubts: float64 [S], its share of the neighbours less that of the own class, in 0..1.
    """

    positions: np.ndarray
    likely: np.ndarray
    doubts: np.ndarray


def class_shares(near: Neighbours, labels: np.ndarray, classes: int) -> Any:
    """Of each sample the shares of classes among its neighbours, weighed by similarity. The sample itself has no vote, so its
    label is predicted by others.

    Returns:
        A sparse matrix [N, C] with at most k entries in a row, which sum to one.
    """
    sparse: Any = importlib.import_module("scipy.sparse")  # late: few need it
    weights = np.exp((near.scores.astype(np.float64) - near.scores[:, :1]) / TEMPERATURE)  # the nearest has weight one
    weights /= weights.sum(1, keepdims=True)
    rows = np.repeat(np.arange(len(labels)), near.positions.shape[1])
    shares = sparse.coo_matrix((weights.ravel(), (rows, labels[near.positions].ravel())), shape=(len(labels), classes))
    shares.sum_duplicates()
    return shares


def agreement(shares: Any, labels: np.ndarray) -> float:
    """The mean share of a sample's own class among its neighbours."""
    return float(shares.data[shares.col == labels[shares.row]].sum() / len(labels))


def label_doubts(shares: Any, labels: np.ndarray) -> LabelDoubts:
    """Labels that are likely wrong: another class has the majority of the neighbours, and as high a share of them as its own
    members have on average.

    Args:
        shares: [N, C] as `class_shares` gives them.
        labels: int64 [N] in 0..C - 1.

    Source: the confident joint of Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels",
    JAIR 2021, section 3.1.
    """
    count, classes = shares.shape
    is_own = shares.col == labels[shares.row]
    own = np.zeros(count)
    own[shares.row[is_own]] = shares.data[is_own]
    usual = np.bincount(labels, weights=own, minlength=classes) / np.maximum(np.bincount(labels, minlength=classes), 1)
    least = np.maximum(usual, MAJORITY)
    is_confident = ~is_own & (shares.data >= least[shares.col]) & (shares.data > own[shares.row])
    rows, columns, values = shares.row[is_confident], shares.col[is_confident], shares.data[is_confident]
    order = np.lexsort((-values, rows))  # of each sample the class with the highest share first
    rows, columns, values = rows[order], columns[order], values[order]
    positions, first = np.unique(rows, return_index=True)
    doubts = values[first] - own[positions]
    order = np.argsort(-doubts, kind="stable")
    return LabelDoubts(positions[order].astype(np.int64), columns[first][order].astype(np.int64), doubts[order])


def outliers(near: Neighbours, far: float = 4.0, k: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Samples that are far from all others: positions int64 [S], the farthest first, and how many robust standard deviations
    their mean distance to the k nearest lies above the median."""
    distances = (1 - near.scores[:, :k]).mean(1).astype(np.float64)
    median = np.median(distances)
    spread = SPREAD * np.median(np.abs(distances - median))
    if spread == 0:
        return np.empty(0, dtype=np.int64), np.empty(0)
    deviations = (distances - median) / spread
    positions = np.flatnonzero(deviations > far)
    order = np.argsort(-deviations[positions], kind="stable")
    return positions[order], deviations[positions][order]


def overlaps(shares: Any, labels: np.ndarray, least: float = 0.2) -> list[tuple[int, int, float]]:
    """Pairs of classes whose samples are each other's neighbours: both classes and the mean share of the one among neighbours
    of the other, both ways, the highest first."""
    sparse: Any = importlib.import_module("scipy.sparse")
    count, classes = shares.shape
    sizes = np.maximum(np.bincount(labels, minlength=classes), 1)
    members = sparse.csr_matrix((1 / sizes[labels], (labels, np.arange(count))), shape=(classes, count))
    mean = members @ shares.tocsr()  # [C, C]
    both = sparse.triu((mean + mean.T) / 2, 1).tocoo()
    keep = np.flatnonzero(both.data >= least)
    keep = keep[np.argsort(-both.data[keep], kind="stable")]
    return [(int(both.row[at]), int(both.col[at]), float(both.data[at])) for at in keep]
