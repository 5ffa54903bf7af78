"""Omniglot: characters of fifty alphabets, a PNG per drawing, in the layout torchvision keeps them in."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import dmlcore
from dmlcore.config import check_range
from dmlcore.data import UNREADABLE, DataSource, PixelStore, ShiftAugmentation, Table, decode
from dmlcore.errors import DataError
from dmlcore.files import expanded

_PARTS = ("images_background", "images_evaluation")
_TURNS = ("", "/90", "/180", "/270")  # degrees, behind the names of classes


@dataclass(frozen=True)
class OmniglotOptions:
    """Options of Omniglot."""

    path: str = ""
    """Folder with `images_background` and `images_evaluation`, unpacked, or one above `omniglot-py`."""
    side: int = 28
    """Height and width of the images, pixels."""
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

    def load(self) -> Table:
        """Read all drawings into memory. Nothing is downloaded.

        Raises:
            DataError: missing folders, a file that is no image.
        """
        if not self.options.path:
            raise DataError(
                "the data 'omniglot' needs a path: --omniglot.path DIR, the folder above omniglot-py of torchvision"
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
        ink = 255 - _decoded(paths, self.options.side)  # [N, 1, side, side]
        ids = np.array(labels, dtype=np.int64)
        samples = [os.path.basename(path) for path in paths]
        if self.options.rotations:
            ink = np.concatenate([np.rot90(ink, turns, axes=(2, 3)) for turns in range(4)])
            ids = np.concatenate([ids + turns * len(names) for turns in range(4)])
            names, samples = [name + turn for turn in _TURNS for name in names], samples * 4
        augmentation = ShiftAugmentation() if self.options.augment else None
        return Table(
            "images",
            PixelStore(np.ascontiguousarray(ink)),
            ids,
            names,
            ink.shape[1:],
            augmentation=augmentation,
            sample_names=samples,
            class_groups=[name.partition("/")[0] for name in names],
        )


def _root(path: Path) -> Path:
    for folder in (path, path / "omniglot-py"):
        missing = [part for part in _PARTS if not (folder / part).is_dir()]
        if not missing:
            return folder
        if len(missing) < len(_PARTS):
            raise DataError(f"'{folder}' lacks the folder '{missing[0]}'")
    raise DataError(f"'{path}' holds no Omniglot: neither {_PARTS[0]} and {_PARTS[1]} nor omniglot-py is there")


def _decoded(paths: list[str], side: int) -> np.ndarray:
    """Pixels uint8 `[N, 1, side, side]`, ink dark."""
    pixels = np.empty((len(paths), 1, side, side), dtype=np.uint8)

    def fill(row: int) -> str:
        try:
            pixels[row] = decode(paths[row], (side, side), 1)
        except UNREADABLE as error:
            return f"'{paths[row]}' cannot be read: {error}"
        return ""

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:  # Pillow decodes without the interpreter lock
        failed = [reason for reason in pool.map(fill, range(len(paths)), chunksize=64) if reason]
    if failed:
        raise DataError(f"{failed[0]}{f' ({len(failed)} such files)' if len(failed) > 1 else ''}. Unpack the archive again")
    return pixels


@dmlcore.hookimpl
def dmlcore_datasets() -> list[type]:
    return [Omniglot]
