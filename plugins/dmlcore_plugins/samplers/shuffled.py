"""Batches of shuffled samples."""

from __future__ import annotations

from typing import Any

import numpy as np

import dmlcore
from dmlcore.data import BatchSampler


class ShuffledSampler(BatchSampler):
    """Passes over all samples in random order, `classes_per_batch * samples_per_class` at a time, whatever their classes.

    For losses with proxies, which need no positives in the batch. Losses between samples find few of them when there are many
    classes. Every sample is seen once before any is seen again.
    """

    name = "shuffled"

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._rounds: dict[int, np.ndarray] = {}  # the orders of the rounds that the last batch was part of

    def draw(self, step: int) -> np.ndarray:
        size, count = self.classes_per_batch * self.samples_per_class, len(self.labels)
        places = np.arange(step * size, (step + 1) * size)
        needed = set((places // count).tolist())
        self._rounds = {number: self._rounds[number] if number in self._rounds else self._round(number) for number in needed}
        return np.array([self._rounds[place // count][place % count] for place in places.tolist()])

    def _round(self, number: int) -> np.ndarray:
        return np.random.default_rng((self.seed, 6, number)).permutation(len(self.labels))


@dmlcore.hookimpl
def dmlcore_samplers() -> list[type]:
    return [ShuffledSampler]
