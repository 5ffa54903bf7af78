"""Training, validation and test parts: by classes drawn at random, or as the data gives them. What validates where the data do
not say it is in `validating`, sampling in `samplers`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dmlcore.data.datasets import LabelledDataset
from dmlcore.data.label_sets import LabelSets
from dmlcore.data.part_words import PARTS, ROLES, check_roles, rows_of_part
from dmlcore.data.validating import LEAST_CLASSES, LEAST_SAMPLES, take_samples, take_validation, validate_by
from dmlcore.errors import ConfigError, DataError


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
        paths: the file of each sample of the source. None: the samples are no files of their own.
        has_labels: whether the labels say anything: there are two classes, and one with two samples.
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
    paths: Sequence[str] | None = None
    record: Callable[[], bytes] | None = None
    has_labels: bool = True

    def count_of(self, part: str) -> str:
        """The samples of a part, in words."""
        dataset = getattr(self, part)
        if not len(dataset):
            return "none"
        return f"{len(dataset):,} samples of {dataset.num_labels:,} {'classes' if dataset.sets is None else 'labels'}"

    def describe(self) -> dict[str, Any]:
        """The source, its parts and the notes as plain values for JSON."""
        parts = {part: {"classes": getattr(self, part).num_classes, "samples": len(getattr(self, part))} for part in PARTS}
        if self.train.sets is not None:
            parts = {part: {**counts, "labels": getattr(self, part).num_labels} for part, counts in parts.items()}
        if self.test.roles is not None:
            parts["test"] |= {"queries": len(self.test.queries), "gallery": len(self.test.references)}
        known = self.train.finest.labels if self.train.sets is None else self.train.judged_sets().index
        tested = self.test.labels if self.test.sets is None else self.test.judged_sets().index
        return {
            "name": self.name,
            "kind": self.kind,
            "sample_shape": list(self.sample_shape),
            "seed": self.seed,
            "parts": parts,
            "test_classes_trained_on": int(np.isin(np.unique(tested), known).sum()),
            "notes": list(self.notes),
        }


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


def can_split_by_class(labels: np.ndarray, num_classes: int) -> bool:
    """Whether there are two classes for every part, and one with two samples for each."""
    return num_classes >= 3 * LEAST_CLASSES and int((np.bincount(labels, minlength=num_classes) > 1).sum()) >= len(PARTS)


def split_by_class(labels: np.ndarray, num_classes: int, fractions: Sequence[float], seed: int) -> np.ndarray:
    """A class-disjoint split at random. Classes with one sample are spread over the parts on their own, so that no part gets
    only such.

    Args:
        labels: int64 [N] in 0..num_classes - 1, of enough classes, see `can_split_by_class`.
        num_classes: of the labels.
        fractions: of the classes for train, validation and test.
        seed: of the draw.

    Returns:
        text [N].
    """
    generator = np.random.default_rng((seed, 1))
    counts = np.bincount(labels, minlength=num_classes)
    several = generator.permutation(np.flatnonzero(counts > 1))
    single = generator.permutation(np.flatnonzero(counts == 1))
    assert can_split_by_class(labels, num_classes)
    part_of_class = np.empty(num_classes, dtype="<U10")
    least = LEAST_CLASSES if len(several) >= 3 * LEAST_CLASSES else 1
    for classes, smallest in ((several, least), (single, 0)):
        sizes = _sizes(len(classes), fractions, smallest)
        for part, start, size in zip(PARTS, np.cumsum([0, *sizes[:-1]]), sizes, strict=True):
            part_of_class[classes[start : start + size]] = part
    return part_of_class[labels]


def split_within_classes(labels: np.ndarray, fractions: Sequence[float], seed: int) -> tuple[np.ndarray, list[str]]:
    """A split at random that gives several parts samples of the same classes, for data with few classes.

    Args:
        labels: int64 [N] in 0..C - 1. A class with two samples for each part is in all of them. One with two for two parts is
            in training and in test or validation. A smaller one is trained on only.
        fractions: of the samples of each class for train, validation and test.
        seed: of the draw.

    Returns:
        text [N], and notes for the user.

    Raises:
        DataError: validation or test would have fewer than two classes.
    """
    counts = np.bincount(labels)
    generator = np.random.default_rng((seed, 1))
    in_two = generator.permutation(np.flatnonzero((counts >= 2 * LEAST_SAMPLES) & (counts < len(PARTS) * LEAST_SAMPLES)))
    in_all = np.flatnonzero(counts >= len(PARTS) * LEAST_SAMPLES)
    if len(in_all) + len(in_two) // 2 < LEAST_CLASSES:
        single = int((counts == 1).sum())
        raise DataError(
            f"the data has {len(counts)} classes{f', {single} of them with a single sample,' if single else ''} and"
            f" {len(labels)} samples, too few to measure anything on samples that are not trained on: give"
            f" {len(PARTS) * LEAST_CLASSES} classes with two samples each, two with {len(PARTS) * LEAST_SAMPLES}, or a split"
            f" with the data"
        )
    split = np.full(len(labels), "train", dtype="<U10")
    for label in in_all:
        rows = generator.permutation(np.flatnonzero(labels == label))
        _, validation, test = _sizes(len(rows), fractions, LEAST_SAMPLES)
        split[rows[:validation]] = "validation"
        split[rows[validation : validation + test]] = "test"
    for place, label in enumerate(in_two):
        rows = generator.permutation(np.flatnonzero(labels == label))
        split[rows[:LEAST_SAMPLES]] = ("test", "validation")[place % 2]
    notes = [
        f"too few classes ({len(counts)}) to keep some apart, so samples are split at random: the test classes are trained on,"
        f" and the scores say nothing about new classes"
    ]
    small = len(counts) - len(in_all) - len(in_two)
    if small:
        notes.append(f"{small} of {len(counts)} classes have fewer than {2 * LEAST_SAMPLES} samples and are only trained on")
    return split, notes


def _sizes(count: int, fractions: Sequence[float], least: int) -> list[int]:
    sizes = [0, max(least, round(count * fractions[1])), max(least, round(count * fractions[2]))]
    while count - sum(sizes) < least:
        sizes[1 if sizes[1] > sizes[2] else 2] -= 1
    sizes[0] = count - sum(sizes)
    return sizes


def split_samples(own_split: np.ndarray | None, count: int, fractions: Sequence[float], seed: int) -> tuple[np.ndarray, str]:
    """A split of samples whose labels say nothing: as the data have it, and at random what they leave open.

    Args:
        own_split: of the data, text [N], with `train`; None: they have none.
        count: N.
        fractions: of the samples for train, validation and test.
        seed: of the draw.

    Returns:
        text [N], and a note for the user.

    Raises:
        DataError: there are too few samples.
    """
    generator = np.random.default_rng((seed, 1))
    split = np.full(count, "train", dtype="<U10") if own_split is None else own_split.astype("<U10")
    note = "samples split at random" if own_split is None else "split given by the data"
    split[np.isin(split, ROLES)] = "test"
    free = generator.permutation(np.flatnonzero(split == "train"))
    missing = [part for part in PARTS[1:] if part not in set(split)]
    if len(free) < LEAST_SAMPLES * (1 + len(missing)):
        raise DataError(
            f"there are {len(free)} samples to train on, too few to keep some apart: give {LEAST_SAMPLES * len(PARTS)}"
        )
    sizes: dict[str, int] = dict(zip(PARTS, _sizes(len(free), fractions, LEAST_SAMPLES), strict=True))
    for part in missing:
        split[free[: sizes[part]]], free = part, free[sizes[part] :]
    return split, note


def complete_split(
    labels: np.ndarray,
    own_split: np.ndarray,
    fractions: Sequence[float],
    seed: int,
    label_sets: LabelSets | None = None,
    validation: str = "classes",
) -> tuple[np.ndarray, list[str]]:
    """A split given by the data with its missing parts filled in.

    Without validation, validation classes are drawn from the training classes. Without test, the given validation part
    becomes the test part, so that nothing is chosen by what is reported.

    Args:
        labels: int64 [N].
        own_split: of the data, text [N] of `train`, `validation`, `test`, `query`, `gallery`, or empty for no part.
        fractions: of the classes for train, validation and test.
        seed: of the draw.
        label_sets: the labels of each class where samples have several. Validation is then drawn from the samples.
        validation: of `VALIDATIONS`.

    Returns:
        text [N] with all parts, and notes for the user.

    Raises:
        DataError: no training part, or only a training part, too few training classes, queries without a gallery.
    """
    present = set(own_split) - {""}
    if "train" not in present or len(present) == 1:
        raise DataError(
            f"the split given by the data has only {' and '.join(sorted(present))}, but needs train and test."
            f" Leave the split out to have the classes split at random"
        )
    check_roles(present)
    notes = ["split given by the data"]
    split = own_split.astype("<U10")
    if not present & {"test", *ROLES}:
        split[split == "validation"] = "test"
        notes.append("the data gives no test part: its validation part is the test part")
    generator = np.random.default_rng((seed, 2))
    if validation != "classes":
        notes += validate_by(split, labels, validation, fractions, generator, by_class=label_sets is None)
    elif "validation" not in set(split):
        take = take_validation if label_sets is None else take_samples
        notes.append(f"the data gives no validation part: {take(split, labels, fractions, generator)}")
    trained = _labels_of(labels[split == "train"], label_sets)
    noun = "class" if label_sets is None else "label"
    for part in ("validation", "test"):
        held_out = _labels_of(labels[rows_of_part(split, part)[0]], label_sets)
        shared = int(np.isin(held_out, trained).sum())
        if shared:
            plural = "classes" if label_sets is None else "labels"
            notes.append(f"not {noun}-disjoint: {shared} of {len(held_out)} {part} {plural} are trained on")
    return split, notes


def _labels_of(classes: np.ndarray, label_sets: LabelSets | None) -> np.ndarray:
    """The classes that there are, or the labels that samples of these classes have."""
    present = np.unique(classes)
    return present if label_sets is None else np.unique(label_sets.select(present).index)


def check_part(dataset: LabelledDataset, part: str) -> list[str]:
    """Refuse a part on which nothing can be learnt or measured, and mention classes with a single sample.

    Raises:
        DataError: fewer than two classes, or no class with two samples.
    """
    counts = np.bincount(dataset.dense_labels, minlength=dataset.num_classes)
    if min(dataset.num_classes, dataset.num_labels) < LEAST_CLASSES:
        what = "class" if dataset.sets is None else "label"
        raise DataError(f"the {part} part has {dataset.num_labels} {what}, but needs at least {LEAST_CLASSES}")
    if dataset.roles is not None or dataset.sets is not None:
        return _check_answers(dataset, part)
    single = int((counts == 1).sum())
    if single == dataset.num_classes:
        raise DataError(f"every class of the {part} part has a single sample, but learning and retrieval need two of a class")
    if not single:
        return []
    use = "repeated in their batches" if part == "train" else "never a query, only candidates"
    return [f"{single} of {dataset.num_classes} {part} classes have a single sample: {use}"]


def _check_answers(dataset: LabelledDataset, part: str) -> list[str]:
    """The same where there is more to a right answer than an equal class: a gallery, or several labels."""
    has_answer, notes = dataset.has_answer(), []
    what = "with a common label" if dataset.sets is not None else "of its class"
    where = "in the gallery" if dataset.roles is not None else "beside it"
    if not has_answer.any():
        raise DataError(f"no sample of the {part} part has one {what} {where}, so nothing can be learnt or measured")
    if dataset.roles is not None:
        notes.append(f"{part}: {len(has_answer):,} queries are ranked against a gallery of {len(dataset.references):,}")
    if dataset.judged is not None:
        notes.append(f"{part}: judged by the {dataset.num_labels:,} labels that no training sample has; others do not count")
    without = int((~has_answer).sum())
    if without:
        notes.append(f"{without:,} of {len(has_answer):,} {part} samples have none {what} {where}")
    return notes
