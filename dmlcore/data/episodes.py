"""Fixed few-shot episodes: which samples of every test class are given as support. All its others are queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from dmlcore.errors import ConfigError, DataError

DEFAULT_SHOTS = (2, 5, 10)
LEFT = 2  # samples of a class that stay queries at least, so that they can find each other


def usable_shots(
    labels: np.ndarray,
    class_names: Sequence[str],
    test_classes: np.ndarray,
    shots: Sequence[int] | None,
    short_classes: Literal["lend", "refuse"] = "lend",
) -> tuple[list[int], list[str]]:
    """Numbers of shots that the classes can give.

    Args:
        labels: int64 [N], an index into `class_names`.
        class_names: C names.
        test_classes: int64, every class that is a test class of some split.
        shots: as asked for; None: 2, 5 and 10, as far as one class can give them.
        short_classes: what becomes of classes with fewer than k + 2 samples: they `lend` all but 2 of theirs, or are refused.

    Returns:
        The numbers of shots, and notes for the user.

    Raises:
        ConfigError: k is no whole number above 0, or no class can give k.
        DataError: a short class where these are refused.
    """
    sizes = np.bincount(labels, minlength=len(class_names))[test_classes]
    largest = int(sizes.argmax())
    usable: list[int] = []
    notes: list[str] = []
    for k in DEFAULT_SHOTS if shots is None else shots:
        if k < 1 or k in usable:
            raise ConfigError(f"shots has {k}, but must be different whole numbers from 1 on")
        short = np.flatnonzero(sizes < k + LEFT)
        if len(short) == len(sizes):
            works = f"at most {sizes[largest] - LEFT} shots work" if sizes[largest] > LEFT else "no number of shots works"
            reason = (
                f"{k} shots need a test class of {k + LEFT} samples or more, but the largest,"
                f" '{class_names[test_classes[largest]]}', has {sizes[largest]}: {works}"
            )
            if shots is not None:
                raise ConfigError(reason)
            notes.append(f"episodes of {k} shots are left out: {reason}")
            continue
        if len(short) and short_classes == "refuse":
            first = int(short[sizes[short].argmin()])
            raise DataError(
                f"class '{class_names[test_classes[first]]}' has {sizes[first]} samples, but episodes of {k} shots take"
                f" {k} and leave {LEFT}; {len(short)} of {len(sizes)} test classes are short. --short-classes lend takes fewer"
            )
        if len(short):
            notes.append(
                f"{len(short):,} of {len(sizes):,} test classes have fewer than {k + LEFT} samples and lend fewer than {k}"
                f" to an episode"
            )
        usable.append(k)
    return usable, notes


def draw_supports(labels: np.ndarray, shots: int, episode: int, seed: int) -> np.ndarray:
    """The support samples of every class in one episode; the same class lends the same ones to every split.

    Args:
        labels: int64 [N].
        shots: k.
        episode: number of the episode, from 0 on.
        seed: of all episodes.

    Returns:
        Rows, int64, sorted: of every class k, or all but 2 where it has fewer than k + 2, or none.
    """
    keys = np.random.RandomState([seed, 13, shots, episode]).permutation(len(labels))  # the same in every numpy
    order = np.lexsort((keys, labels))  # class by class, at random within
    sizes = np.bincount(labels)
    first = np.cumsum(sizes) - sizes
    place = np.arange(len(labels)) - first[labels[order]]  # within its class
    lent = np.minimum(shots, np.maximum(sizes - LEFT, 0))
    return np.sort(order[place < lent[labels[order]]])


def supports_by_class(
    labels: np.ndarray, names: Sequence[str], class_names: Sequence[str], shots: int, episode: int, seed: int
) -> list[tuple[str, ...]]:
    """Names of the support samples of every class; arguments as of `draw_supports`, with a name per sample and class."""
    found: list[list[str]] = [[] for _ in class_names]
    for row in draw_supports(labels, shots, episode, seed):
        found[int(labels[row])].append(names[int(row)])
    return [tuple(support) for support in found]
