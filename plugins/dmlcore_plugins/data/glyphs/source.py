"""The source `glyphs`: drawings of characters by freely licensed fonts, a class per character. Reading the file is in
`characters`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

import dmlcore
from dmlcore.data import DataSource, PixelStore, ShiftAugmentation, Table
from dmlcore.errors import DataError
from dmlcore_plugins.data.glyphs import characters

_SPLIT_NOTES = {
    "unseen_characters": "the test classes are characters never trained on, of the scripts that were trained on",
    "unseen_scripts": "the test classes are of scripts never trained on",
}


@dataclass(frozen=True)
class GlyphOptions:
    """Options of the glyphs."""

    split: Literal["unseen_characters", "unseen_scripts"] = "unseen_characters"
    """What the test classes are: characters of the trained scripts, or whole scripts never trained on, which is harder."""
    augment: bool = True
    """Shift, turn, slant and scale training images a little."""


class EmbeddedGlyphs(DataSource):
    """Characters in many font designs, 32 x 32 grey. A class is a character."""

    name = "glyphs"
    Options = GlyphOptions
    is_default = True

    def load(self) -> Table:
        """Read the packaged file.

        Raises:
            DataError: the installation lacks the file.
        """
        try:
            loaded = characters.load()
        except FileNotFoundError as error:
            raise DataError(f"the glyphs are missing from this installation ({error}). Install dmlcore again") from error
        pixels = np.ascontiguousarray(loaded.images)[:, None]  # [N, 1, 32, 32]
        augmentation = ShiftAugmentation() if self.options.augment else None
        labels = np.asarray(loaded.labels, dtype=np.int64)
        class_names = [str(name) for name in loaded.class_names]
        scripts = list(loaded.class_scripts)
        return Table(
            "images",
            PixelStore(pixels),
            labels,
            class_names,
            pixels.shape[1:],
            augmentation=augmentation,
            split_note=_SPLIT_NOTES[self.options.split],
            class_groups=scripts,
        )

    def split(self, table: Table, seed: int) -> np.ndarray:
        """Unseen characters (drawn by the seed) or unseen scripts (always the same)."""
        by_seed = self.options.split == "unseen_characters"
        parts = characters.unseen_characters(seed) if by_seed else characters.unseen_scripts()
        part_of_class = np.full(len(table.class_names), "", dtype="<U10")
        for part, classes in parts.items():
            part_of_class[np.asarray(classes)] = part
        return part_of_class[table.labels]


@dmlcore.hookimpl
def dmlcore_datasets() -> list[type]:
    return [EmbeddedGlyphs]
