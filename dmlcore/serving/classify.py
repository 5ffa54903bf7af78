"""Classes for samples by an index of labelled entries. A class is added by adding its entries: nothing is trained again."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dmlcore import progress
from dmlcore.errors import ConfigError, DataError, suggestion
from dmlcore.serving.entries import Entries, unit
from dmlcore.serving.index import Index
from dmlcore.serving.search import without_own

TEMPERATURE = 0.1  # of the weights of neighbours: a similarity lower by it weighs 1 / e
PROBED = 50_000  # entries that a linear probe is fitted to at most
SAME = 1 - 1e-5  # cosine of a query and an entry that are the same but for rounding
_PIECE = 65_536


@dataclass(frozen=True)
class Verdict:
    """The class of a query.

    Attributes:
        query: what identifies it.
        label: the class, or None: none of these.
        share: of the votes, or the probability, that the class has.
        guess: the class that is nearest, also where it is rejected.
        nearest: cosine of the nearest entry.
    """

    query: dict[str, Any]
    label: str | None
    share: float
    guess: str
    nearest: float


def classify(
    index: Index,
    queries: Entries,
    *,
    by: str = "neighbours",
    k: int = 10,
    threshold: float | None = None,
    others: bool = False,
) -> list[Verdict]:
    """A class for each query.

    Args:
        index: whose entries have labels.
        queries: of the index's length.
        by: `neighbours` (votes of the k nearest, weighed by similarity), `means` (the nearest mean of a class) or `probe`
            (logistic regression on the entries).
        k: neighbours that vote.
        threshold: a query whose nearest entry is less similar is of none of these classes. None: every query gets a class.
        others: the entry that is the query itself, by its path, has no vote.

    Raises:
        ConfigError: an unknown way, `others` with another way than `neighbours` or without paths, or queries of another length.
        DataError: entries without labels, or of one class for a probe.
    """
    if by not in WAYS:
        raise ConfigError(f"there is no way to classify by '{by}'.{suggestion(by, WAYS)}")
    if "label" not in index.columns:
        raise DataError(f"the entries of {index.folder.path} have no labels, so there is no class to give")
    if others and by != "neighbours":
        raise ConfigError(f"others leaves a query's own entry out of the neighbours, but classes are given by {by}")
    hits = index.search(queries.vectors, k + others)
    if others:
        hits = without_own(index, queries, hits)
    shares, names = WAYS[by](index, unit(queries.vectors), hits.positions, hits.scores)
    best = shares.argmax(1)
    columns = queries.all_columns()
    verdicts = []
    for number, place in enumerate(best):
        guess, nearest = names[place], float(hits.scores[number, 0])
        is_known = threshold is None or nearest >= threshold
        query = {name: values[number] for name, values in columns.items()}
        verdicts.append(Verdict(query, guess if is_known else None, float(shares[number, place]), guess, nearest))
    return verdicts


def _labels(index: Index) -> tuple[np.ndarray, list[str]]:
    """Of every position the place of its class, -1 for none and for what was removed; and the classes."""
    values = index.values("label")
    texts = np.array([value or "" for value in values.tolist()])
    names, dense = np.unique(texts, return_inverse=True)
    dense = dense.astype(np.int64)
    if len(names) and names[0] == "":
        names, dense = names[1:], dense - 1
    if index.there is not None:
        dense = np.where(index.there, dense, -1)
    present = np.unique(dense[dense >= 0])
    if not len(present):
        raise DataError(f"the entries of {index.folder.path} have no labels, so there is no class to give")
    places = np.full(len(names) + 1, -1)
    places[present] = np.arange(len(present))
    return places[dense], [str(name) for name in names[present]]


def _by_neighbours(index: Index, x: np.ndarray, positions: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, list[str]]:
    dense, names = _labels(index)
    of = np.where(positions >= 0, dense[np.maximum(positions, 0)], -1)  # [Q, k]
    weights = np.exp((np.where(of >= 0, scores, -np.inf) - 1) / TEMPERATURE)
    votes = np.zeros((len(x), len(names) + 1))
    np.add.at(votes, (np.arange(len(x))[:, None], of), weights)  # -1 is the last column
    votes = votes[:, :-1]
    return votes / np.maximum(votes.sum(1, keepdims=True), np.finfo(float).tiny), names


def _by_means(index: Index, x: np.ndarray, positions: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, list[str]]:
    dense, names = _labels(index)
    sums = np.zeros((len(names), index.dim))
    for start in progress.track(range(0, len(dense), _PIECE), "averaging classes", len(dense), _PIECE):
        part = dense[start : start + _PIECE]
        labelled = np.flatnonzero(part >= 0)
        np.add.at(sums, part[labelled], index.vectors[start : start + _PIECE][labelled])
    logits = x @ unit(sums).T / TEMPERATURE
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True), names


def _by_probe(index: Index, x: np.ndarray, positions: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, list[str]]:
    dense, names = _labels(index)
    if len(names) < 2:
        raise DataError("a probe needs entries of two classes at least")
    rows = np.flatnonzero(dense >= 0)
    if len(rows) > PROBED:  # an even part of each class
        rows = rows[np.argsort(dense[rows], kind="stable")]
        rows = np.sort(rows[np.linspace(0, len(rows) - 1, PROBED).round().astype(int)])
    model = linear_probe()
    with progress.task(f"fitting a linear probe to {len(rows):,} entries"):
        model.fit(index.vectors[rows], dense[rows])
    shares = np.zeros((len(x), len(names)))
    shares[:, model.classes_] = model.predict_proba(x)
    return shares, names


def linear_probe() -> Any:
    """A logistic regression of scikit-learn on unit vectors.

    Raises:
        ConfigError: scikit-learn is not installed; the message has the command.
    """
    try:
        linear_model = importlib.import_module("sklearn.linear_model")
    except ImportError as error:
        raise ConfigError(f"a linear probe needs scikit-learn ({error}). Run `pip install scikit-learn`") from None
    return linear_model.LogisticRegression(C=100.0, max_iter=300)  # unit vectors have small coordinates: little penalty


WAYS: dict[str, Callable[[Index, np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, list[str]]]] = {
    "neighbours": _by_neighbours,
    "means": _by_means,
    "probe": _by_probe,
}


def accuracy(verdicts: list[Verdict], classes: set[str]) -> dict[str, Any]:
    """How right verdicts are where queries have labels: of those whose class the index has, and of the others. `own` counts the
    queries that are as an entry is, as where the index was built of them.

    Args:
        verdicts: of `classify`.
        classes: of the index.
    """
    labelled = [verdict for verdict in verdicts if verdict.query.get("label")]
    known = [verdict for verdict in labelled if verdict.query["label"] in classes]
    strange = [verdict for verdict in labelled if verdict.query["label"] not in classes]
    about: dict[str, Any] = {"labelled": len(labelled), "known": len(known), "strange": len(strange)}
    about["own"] = sum(verdict.nearest >= SAME for verdict in verdicts)
    if known:
        about["accuracy"] = float(np.mean([verdict.label == verdict.query["label"] for verdict in known]))
        about["accuracy_without_rejection"] = float(np.mean([verdict.guess == verdict.query["label"] for verdict in known]))
    if strange:
        about["strange_rejected"] = float(np.mean([verdict.label is None for verdict in strange]))
    return about
