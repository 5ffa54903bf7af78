"""Small data files that tests of data are made on: folders of images, and .npz files of features."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

SHARED = Path(os.environ.get("DML_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
"""Where data lie that do not come with the package; tests that need them are skipped elsewhere."""


def save_image(path: Path, *, seed: int = 0, size: tuple[int, int] = (32, 32), mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = size if mode == "L" else (*size, {"RGB": 3, "RGBA": 4}[mode])
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(path)


def image_folder(root: Path, classes: int = 8, samples: int = 4, **image) -> Path:
    for label in range(classes):
        for sample in range(samples):
            save_image(root / f"class {label}" / f"{sample}.png", seed=100 * label + sample, **image)
    return root


def clouds(path: Path) -> str:
    """An .npz of 240 samples of 12 numbers around the centres of 20 classes."""
    generator = np.random.default_rng(0)
    y = np.repeat(np.arange(20), 12)
    x = (generator.normal(size=(20, 12))[y] + generator.normal(size=(240, 12))).astype(np.float32)
    np.savez(path, x=x, y=y)
    return str(path)


def feature_file(path: Path, classes: int = 10, samples: int = 5, **extra) -> Path:
    y = np.repeat(np.arange(classes), samples)
    x = np.random.default_rng(0).normal(size=(len(y), 6)).astype(np.float32)
    np.savez(path, **{"x": x, "y": y, **extra})
    return path


def class_sets(splits) -> list[set[str]]:
    return [set(part.class_names) for part in (splits.train, splits.validation, splits.test)]
