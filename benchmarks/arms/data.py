"""The data of the comparison: the splits of `benchmarks.defaults.sets`, smaller, so that many runs are affordable."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from benchmarks.defaults.sets import SETS
from benchmarks.defaults.sets import prepare as prepare_whole
from benchmarks.ensembles.data import halved

SIDE = 16  # pixels of pictures
MOST = 100  # classes of validation and of test, the first of each in a drawn order


def prepare(name: str, seed: int, folder: Path | None, work: Path) -> Path:
    """Write the split of a seed, unless it is there, and return the file that `dmlcore train --data` reads.

    Args:
        name: of the data set.
        seed: of the split.
        folder: where the files of the data sets lie.
        work: where splits are kept.
    """
    path = work / "small" / f"{name.replace(' ', '-')}-{seed}.npz"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with np.load(prepare_whole(SETS[name], seed, folder, work)) as arrays:
        x, y, split = arrays["x"], arrays["y"], arrays["split"]
    rows = np.sort(np.concatenate([_rows(y, split, part, seed) for part in ("train", "validation", "test")]))
    x, y, split = x[rows], y[rows], split[rows]
    while SETS[name].kind == "images" and x.shape[1] > SIDE:
        x = halved(x.reshape(*x.shape[:3], -1))
    x = x[..., 0] if x.shape[-1] == 1 else x
    unfinished = path.with_name(f"{path.stem}.{os.getpid()}.npz")
    np.savez(unfinished, x=x, y=y, split=split)
    unfinished.replace(path)
    return path


def _rows(y: np.ndarray, split: np.ndarray, part: str, seed: int) -> np.ndarray:
    """Positions of a part: all of training, and of the others those of `MOST` classes."""
    classes = np.unique(y[split == part])
    if part != "train":
        classes = np.random.default_rng((seed, 16)).permutation(classes)[:MOST]
    return np.flatnonzero((split == part) & np.isin(y, classes))
