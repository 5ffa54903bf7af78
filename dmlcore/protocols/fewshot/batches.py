"""How the samples of a part are dealt out while training: shuffled, by class, in episodes. All of numpy's random numbers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dmlcore.protocols.fewshot.tasks import Part


def shuffled(part: Part, batch: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """An epoch of positions in batches, for classifiers."""
    order = rng.permutation(len(part))
    for start in range(0, len(order), batch):
        yield order[start : start + batch]


def by_class(part: Part, batch: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """An epoch of positions in batches of equally many samples of every class, each sample once.

    A batch has `batch / classes` samples of a class, rounded down but at least 2. Where a class has run out, a batch goes on
    without it; what is left of one class alone makes no batch.
    """
    classes = [rng.permutation(positions) for positions in part.by_class()]
    share = max(batch // len(classes), 2)
    for start in range(0, max(map(len, classes)), share):
        positions_by_class = [positions[start : start + share] for positions in classes]
        if sum(len(positions) > 0 for positions in positions_by_class) > 1:
            yield np.concatenate(positions_by_class)


def episode(part: Part, support: int, queries: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Positions of support and query samples of all classes.

    Args:
        part: every class has at least two samples.
        support: of each class; fewer where one more than that is not there.
        queries: of each class at most; 0: all that are left.
        rng: draws them.
    """
    support_positions, query_positions = [], []
    for positions in part.by_class():
        order = rng.permutation(positions)
        first = min(support, len(order) - 1)
        support_positions.append(order[:first])
        query_positions.append(order[first : first + queries if queries else None])
    return np.concatenate(support_positions), np.concatenate(query_positions)
