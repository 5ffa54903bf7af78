"""The data of the comparison: class-disjoint splits by seed, written as .npz files that `dmlcore train --data` reads."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FRACTIONS = (0.5, 0.15)  # of the classes: training, validation; the rest are test classes
WIDTH = 256  # features are reduced to so many principal components of the training classes


@dataclass(frozen=True)
class Data:
    """A data set of the comparison.

    Attributes:
        name: in the tables.
        file: of the table in the folder of data sets; empty: the embedded glyphs.
        steps: of a run.
        most: samples kept of a class; 0: all.
        seeds: of splits and weights.
        by_script: whole scripts are unseen, instead of single characters.
        pictures: seconds a run instead of tenths: the short list of arms, losses with their default options.
    """

    name: str
    file: str
    steps: int
    most: int = 0
    seeds: int = 10
    by_script: bool = False
    pictures: bool = False


DATA = {
    data.name: data
    for data in (
        Data("banking", "banking77_minilm.npz", 250, 60),
        Data("emoji", "emoji_mobilenetv2.npz", 500),
        Data("grocery", "grocery_mobilenetv2.npz", 250, 60),
        Data("emoji pictures", "emoji_64.npz", 250, seeds=5, pictures=True),
        Data("glyphs", "", 250, seeds=5, pictures=True),
        Data("glyph scripts", "", 250, seeds=5, by_script=True, pictures=True),
    )
}


def available(folder: Path | None) -> dict[str, Data]:
    """The data sets whose files are there, by name."""
    return {name: data for name, data in DATA.items() if not data.file or (folder and (folder / data.file).exists())}


def prepare(data: Data, seed: int, folder: Path | None, work: Path) -> Path:
    """Write the split of a seed, unless it is there, and return the file.

    Args:
        data: the data set.
        seed: of the split.
        folder: where the tables lie.
        work: where splits are kept.
    """
    path = work / "data" / f"{data.name.replace(' ', '-')}-{seed}.npz"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    if data.file and data.pictures:
        x, y, split = _pictures(Path(folder or "") / data.file, seed)
    elif data.file:
        x, y, split = _features(Path(folder or "") / data.file, data.most, seed)
    else:
        x, y, split = glyphs(data.by_script, seed)
    unfinished = path.with_name(f"{path.stem}.{os.getpid()}.npz")
    np.savez(unfinished, x=x, y=y, split=split)
    unfinished.replace(path)
    return path


def _features(file: Path, most: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features on principal components of the training classes, labels, and the part of every sample, drawn by class."""
    with np.load(file, allow_pickle=False) as arrays:
        x, y = arrays["x"].astype(np.float32), arrays["y"]
    rng = np.random.default_rng(seed)
    if most:
        order = rng.permutation(len(y))
        positions = np.concatenate([order[y[order] == label][:most] for label in np.unique(y)])
        x, y = x[np.sort(positions)], y[np.sort(positions)]
    split = parts_by_class(y, rng)
    return principal_components(x, split), y, split


def principal_components(x: np.ndarray, split: np.ndarray) -> np.ndarray:
    """Features float32 [N, WIDTH] on the principal components of the training samples, whose mean square length becomes 1."""
    train = x[split == "train"].astype(np.float64)
    mean = train.mean(0)
    _, vectors = np.linalg.eigh(np.cov(train, rowvar=False))
    x = ((x - mean) @ vectors[:, ::-1][:, :WIDTH]).astype(np.float32)
    return x / np.sqrt((x[split == "train"] ** 2).sum(1).mean())


def _pictures(file: Path, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels uint8, averaged down to half the side, labels, and the part of every sample, drawn by class."""
    with np.load(file, allow_pickle=False) as arrays:
        x, y = arrays["x"], arrays["y"]  # [N, H, W, C]
    return halved(x), y, parts_by_class(y, np.random.default_rng(seed))


def halved(x: np.ndarray) -> np.ndarray:
    """Pixels uint8 [N, H, W, C] averaged down to half the side."""
    smaller = x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2, x.shape[3]).mean((2, 4))
    return np.round(smaller).astype(np.uint8)


def parts_by_class(y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The part of every sample, drawn by class."""
    classes = rng.permutation(np.unique(y))
    first, second = (round(share * len(classes)) for share in (FRACTIONS[0], sum(FRACTIONS)))
    return np.where(np.isin(y, classes[:first]), "train", np.where(np.isin(y, classes[first:second]), "validation", "test"))


def glyphs(by_script: bool, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the embedded characters: pixels uint8, labels, and the part of every sample as the embedded data set splits itself."""
    from dmlcore.data import open_data

    split = "unseen_scripts" if by_script else "unseen_characters"
    splits = open_data("glyphs", options={"split": split}, seed=seed)
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    x = np.concatenate([np.stack([part[i][0].numpy() for i in range(len(part))]) for part in parts.values()])
    y = np.concatenate([part.labels for part in parts.values()])
    words = np.concatenate([np.full(len(part), name) for name, part in parts.items()])
    return np.round(x[:, 0] * 255).astype(np.uint8), y, words
