"""The data sets: class-disjoint splits by seed, half of the classes to train, 15 % to validate, 35 % to test. Features
are brought to 256 principal components of the training classes, which keeps a run below ten seconds.
"""

from __future__ import annotations

import csv
import importlib
import io
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.ensembles.data import WIDTH, glyphs, halved, parts_by_class, principal_components

PHOTOGRAPH_SIDE = 32  # pixels


@dataclass(frozen=True)
class DataSet:
    """A data set of the comparison.

    Attributes:
        name: in the tables.
        kind: `features`, `images` or `texts`.
        file: in the folder of data sets; empty: the embedded glyphs.
        about: what it shows, for the report.
        most: samples kept of a class; 0: all.
        by_script: of the glyphs, whole scripts are unseen.
    """

    name: str
    kind: str
    file: str
    about: str
    most: int = 0
    by_script: bool = False


SETS = {
    data.name: data
    for data in (
        DataSet("intents", "features", "banking77_minilm.npz", "77 intents of customers, MiniLM sentence features", 60),
        DataSet("groceries", "features", "grocery_mobilenetv2.npz", "81 products, MobileNetV2 features of photographs", 60),
        DataSet("emoji", "features", "emoji_mobilenetv2.npz", "1,179 emoji of 5 to 7 designers, MobileNetV2 features"),
        DataSet("characters", "features", "glyphs_mobilenetv2.npz", "300 characters, MobileNetV2 features"),
        DataSet("definitions", "features", "glosses_minilm.npz", "41 subjects of dictionary definitions, MiniLM features"),
        DataSet("icons", "features", "icons_efficientnet.npz", "400 icons of 8 to 16 sets, EfficientNet-lite0 features"),
        DataSet("letters", "features", "letters.npz", "26 printed letters, a table of 16 measured numbers"),
        DataSet("emoji pictures", "images", "emoji_64.npz", "the emoji at 32 x 32 in colour"),
        DataSet("icon drawings", "images", "icons_32.npz", "the icons at 32 x 32"),
        DataSet("fonts", "images", "fonts_32.npz", "187 fonts, of which a sample is one character"),
        DataSet("glyphs", "images", "", "embedded characters, unseen characters"),
        DataSet("scripts", "images", "", "embedded characters, unseen scripts", by_script=True),
        DataSet("photographs", "images", "grocery_112.zip", "81 products, photographs at 32 x 32", 40),
        DataSet("texts", "texts", "glosses.csv", "the definitions as texts, by their trigrams"),
    )
}
"""`tools.comparison_sets` and `tools.feature_tables` make those that are not at hand elsewhere."""


def available(folder: Path | None) -> list[DataSet]:
    """The data sets whose files are there."""
    return [data for data in SETS.values() if not data.file or (folder and (folder / data.file).exists())]


def prepare(data: DataSet, seed: int, folder: Path | None, work: Path) -> Path:
    """Write the split of a seed, unless it is there, and return the file that `dmlcore train --data` reads.

    Args:
        data: the data set.
        seed: of the split.
        folder: where the files lie.
        work: where splits are kept.
    """
    ending = ".csv" if data.kind == "texts" else ".npz"
    path = work / "data" / f"{data.name.replace(' ', '-')}-{seed}{ending}"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.stem}.{os.getpid()}{ending}")
    source = Path(folder or "") / data.file
    if data.kind == "texts":
        _write_texts(source, unfinished, seed)
    else:
        x, y, split = glyphs(data.by_script, seed) if not data.file else _drawn(source, data, seed)
        np.savez(unfinished, x=x, y=y, split=split)
    unfinished.replace(path)
    return path


def _drawn(file: Path, data: DataSet, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Samples, labels, and the part of every sample, drawn by class."""
    if file.suffix == ".zip":
        x, y = _photographs(file)
    else:
        with np.load(file, allow_pickle=False) as arrays:
            x, y = arrays["x"], arrays["y"]
    if data.kind == "images" and x.shape[1] > PHOTOGRAPH_SIDE:
        x = halved(x)
    generator = np.random.default_rng(seed)
    if data.most:
        order = generator.permutation(len(y))
        rows = np.sort(np.concatenate([order[y[order] == label][: data.most] for label in np.unique(y)]))
        x, y = x[rows], y[rows]
    split = parts_by_class(y, generator)
    if data.kind == "features":
        x = x.astype(np.float32)
        x = principal_components(x, split) if x.shape[1] > WIDTH else x
    return x, y, split


def _photographs(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Photographs uint8 [N, side, side, 3] of the folders of a .zip, and their classes."""
    decode: Callable = importlib.import_module("PIL.Image").open
    with zipfile.ZipFile(file) as archive:
        names = sorted(name for name in archive.namelist() if name.lower().endswith(".jpg"))
        side = (PHOTOGRAPH_SIDE, PHOTOGRAPH_SIDE)
        x = [np.asarray(decode(io.BytesIO(archive.read(name))).convert("RGB").resize(side, 2)) for name in names]
    return np.stack(x), np.unique([Path(name).parent.name for name in names], return_inverse=True)[1]


def _write_texts(file: Path, out: Path, seed: int) -> None:
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    split = parts_by_class(np.array([row["label"] for row in rows]), np.random.default_rng(seed))
    with out.open("w", newline="") as opened:
        lines = ((row["text"], row["label"], part) for row, part in zip(rows, split.tolist(), strict=True))
        csv.writer(opened).writerows([("text", "label", "split"), *lines])
