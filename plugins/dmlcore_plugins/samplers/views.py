"""Batches in which each sample occurs several times, to be seen under different random changes."""

from __future__ import annotations

from typing import Any

import numpy as np

import dmlcore
from dmlcore.config import check_range
from dmlcore.data import BatchSampler
from dmlcore.errors import ConfigError


class ViewsSampler(BatchSampler):
    """Batches of `classes_per_batch` samples, each `samples_per_class` times in a row, whatever their classes.

    Transforms change each row of a batch by itself, so the repetitions of a sample are views of it. The samples go round in
    shuffled rounds of whole batches: none is drawn again before the round ends, and the few that fill no batch wait for another
    round. With the setting `views` the labels of a run are the samples themselves. Without it the classes stay, as in the
    supervised contrastive loss with two views of a sample.

    Raises:
        ConfigError: more samples in a batch than there are, or a number out of range.
    """

    name = "views"

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        check_range("samples_per_class", self.samples_per_class, least=1)
        check_range("classes_per_batch", self.classes_per_batch, least=1)
        if self.classes_per_batch > len(self.labels):
            raise ConfigError(
                f"classes_per_batch is {self.classes_per_batch}, the samples of a batch, but there are {len(self.labels)}."
                f" Lower it to {len(self.labels)} or less"
            )
        self._round: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))  # number and order of the last round

    def draw(self, step: int) -> np.ndarray:
        number, place = divmod(step, len(self.labels) // self.classes_per_batch)
        if number != self._round[0]:
            self._round = number, np.random.default_rng((self.seed, 8, number)).permutation(len(self.labels))
        first = place * self.classes_per_batch
        return np.repeat(self._round[1][first : first + self.classes_per_batch], self.samples_per_class)


@dmlcore.hookimpl
def dmlcore_samplers() -> list[type]:
    return [ViewsSampler]
