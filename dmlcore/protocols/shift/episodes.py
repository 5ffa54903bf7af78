"""Fixed few-shot episodes: which samples of every test class are its support. All its other samples are queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from dmlcore.data import ClassSplit
from dmlcore.data.split_files import Episode
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
        shots: as asked for. None: 2, 5 and 10, as far as one class can give them.
        short_classes: what becomes of classes with fewer than k + 2 samples: they `lend` all but 2 of theirs, or are refused.

    Returns:
        The numbers of shots, and notes for the user.

    Raises:
        ConfigError: k is no whole number above 0, or no class can give k.
        DataError: a short class where these are refused.
    """
    sizes = np.bincount(labels, minlength=len(class_names))[test_classes]
    usable: list[int] = []
    notes: list[str] = []
    for k in DEFAULT_SHOTS if shots is None else shots:
        if k < 1 or k in usable:
            raise ConfigError(f"shots has {k}, but must be different whole numbers from 1 on")
        short = np.flatnonzero(sizes < k + LEFT)
        if len(short) == len(sizes):
            largest = int(sizes.argmax())
            reason = _why_not_any(k, class_names[int(test_classes[largest])], int(sizes[largest]))
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


def _why_not_any(shots: int, name: str, size: int) -> str:
    """Why no class can give so many shots, of the largest class."""
    works = f"at most {size - LEFT} shots work" if size > LEFT else "no number of shots works"
    return f"{shots} shots need a test class of {shots + LEFT} samples or more, but the largest, '{name}', has {size}: {works}"


def draw_supports(labels: np.ndarray, shots: int, episode: int, seed: int) -> np.ndarray:
    """The support samples of every class in one episode. The same class lends the same ones to every split.

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
    """Names of the support samples of every class. Arguments as of `draw_supports`, with a name per sample and class."""
    supports: list[list[str]] = [[] for _ in class_names]
    for row in draw_supports(labels, shots, episode, seed):
        supports[int(labels[row])].append(names[int(row)])
    return [tuple(support) for support in supports]


def can_be_learnt(episode: Episode, least: int) -> bool:
    """Whether an episode has two classes with `least` support samples each: less cannot tell classes apart."""
    return sum(len(support) >= least for support in episode.values()) > 1


def support_rows(
    split: ClassSplit,
    shots: int,
    table_rows: np.ndarray,
    names: Sequence[str],
    classes: np.ndarray,
    class_names: Sequence[str],
    most: int | None = None,
) -> list[np.ndarray]:
    """Where the support samples of every episode lie in the test part. All its other samples are queries.

    Args:
        split: with episodes.
        shots: k.
        table_rows: int64 [n], rows of the test part in the table.
        names: of all samples of the table.
        classes: int64 [n], dense labels of the test part.
        class_names: by dense label.
        most: episodes, the first so many. None: all.

    Returns:
        For each episode the positions in the test part, sorted int64.

    Raises:
        DataError: no such episodes; samples that the data lack or that are of another class; a class without a query.
    """
    if shots not in split.episodes:
        available = ", ".join(map(str, split.episodes)) or "none"
        raise DataError(f"split '{split.id}' has no episodes of {shots} shots; it has: {available}")
    sizes = np.bincount(classes, minlength=len(class_names))
    place = {(class_names[label], names[row]): at for at, (row, label) in enumerate(zip(table_rows, classes, strict=True))}
    label_of = {name: label for label, name in enumerate(class_names)}
    positions = []
    for episode in split.episodes[shots][:most]:
        rows = []
        # an episode of whole classes leaves the other classes to be searched
        is_of_classes = 1 < len(episode) < len(split.test) and all(
            len(support) >= sizes[label_of[name]] for name, support in episode.items()
        )
        for name, support in episode.items():
            missing = [sample for sample in support if (name, sample) not in place]
            if missing:
                raise DataError(
                    f"an episode of split '{split.id}' asks for sample '{missing[0]}' of class '{name}', which the data lack"
                    f" ({len(missing)} of {len(support)} missing). Is --data what the splits were made for?"
                )
            if len(support) >= sizes[label_of[name]] and not is_of_classes:
                raise DataError(
                    f"an episode of {shots} shots of split '{split.id}' takes all {sizes[label_of[name]]} samples of class"
                    f" '{name}'; none is left to be searched"
                )
            rows += [place[name, sample] for sample in support]
        positions.append(np.sort(np.array(rows, dtype=np.int64)))
    return positions
