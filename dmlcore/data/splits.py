"""Training, validation and test parts: by classes drawn at random, or as the data gives them. Sampling is in `samplers`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dmlcore.data.datasets import LabelledDataset
from dmlcore.errors import ConfigError, DataError

PARTS = ("train", "validation", "test")
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "0": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "1": "validation",
    "test": "test",
    "testing": "test",
    "2": "test",
}
_LEAST_CLASSES = 2  # of every part: with one class there is nothing to compare


@dataclass
class Splits:
    """The three parts of the data.

    Attributes:
        name: the data set's name or path.
        kind: `images`, `features` or `texts`.
        sample_shape: (C, H, W) or (F,).
        train: for the loss.
        validation: for choosing the checkpoint.
        test: evaluated once.
        notes: what the user should know: skipped files, how the data were split.
        seed: of the split.
        sample_names: a name per sample of the source, by the parts' `rows`.
        rest: samples that are in no part: of classes that a split leaves out, or new since a run was made.
        record: gives the content of the file that keeps the split (`recorded_splits`). None: there is nothing to keep.
    """

    name: str
    kind: str
    sample_shape: tuple[int, ...]
    train: LabelledDataset
    validation: LabelledDataset
    test: LabelledDataset
    notes: list[str] = field(default_factory=list)
    seed: int = 0
    sample_names: Sequence[str] = ()
    rest: LabelledDataset | None = None
    record: Callable[[], bytes] | None = None

    def describe(self) -> dict[str, Any]:
        """The source, its parts and the notes as plain values for JSON."""
        parts = {part: {"classes": getattr(self, part).num_classes, "samples": len(getattr(self, part))} for part in PARTS}
        return {
            "name": self.name,
            "kind": self.kind,
            "sample_shape": list(self.sample_shape),
            "seed": self.seed,
            "parts": parts,
            "notes": list(self.notes),
        }


def split_words(words: Sequence[Any] | np.ndarray, where: str) -> np.ndarray:
    """Text [N] of `train`, `validation`, `test` from the usual spellings (`val`, `dev`, 0, 1, 2, ...).

    Args:
        words: one per sample.
        where: the file, for messages.

    Raises:
        DataError: an unknown word or none at all.
    """
    unique, inverse = np.unique(np.asarray(words).astype(str), return_inverse=True)
    for word in unique:
        if word.strip().lower() not in SPLIT_WORDS:
            row = int(np.flatnonzero(unique[inverse] == word)[0])
            shown = f"is '{word}'" if word.strip() else "is empty"
            raise DataError(f"the split of sample {row} in {where} {shown}, but must be train, validation or test")
    return np.array([SPLIT_WORDS[word.strip().lower()] for word in unique])[inverse]


def check_fractions(fractions: Sequence[float]) -> None:
    """Refuse fractions that are not three positive numbers with sum 1.

    Raises:
        ConfigError: they are not.
    """
    if len(fractions) != 3 or not all(fraction > 0 for fraction in fractions) or abs(sum(fractions) - 1) > 1e-6:
        raise ConfigError(
            f"the fractions of train, validation and test are {tuple(fractions)}, but must be three positive"
            f" numbers with sum 1, such as (0.5, 0.15, 0.35)"
        )


def split_by_class(labels: np.ndarray, num_classes: int, fractions: Sequence[float], seed: int) -> np.ndarray:
    """A class-disjoint split at random. Classes with one sample are spread over the parts on their own, so that no part gets
    only such.

    Args:
        labels: int64 [N] in 0..num_classes - 1.
        num_classes: of the labels.
        fractions: of the classes for train, validation and test.
        seed: of the draw.

    Returns:
        text [N].

    Raises:
        DataError: too few classes for two in every part.
    """
    counts = np.bincount(labels, minlength=num_classes)
    generator = np.random.default_rng((seed, 1))
    several = generator.permutation(np.flatnonzero(counts > 1))
    single = generator.permutation(np.flatnonzero(counts == 1))
    if num_classes < 3 * _LEAST_CLASSES or len(several) < 3:
        single_note = f", {len(single)} of them with a single sample" if len(single) else ""
        raise DataError(
            f"the data has {num_classes} classes{single_note}, but a split into train, validation and test classes"
            f" needs at least {3 * _LEAST_CLASSES}. Add classes, or give a split with the data"
        )
    part_of_class = np.empty(num_classes, dtype="<U10")
    least = _LEAST_CLASSES if len(several) >= 3 * _LEAST_CLASSES else 1
    for classes, smallest in ((several, least), (single, 0)):
        sizes = _sizes(len(classes), fractions, smallest)
        for part, start, size in zip(PARTS, np.cumsum([0, *sizes[:-1]]), sizes, strict=True):
            part_of_class[classes[start : start + size]] = part
    return part_of_class[labels]


def _sizes(count: int, fractions: Sequence[float], least: int) -> list[int]:
    sizes = [0, max(least, round(count * fractions[1])), max(least, round(count * fractions[2]))]
    while count - sum(sizes) < least:
        sizes[1 if sizes[1] > sizes[2] else 2] -= 1
    sizes[0] = count - sum(sizes)
    return sizes


def complete_split(
    labels: np.ndarray, own_split: np.ndarray, fractions: Sequence[float], seed: int
) -> tuple[np.ndarray, list[str]]:
    """A split given by the data with its missing parts filled in.

    Without validation, validation classes are drawn from the training classes. Without test, the given validation part
    becomes the test part, so that nothing is chosen by what is reported.

    Args:
        labels: int64 [N].
        own_split: of the data, text [N] of `train`, `validation`, `test`.
        fractions: of the classes for train, validation and test.
        seed: of the draw.

    Returns:
        text [N] with all parts, and notes for the user.

    Raises:
        DataError: no training part, or only a training part, or too few training classes.
    """
    present = set(own_split)
    if "train" not in present or len(present) == 1:
        raise DataError(
            f"the split given by the data has only {' and '.join(sorted(present))}, but needs train and test."
            f" Leave the split out to have the classes split at random"
        )
    notes = ["split given by the data"]
    split = own_split.astype("<U10")
    if "test" not in present:
        split[split == "validation"] = "test"
        notes.append("the data gives no test part: its validation part is the test part")
    if "validation" not in set(split):
        classes = np.random.default_rng((seed, 2)).permutation(np.unique(labels[split == "train"]))
        count = max(_LEAST_CLASSES, round(len(classes) * fractions[1] / (fractions[0] + fractions[1])))
        if len(classes) < 2 * _LEAST_CLASSES:
            raise DataError(
                f"the split given by the data has no validation part and only {len(classes)} training classes, too"
                f" few to take validation classes from. Give a validation part"
            )
        count = min(count, len(classes) - _LEAST_CLASSES)
        split[(split == "train") & np.isin(labels, classes[:count])] = "validation"
        notes.append(f"the data gives no validation part: {count} of {len(classes)} training classes are held out for it")
    trained = np.unique(labels[split == "train"])
    for part in ("validation", "test"):
        held_out = np.unique(labels[split == part])
        shared = int(np.isin(held_out, trained).sum())
        if shared:
            notes.append(f"not class-disjoint: {shared} of {len(held_out)} {part} classes are trained on")
    return split, notes


def check_part(dataset: LabelledDataset, part: str) -> list[str]:
    """Refuse a part on which nothing can be learnt or measured, and mention classes with a single sample.

    Raises:
        DataError: fewer than two classes, or no class with two samples.
    """
    counts = np.bincount(dataset.dense_labels, minlength=dataset.num_classes)
    if dataset.num_classes < _LEAST_CLASSES:
        raise DataError(f"the {part} part has {dataset.num_classes} class, but needs at least {_LEAST_CLASSES}")
    single = int((counts == 1).sum())
    if single == dataset.num_classes:
        raise DataError(f"every class of the {part} part has a single sample, but learning and retrieval need two of a class")
    if not single:
        return []
    use = "repeated in their batches" if part == "train" else "never a query, only candidates"
    return [f"{single} of {dataset.num_classes} {part} classes have a single sample: {use}"]
