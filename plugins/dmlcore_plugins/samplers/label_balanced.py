"""Batches of P labels times K samples, where samples have several labels."""

from __future__ import annotations

from typing import Any

import numpy as np

import dmlcore
from dmlcore.config import check_range
from dmlcore.data import BatchSampler, LabelSets


class LabelBalancedSampler(BatchSampler):
    """Batches of P labels with K samples each, for samples with several labels.

    The labels go round in shuffled rounds, and so do the samples of each label. A sample that a batch has already, for another
    of its labels, is passed over, so no sample is in a batch twice. Where a label has too few other samples, samples drawn at
    random fill the batch. Labels of a single sample are not drawn, if two others are there.

    Args:
        labels: of N samples: `LabelSets`, or int64 [N], one each.
        classes_per_batch: P, of labels.
        samples_per_class: K >= 1.
        seed: of the stream.
        steps: batches of an epoch, as `BatchSampler`. None: it never ends.
    """

    name = "label_balanced"

    def __init__(self, labels: np.ndarray | LabelSets, *arguments: Any, **named: Any) -> None:
        super().__init__(labels, *arguments, **named)
        check_range("samples_per_class", self.samples_per_class, least=1)
        check_range("classes_per_batch", self.classes_per_batch, least=1)
        if not isinstance(labels, LabelSets):
            dense = np.unique(labels, return_inverse=True)[1]
            labels = LabelSets.of_pairs(np.arange(len(dense)), dense, len(dense), int(dense.max()) + 1)
        self.labels = np.arange(len(labels))  # the base asks only how many there are
        self._holders = labels.holders()
        sizes = self._holders.sizes
        several = np.flatnonzero(sizes > 1)
        self._drawn = several if len(several) > 1 else np.flatnonzero(sizes)
        self._orders: dict[int, tuple[int, np.ndarray]] = {}  # label -> number of its round, its samples in order

    def draw(self, step: int) -> np.ndarray:
        size = self.classes_per_batch * self.samples_per_class
        batch: dict[int, None] = {}
        for place in range(step * self.classes_per_batch, (step + 1) * self.classes_per_batch):
            number, position = divmod(place, len(self._drawn))
            label = self._drawn[np.random.default_rng((self.seed, 3, number)).permutation(len(self._drawn))[position]]
            self._take(int(label), number, batch)
        generator = np.random.default_rng((self.seed, 7, step))
        missing = size - len(batch)
        if missing:
            others = generator.permutation(len(self.labels))[: size + missing]
            rest = [int(row) for row in others if int(row) not in batch][:missing]
            batch.update(dict.fromkeys(rest))
        rows = np.fromiter(batch, dtype=np.int64)
        return np.concatenate([rows, generator.choice(rows, size - len(rows))])  # data smaller than a batch repeat

    def _take(self, label: int, visit: int, batch: dict[int, None]) -> None:
        """Put K samples of a label into a batch that it does not have yet, or as many as there are."""
        first, count = visit * self.samples_per_class, int(self._holders.sizes[label])
        wanted = self.samples_per_class
        for place in range(first, first + count):
            row = int(self._order(label, place // count)[place % count])
            if row not in batch:
                batch[row] = None
                wanted -= 1
            if not wanted:
                return

    def _order(self, label: int, number: int) -> np.ndarray:
        if self._orders.get(label, (-1, None))[0] != number:
            rows = self._holders.index[self._holders.starts[label] : self._holders.starts[label + 1]]
            self._orders[label] = number, np.random.default_rng((self.seed, 4, label, number)).permutation(rows)
        return self._orders[label][1]


@dmlcore.hookimpl
def dmlcore_samplers() -> list[type]:
    return [LabelBalancedSampler]
