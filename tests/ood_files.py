"""Small data and a file of splits that tests of `dmlcore ood` are made on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dmlcore.data import ClassSplit, SplitFile

CLASSES, PER_CLASS = 24, 8


def make_features(path: Path) -> Path:
    generator = np.random.default_rng(0)
    y = np.repeat(np.arange(CLASSES), PER_CLASS)
    x = generator.normal(size=(CLASSES, 12))[y] + 0.9 * generator.normal(size=(len(y), 12))
    np.savez(path, x=x.astype(np.float32), y=y)
    return path


def make_splits(path: Path, data: str) -> Path:
    def names(classes: list[int]) -> tuple[str, ...]:
        return tuple(map(str, classes))

    def episodes(test: list[int], shots: int) -> tuple[dict[str, tuple[str, ...]], ...]:
        drawn = []
        for number in range(3):
            generator = np.random.default_rng((shots, number))
            drawn.append({str(c): names((c * PER_CLASS + generator.permutation(PER_CLASS)[:shots]).tolist()) for c in test})
        return tuple(drawn)

    splits = []
    for swapped, fid in enumerate((3.0, 5.0, 9.0)):
        train = [*range(swapped, 12), *range(12, 12 + swapped)]
        test = [c for c in range(CLASSES) if c not in train]
        split = ClassSplit(
            f"swap{swapped}" if swapped else "default",
            fid,
            swapped,
            0,
            names(train),
            names(test),
            names(train[:9]),
            names(train[9:]),
            {2: episodes(test, 2), 5: episodes(test, 5)},
        )
        splits.append(split)
    path.write_bytes(SplitFile(data, {}, "default", tuple(splits)).to_json())
    return path


def only(dataset: Any, rows: np.ndarray) -> Any:
    return type(dataset)(dataset.samples, dataset.rows[rows], dataset.labels[rows], dataset.table_names, dataset.sample_shape)
