"""Decisions whether two samples are of one class, as in the verification of faces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.errors import ConfigError, DataError
from dmlcore.evaluation import Metric
from dmlcore.evaluation.pair_files import Pairs, read_names
from dmlcore.evaluation.verification import (
    FARS,
    FOLDS,
    AllPairs,
    Curve,
    accuracy_in_folds,
    curve_of_pairs,
    similarities,
)
from dmlcore.files import expanded
from dmlcore.losses import unit


class Verification(Metric):
    """Pairs of samples, decided by a threshold of their cosine: accuracy in folds, AUC, EER, and TAR at rates of false accepts.

    Without `pairs` all pairs of the samples are counted exactly: `far = share of pairs of different classes with cosine >=
    threshold`, `tar` the share of pairs of one class, and `tar@F = max tar where far <= F`, not defined where fewer than 1 / F
    pairs are of different classes. `eer` is the rate where `far = 1 - tar`, and `auc` the area under the ROC curve. `accuracy`
    is of drawn pairs, half of them of one class, in ten folds of different classes: of each fold at the threshold that is best
    on the others. `deviation` is the standard deviation over the folds. O(N^2 D) time, bounded memory.

    With `pairs` only the pairs of that file are decided, with its folds. `missing` are those of which a sample is not in this
    part of the data.

    Source: Huang, Ramesh, Berg, Learned-Miller, "Labeled Faces in the Wild", University of Massachusetts, Technical Report
    07-49, 2007, section 5, for the accuracy in ten folds.
    """

    name = "verification"
    takes_names = True

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options of `verification`."""

        pairs: str = ""
        """File of pairs: a table with first,second,same[,fold], or in the layout of LFW (default: all pairs of samples)."""
        fars: tuple[float, ...] = FARS
        """Rates of false accepts, in 0..1, at which true accepts are measured."""
        drawn: int = 6000
        """Pairs that the accuracy is of where no file names them, >= 20."""
        seed: int = 0
        """Of what is drawn, >= 0."""

        def __post_init__(self) -> None:
            if not self.fars:
                raise ConfigError("fars is empty, but must hold a rate between 0 and 1, such as 0.001")
            for far in self.fars:
                check_range("fars", far, above=0, below=1)
            check_range("drawn", self.drawn, least=2 * FOLDS)
            check_range("seed", self.seed, least=0)
            if self.pairs:  # a run is continued from other folders too
                object.__setattr__(self, "pairs", str(expanded(self.pairs).resolve()))

    def __init__(self, options: Any = None, **values: Any) -> None:
        super().__init__(options, **values)
        self._pairs = read_names(self.options.pairs) if self.options.pairs else None

    def check_names(self, parts: Mapping[str, Sequence[str]]) -> None:
        pairs = self._pairs
        if pairs is None:
            return
        for names in parts.values():
            left, right = pairs.places(names)
            if ((left >= 0) & (right >= 0)).any():
                return
        example = next((name for names in parts.values() for name in names), "nothing")
        raise DataError(
            f"no pair of '{self.options.pairs}' has both samples in the data ({', '.join(parts)}). It names '{pairs.first[0]}',"
            f" where the data have '{example}': a name must be that of a sample, or the end of its path"
        )

    def __call__(self, embeddings: Tensor, labels: Tensor, names: Sequence[str] = ()) -> dict[str, float]:
        if self._pairs is not None:
            left, right, pairs, missing = self._of_file(self._pairs, names)
            scores = similarities(unit(embeddings), left, right)
            return {**self._figures(_curve_of_file(scores, pairs), scores, pairs.same, pairs.folds(FOLDS)), "missing": missing}
        pairs = _all_pairs(embeddings, labels)
        return self._figures(_curve_of_all(pairs), *pairs.balanced(self.options.seed, self.options.drawn))

    def curves(self, embeddings: Tensor, labels: Tensor, names: Sequence[str] = ()) -> dict[str, dict[str, Sequence[float]]]:
        """The ROC curve, `roc`: `far`, `tar` and `threshold` at no more than 400 thresholds."""
        if self._pairs is not None:
            left, right, pairs, _ = self._of_file(self._pairs, names)
            curve = _curve_of_file(similarities(unit(embeddings), left, right), pairs)
        else:
            curve = _curve_of_all(_all_pairs(embeddings, labels))
        if curve is None:
            return {}
        far, tar, thresholds = curve.points()
        return {"roc": {"far": far, "tar": tar, "threshold": thresholds}}

    def _of_file(self, pairs: Pairs, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray, Pairs, float]:
        """Positions of both samples of the pairs that are there, these pairs, and how many are not there."""
        left, right = pairs.places(names)
        is_there = (left >= 0) & (right >= 0)
        return left[is_there], right[is_there], pairs.among(is_there), float((~is_there).sum())

    def _figures(self, curve: Curve | None, scores: np.ndarray, same: np.ndarray, fold: np.ndarray) -> dict[str, float]:
        undefined = float("nan")
        in_folds: dict[str, Any] = accuracy_in_folds(scores, same, fold) if len(np.unique(fold)) > 1 else {}
        deviation = in_folds.get("accuracy_deviation")
        tars = {far: None if curve is None else curve.tar_at(far) for far in self.options.fars}
        return {
            "accuracy": in_folds.get("accuracy", undefined),
            "deviation": undefined if deviation is None else deviation,
            "auc": undefined if curve is None else curve.auc(),
            "eer": undefined if curve is None else curve.eer()[0],
            **{f"tar@{far:g}": undefined if tar is None else tar for far, tar in tars.items()},
        }


def _all_pairs(embeddings: Tensor, labels: Tensor) -> AllPairs:
    x = unit(embeddings)
    # Pairs are drawn by position, so samples are put in an order of their own.
    places = (x.double().cpu().numpy() * np.random.default_rng(0).normal(size=x.shape[1])).sum(1)
    order = np.lexsort((places, labels.cpu().numpy()))
    return AllPairs(x[torch.from_numpy(order).to(x.device)], labels.cpu().numpy()[order])


def _curve_of_all(pairs: AllPairs) -> Curve | None:
    """None where all pairs are alike."""
    return pairs.curve() if (pairs.sizes > 1).any() and pairs.negative_count() else None


def _curve_of_file(scores: np.ndarray, pairs: Pairs) -> Curve | None:
    return curve_of_pairs(scores, pairs.same) if pairs.same.any() and not pairs.same.all() else None


@dmlcore.hookimpl
def dmlcore_metrics() -> list[type]:
    return [Verification]
