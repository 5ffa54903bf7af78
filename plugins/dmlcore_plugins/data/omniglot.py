"""Omniglot: characters of fifty alphabets, a PNG per drawing, in the layout torchvision keeps them in."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

import dmlcore
from dmlcore.config import check_range
from dmlcore.data import DataSource, PathImages, PixelStore, ShiftAugmentation, Table, decode_images, report_unreadable
from dmlcore.errors import DataError
from dmlcore.files import expanded

_PUBLISHED = "Omniglot is published at https://github.com/brendenlake/omniglot"
_PARTS = ("images_background", "images_evaluation")
_TURNS = ("", "/90", "/180", "/270")  # degrees, behind the names of classes


@dataclass(frozen=True)
class OmniglotOptions:
    """Options of Omniglot."""

    path: str = ""
    """Folder with `images_background` and `images_evaluation`, unpacked, or one above `omniglot-py`."""
    side: int = 28
    """Height and width of the images, pixels."""
    split: Literal["official", "random"] = "official"
    """Classes of the background folder train and those of the evaluation folder are tested, or all are divided at random."""
    rotations: bool = False
    """A character turned by 90, 180 and 270 degrees is a class of its own: 6,492 classes instead of 1,623."""
    augment: bool = False
    """Shift, turn, slant and scale training images a little."""

    def __post_init__(self) -> None:
        check_range("side", self.side, least=8, most=105)


class Omniglot(DataSource):
    """Drawings of characters, grey, ink white on black. A class is `alphabet/character`, a group an alphabet."""

    name = "omniglot"
    Options = OmniglotOptions

    @classmethod
    def claims(cls, path: Path) -> bool:
        """Folders with both parts, or one above."""
        return any(all((folder / part).is_dir() for part in _PARTS) for folder in (path, path / "omniglot-py"))

    def load(self) -> Table:
        """Read all drawings into memory. Nothing is downloaded.

        Raises:
            DataError: missing folders, or more than half of the drawings cannot be read.
        """
        if not self.options.path:
            raise DataError(
                "the data 'omniglot' needs a path: --omniglot.path DIR, the folder with images_background and"
                f" images_evaluation, unpacked, or the one above omniglot-py of torchvision. {_PUBLISHED}"
            )
        root = _root(expanded(self.options.path))
        paths: list[str] = []
        names: list[str] = []
        labels: list[int] = []
        for character in sorted(c for part in _PARTS for c in (root / part).glob("*/*") if c.is_dir()):
            drawings = sorted(str(path) for path in character.glob("*.png"))
            if drawings:
                labels += [len(names)] * len(drawings)
                names.append(f"{character.parent.name}/{character.name}")
                paths += drawings
        if not paths:
            raise DataError(
                f"'{root}' holds no drawing such as images_background/ALPHABET/CHARACTER/*.png. Unpack the archives"
            )
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(f"the character '{twice}' is in both folders of '{root}'")
        images = PathImages(paths, str(root))
        pixels, failed = decode_images(images, (self.options.side, self.options.side), 1)
        notes = report_unreadable(images, failed, str(root))
        whole = np.array([row for row in range(len(paths)) if row not in failed])
        ink = 255 - pixels[whole]  # [N, 1, side, side]
        present, ids = np.unique(np.array(labels, dtype=np.int64)[whole], return_inverse=True)
        names = [names[label] for label in present]  # without characters none of whose drawings can be read
        samples = [os.path.basename(paths[row]) for row in whole]
        trains = os.path.join(str(root), _PARTS[0], "")
        split = np.array(["train" if paths[row].startswith(trains) else "test" for row in whole])
        if self.options.rotations:
            ink = np.concatenate([np.rot90(ink, turns, axes=(2, 3)) for turns in range(4)])
            ids = np.concatenate([ids + turns * len(names) for turns in range(4)])
            names, samples = [name + turn for turn in _TURNS for name in names], samples * 4
            split = np.tile(split, 4)
        augmentation = ShiftAugmentation() if self.options.augment else None
        return Table(
            "images",
            PixelStore(np.ascontiguousarray(ink)),
            ids,
            names,
            ink.shape[1:],
            split if self.options.split == "official" else None,
            skipped=notes,
            augmentation=augmentation,
            sample_names=samples,
            split_note="the split of Omniglot: the alphabets of the evaluation folder are not trained on",
            class_groups=[name.partition("/")[0] for name in names],
        )


def _root(path: Path) -> Path:
    for folder in (path, path / "omniglot-py"):
        missing = [part for part in _PARTS if not (folder / part).is_dir()]
        if not missing:
            return folder
        if len(missing) < len(_PARTS):
            raise DataError(f"'{folder}' lacks the folder '{missing[0]}'")
    raise DataError(f"'{path}' holds no Omniglot: neither {_PARTS[0]} and {_PARTS[1]} nor omniglot-py is there. {_PUBLISHED}")


@dmlcore.hookimpl
def dmlcore_datasets() -> list[type]:
    return [Omniglot]
