"""Verification with a model: pairs out of data or out of a file of pairs, the figures, and the threshold that is kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dmlcore.errors import DataError
from dmlcore.evaluation import verification
from dmlcore.evaluation.pair_files import Pairs, read_pairs
from dmlcore.evaluation.verification import AllPairs
from dmlcore.serving.entries import Entries, of_arrays, unit
from dmlcore.serving.model import Model

__all__ = ["Pairs", "read_pairs", "verify_entries", "verify_pairs"]


def verify_entries(entries: Entries, *, far: float | None = 1e-3, seed: int = 0) -> dict[str, Any]:
    """The figures of all pairs of entries, and the threshold for a rate of false accepts.

    Args:
        entries: with labels.
        far: wanted rate; None: no threshold is looked for.
        seed: of the pairs of the accuracy, and of the interval.

    Raises:
        DataError: no labels, or too few pairs.
    """
    names = entries.labels("verifying")
    _, labels = np.unique(np.array(names), return_inverse=True)
    pairs = AllPairs(torch.from_numpy(np.ascontiguousarray(entries.vectors)), labels)
    curve = pairs.curve()
    scores, same, fold = pairs.balanced(seed)
    result = {
        "samples": len(pairs.labels),
        "classes": len(pairs.sizes),
        **verification.summary(curve),
        **({} if not len(scores) else verification.accuracy_in_folds(scores, same, fold)),
        "notes": [*entries.notes, *([pairs.note] if pairs.note else [])],
        "curve": curve.points(),
    }
    if far is not None:
        result["threshold"] = pairs.threshold(far, seed=seed)
    return result


def verify_pairs(pairs: Pairs, model: Model) -> dict[str, Any]:
    """The figures of given pairs.

    Args:
        pairs: whose samples the model can embed.
        model: of pictures or texts.

    Raises:
        DataError: a sample cannot be read, or all pairs are alike.
    """
    names = list(dict.fromkeys([*pairs.first, *pairs.second]))
    if model.kind not in ("images", "texts"):
        raise DataError(f"a file of pairs names pictures or texts, but {model.name} takes {model.kind}")
    place = {name: number for number, name in enumerate(names)}
    entries = of_arrays(unit(model.encode(names)), paths=names)
    left, right = [np.array([place[name] for name in side]) for side in (pairs.first, pairs.second)]
    scores = verification.similarities(torch.from_numpy(entries.vectors), left, right)
    fold = pairs.folds(verification.FOLDS)
    curve = verification.curve_of_pairs(scores, pairs.same)
    return {
        "samples": len(names),
        **verification.summary(curve),
        **verification.accuracy_in_folds(scores, pairs.same, fold),
        "notes": [],
        "curve": curve.points(),
    }
