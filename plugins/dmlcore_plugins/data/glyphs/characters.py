"""The characters of `glyphs`, of twelve scripts, drawn by freely licensed fonts: loading the file, and its splits.

`glyphs.npz` beside this file is what `tools/glyphs/build.py` makes from the fonts in `fonts.csv`. A class is a character, a
sample is one font's drawing of it. No torch here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np

SHA256 = "93b66b6ef5f728ef1009cc7acee77ee75ec9e3d3f47be40763fd3c1097f4f2b0"
"""The digest of `glyphs.npz`."""

UNSEEN_SCRIPTS = ("Greek", "Hebrew", "Ethiopic", "Hangul", "Kanji")
"""The test scripts of `unseen_scripts`."""


@dataclass(frozen=True)
class Glyphs:
    """The whole data set in memory. The arrays are shared by all callers and read-only: index or copy them.

    Args:
        images: `[N, 32, 32]` uint8, 0 (paper) to 255 (ink) in 16 levels.
        labels: `[N]` int64, 0..C-1.
        fonts: `[N]` int64, index into `font_names`.
        class_names: C characters.
        class_scripts: the script of each class.
        script_names: the scripts, in the order of the classes.
        font_names: the fonts, in the order of `fonts.csv`.
    """

    images: np.ndarray
    labels: np.ndarray
    fonts: np.ndarray
    class_names: list[str]
    class_scripts: list[str]
    script_names: list[str]
    font_names: list[str]


@cache
def load() -> Glyphs:
    """Reads the embedded file. The second call returns the same object."""
    path = resources.files("dmlcore_plugins.data.glyphs").joinpath("glyphs.npz")
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        packed = arrays["images"]  # [N, 512], two pixels a byte, the left one in the high half
        levels = np.stack([packed >> 4, packed & 15], axis=-1)  # [N, 512, 2]
        images = levels.reshape(len(packed), 32, 32) * np.uint8(17)  # [N, 32, 32]
        labels, fonts = arrays["labels"].astype(np.int64), arrays["fonts"].astype(np.int64)
        script_names = arrays["script_names"].tolist()
        class_scripts = [script_names[script] for script in arrays["class_scripts"]]
        names = arrays["class_names"].tolist(), class_scripts, script_names, arrays["font_names"].tolist()
    for array in (images, labels, fonts):
        array.flags.writeable = False
    return Glyphs(images, labels, fonts, *names)


def unseen_characters(seed: int = 0) -> dict[str, np.ndarray]:
    """New characters of known scripts: 50 % of every script's classes to train, 15 % to validate, 35 % to test.

    Args:
        seed: of the random choice. 0 is the split that reported figures use.

    Returns:
        Sorted class ids, int64, under `train`, `validation` and `test`.
    """
    random = np.random.RandomState(seed)  # unlike default_rng, its numbers are the same in every numpy
    parts: dict[str, list[np.ndarray]] = {"train": [], "validation": [], "test": []}
    for classes in _classes_by_script().values():
        shuffled = random.permutation(classes)
        first, second = round(0.5 * len(classes)), round(0.65 * len(classes))
        for part, share in zip(parts.values(), np.split(shuffled, [first, second]), strict=True):
            part.append(share)
    return {name: np.sort(np.concatenate(part)) for name, part in parts.items()}


def unseen_scripts() -> dict[str, np.ndarray]:
    """New scripts: Greek, Hebrew, Ethiopic, Hangul and Kanji to test, harder than `unseen_characters`.

    A fixed fifth of the classes of every other script validates, the rest trains.

    Returns:
        Sorted class ids, int64, under `train`, `validation` and `test`.
    """
    random = np.random.RandomState(0)
    parts: dict[str, list[np.ndarray]] = {"train": [], "validation": [], "test": []}
    for script, classes in _classes_by_script().items():
        if script in UNSEEN_SCRIPTS:
            parts["test"].append(classes)
        else:
            held_out, trained = np.split(random.permutation(classes), [round(0.2 * len(classes))])
            parts["validation"].append(held_out)
            parts["train"].append(trained)
    return {name: np.sort(np.concatenate(part)) for name, part in parts.items()}


SPLITS: dict[str, Callable[[], dict[str, np.ndarray]]] = {
    "unseen_characters": unseen_characters,
    "unseen_scripts": unseen_scripts,
}
"""The documented class-disjoint splits by name."""


def _classes_by_script() -> dict[str, np.ndarray]:
    glyphs = load()
    scripts = np.array(glyphs.class_scripts)
    return {script: np.flatnonzero(scripts == script) for script in glyphs.script_names}
