"""What the trials of a campaign share: the folder they work in, the warm process, seeds, and small data."""

from __future__ import annotations

import shutil
import sys
import zlib
from functools import cached_property
from pathlib import Path

import numpy as np

from .process import ROOT, Warm

for place in (ROOT / "tests", ROOT):  # the tables of the tests, and `benchmarks`, which knows versions and commits
    if str(place) not in sys.path:
        sys.path.append(str(place))


class Bench:
    """The campaign's workplace.

    Args:
        folder: for everything that trials write.
        seed: of every draw.
        minutes: the campaign has, or None for all trials.
    """

    def __init__(self, folder: Path, seed: int = 0, minutes: float | None = None) -> None:
        self.folder = folder.resolve()
        self.seed = seed
        self.minutes = minutes
        self._has_warm = False

    @cached_property
    def warm(self) -> Warm:
        """The process that runs commands; started when it is first used."""
        self._has_warm = True
        return Warm(self.folder / "warm")

    @property
    def is_sampled(self) -> bool:
        """Whether there is no time for all trials."""
        return self.minutes is not None

    def draws(self, key: str) -> np.random.Generator:
        """The random numbers of one trial: the same for the same seed and key."""
        return np.random.default_rng([self.seed, zlib.crc32(key.encode())])

    def place(self, template: Path | None = None) -> Path:
        """The folder of the trial, emptied and filled from a template. Its path is always the same, so that results are."""
        place = self.folder / "trial"
        if place.exists():
            shutil.rmtree(place)
        if template is None:
            place.mkdir(parents=True)
        else:
            shutil.copytree(template, place, symlinks=True)
        return place

    def close(self) -> None:
        """End the warm process."""
        if self._has_warm:
            self.warm.close()


def write_features(path: Path, classes: int = 12, samples: int = 6) -> Path:
    """A file of features on which a few steps of training improve the embedding: `[72, 12]`, half of each only noise."""
    draws = np.random.default_rng(1)
    y = np.repeat(np.arange(classes), samples)
    signal = draws.normal(size=(classes, 6))[y] + 0.3 * draws.normal(size=(len(y), 6))
    np.savez(path, x=np.hstack([signal, 2 * draws.normal(size=(len(y), 6))]).astype(np.float32), y=y)
    return path
