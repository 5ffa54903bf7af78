"""Class-disjoint folds of the training and validation classes. The test part stays what it is, and nobody looks at it."""

from __future__ import annotations

import numpy as np

from dmlcore.data.recorded_splits import Entries, RecordedSplit
from dmlcore.errors import ConfigError

LEAST = 2  # classes of a fold, and of what is left to train on


def least_classes(count: int) -> int:
    """How many training and validation classes so many folds need."""
    return LEAST * max(count, 2)


def folds_of(split: RecordedSplit, count: int, seed: int) -> list[RecordedSplit]:
    """The same split `count` times, each with another part of its training and validation classes for validation.

    Args:
        split: of the data.
        count: of folds; 1: the split as it is.
        seed: of the draw.

    Raises:
        ConfigError: too few classes, or a fold without a class of two samples.
    """
    if count == 1:
        return [split]
    labels, digests = (
        np.concatenate([getattr(split.parts[part], name) for part in ("train", "validation")]) for name in ("labels", "digests")
    )
    classes, sizes = np.unique(labels, return_counts=True)
    if len(classes) < least_classes(count) or (sizes > 1).sum() < count:
        most = min(len(classes) // LEAST, int((sizes > 1).sum()))
        advice = f"Take at most {most} folds" if most > 1 else "These are too few for folds; leave folds at 1"
        raise ConfigError(
            f"folds is {count}, but there are {len(classes)} training and validation classes, {(sizes > 1).sum()} of them with"
            f" two samples or more. {advice}"
        )
    generator = np.random.default_rng((seed, 3))
    # Classes of one sample are spread on their own, so that each fold has something to find.
    order = np.concatenate([generator.permutation(classes[sizes > 1]), generator.permutation(classes[sizes == 1])])
    fold_of_class = dict(zip(order.tolist(), (np.arange(len(order)) % count).tolist(), strict=True))
    fold = np.array([fold_of_class[label] for label in labels.tolist()])
    folds = []
    for number in range(count):
        held_out = fold == number
        parts = {
            **split.parts,
            "train": Entries(labels[~held_out], digests[~held_out]),
            "validation": Entries(labels[held_out], digests[held_out]),
        }
        folds.append(RecordedSplit(split.data, split.class_names, parts))
    return folds
