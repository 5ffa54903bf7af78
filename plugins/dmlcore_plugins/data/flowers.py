"""Flowers-102: photographs of 102 kinds of flowers, with the lists of its authors."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import dmlcore
from dmlcore.data import Listing, PublishedImages, SplitOptions, first_half, matlab_numbers, official_note, read_matlab
from dmlcore.errors import DataError

_SETS = (("trnid", "train"), ("valid", "validation"), ("tstid", "test"))


class Flowers(PublishedImages):
    """Flowers-102 (Nilsback and Zisserman, 2008): 8,189 photographs of 102 kinds. The first 51 classes train. Classes go by
    their numbers, as the authors' files do not name them.
    """

    name = "flowers"
    Options = SplitOptions
    title = "Flowers-102"
    home = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102"
    layout = "DIR holds imagelabels.mat, setid.mat and the folder jpg"
    marks = (("imagelabels.mat",),)
    folders = ("flowers-102",)
    published = (102, 8189)

    @classmethod
    def claims(cls, path: Path) -> bool:
        """Folders with the labels."""
        return cls.root_of(path) is not None

    def read(self, root: Path) -> Listing:
        """Read the labels of image_00001.jpg and so on; classes and images count from 1."""
        path = root / "imagelabels.mat"
        ids = matlab_numbers(read_matlab(path, ["labels"])["labels"], f"labels in '{path}'")
        present, labels = np.unique(ids, return_inverse=True)
        split, note = first_half(labels, len(present))
        if self.options.split == "official":
            split, note = _official(root / "setid.mat", len(ids)), official_note(self.title)
        files = [f"jpg/image_{number:05}.jpg" for number in range(1, len(ids) + 1)]
        names = [f"{number:03}" for number in present]
        return Listing(files, labels.astype(np.int64), names, split, note, read_from=[path, root / "setid.mat"])


def _official(path: Path, count: int) -> np.ndarray:
    split = np.full(count, "", dtype="<U10")
    sets = read_matlab(path, [name for name, _ in _SETS])
    for name, part in _SETS:
        numbers = matlab_numbers(sets[name], f"{name} in '{path}'")
        if len(numbers) and not 1 <= numbers.min() <= numbers.max() <= count:
            raise DataError(f"{name} in '{path}' must be numbers of images from 1 to {count:,}")
        split[numbers - 1] = part
    return split


@dmlcore.hookimpl
def dmlcore_datasets() -> list[type]:
    return [Flowers]
