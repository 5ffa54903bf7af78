"""What chooses the checkpoint: classes or samples that are held out of the training part, or nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dmlcore.errors import DataError

VALIDATIONS = ("classes", "samples", "none")
"""Training classes are held out, samples of every training class are, or nothing is."""
LEAST_CLASSES = 2  # of every part: with one class there is nothing to compare
LEAST_SAMPLES = 2  # of a class in a part: a single one finds nothing


def validate_by(
    split: np.ndarray,
    labels: np.ndarray,
    validation: str,
    fractions: Sequence[float],
    generator: np.random.Generator,
    *,
    by_class: bool = True,
) -> list[str]:
    """Give the validation part back to the training part, and hold samples out instead where the validation is by `samples`.

    Args:
        split: text [N], changed in place. With `classes` it stays as it is.
        labels: int64 [N].
        validation: of `VALIDATIONS`.
        fractions: for train, validation and test. The first two say how large a share is held out.
        generator: of the draw.
        by_class: hold samples of each class out, rather than any samples.

    Returns:
        Notes for the user.

    Raises:
        DataError: too few samples to hold some out.
    """
    if validation == "classes":
        return []
    split[split == "validation"] = "train"
    count = len(np.unique(labels[split == "train"]))
    if validation == "none":
        return [f"no validation part: all {count:,} training classes are trained on, and the last checkpoint is kept"]
    take = take_samples_of_classes if by_class else take_samples
    return [
        f"validation by samples, and all {count:,} training classes are trained on: {take(split, labels, fractions, generator)}"
    ]


def take_validation(split: np.ndarray, labels: np.ndarray, fractions: Sequence[float], generator: np.random.Generator) -> str:
    """Make some of the training samples the validation part: of some classes, or where these are few, some of each class.

    Returns:
        What was taken, in words.

    Raises:
        DataError: too few classes and samples.
    """
    classes = generator.permutation(np.unique(labels[split == "train"]))
    if len(classes) < 2 * LEAST_CLASSES:
        return f"it has few classes, so {take_samples_of_classes(split, labels, fractions, generator, classes)}"
    count = min(max(LEAST_CLASSES, round(len(classes) * _share(fractions))), len(classes) - LEAST_CLASSES)
    split[(split == "train") & np.isin(labels, classes[:count])] = "validation"
    return f"{count} of {len(classes)} training classes are held out for it"


def take_samples_of_classes(
    split: np.ndarray,
    labels: np.ndarray,
    fractions: Sequence[float],
    generator: np.random.Generator,
    classes: np.ndarray | None = None,
) -> str:
    """As `take_validation`, of the samples of every class that has enough of them. All classes stay in the training part.

    Args:
        classes: in the order they are drawn from. None: all of the training part.
    """
    classes = np.unique(labels[split == "train"]) if classes is None else classes
    rows_of = {label: generator.permutation(np.flatnonzero((split == "train") & (labels == label))) for label in classes}
    parted = {label: rows for label, rows in rows_of.items() if len(rows) >= 2 * LEAST_SAMPLES}
    if len(parted) < LEAST_CLASSES:
        raise DataError(
            f"there is no validation part, and to take one from the training part needs {2 * LEAST_CLASSES} classes, or two"
            f" with {2 * LEAST_SAMPLES} samples. Give a validation part, or do without by --validation none"
        )
    for rows in parted.values():
        count = min(max(LEAST_SAMPLES, round(len(rows) * _share(fractions))), len(rows) - LEAST_SAMPLES)
        split[rows[:count]] = "validation"
    return f"some samples of {len(parted)} are held out for it"


def take_samples(split: np.ndarray, labels: np.ndarray, fractions: Sequence[float], generator: np.random.Generator) -> str:
    """As `take_validation`, whatever the classes of the samples."""
    rows = generator.permutation(np.flatnonzero(split == "train"))
    count = max(LEAST_SAMPLES, round(len(rows) * _share(fractions)))
    if len(rows) < 2 * count:
        raise DataError(
            "there is no validation part, and too few training samples to take one from. Give one, or do without by"
            " --validation none"
        )
    split[rows[:count]] = "validation"
    return f"{count:,} of {len(rows):,} training samples are held out for it"


def _share(fractions: Sequence[float]) -> float:
    return fractions[1] / (fractions[0] + fractions[1])
