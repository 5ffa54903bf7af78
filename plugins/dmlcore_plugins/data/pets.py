"""Oxford-IIIT pets: photographs of 37 breeds of cats and dogs, with the lists of its authors."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import dmlcore
from dmlcore.data import LevelledSplitOptions, Listing, PublishedImages, first_half, id_numbers, official_note, read_rows
from dmlcore.errors import DataError

_SPECIES = {"1": "cat", "2": "dog"}


class Pets(PublishedImages):
    """Oxford-IIIT pets (Parkhi et al., CVPR 2012): 7,349 photographs of 37 breeds. The first 19 classes train. The level
    `species` is cat or dog.
    """

    name = "pets"
    Options = LevelledSplitOptions
    title = "Oxford-IIIT pets"
    home = "https://www.robots.ox.ac.uk/~vgg/data/pets"
    layout = "DIR holds the folder images, and the folder annotations with list.txt, trainval.txt and test.txt"
    marks = (("annotations/list.txt",),)
    folders = ("oxford-iiit-pet",)
    published = (37, 7349)

    @classmethod
    def claims(cls, path: Path) -> bool:
        """Folders with the list."""
        return cls.root_of(path) is not None

    def read(self, root: Path) -> Listing:
        """Read the list: picture without ending, class, species and breed, under lines that begin with #. Classes count from 1;
        the folder holds pictures that are not in the list."""
        path = root / "annotations" / "list.txt"
        rows = read_rows(path, 4)
        ids = id_numbers([row[1] for row in rows], path)
        present, first, labels = np.unique(ids, return_index=True, return_inverse=True)
        split, note = first_half(labels, len(present), more_to_train=True)
        if self.options.split == "official":
            split, note = _official(root, [row[0] for row in rows]), official_note(self.title)
        return Listing(
            [f"images/{row[0]}.jpg" for row in rows],
            labels.astype(np.int64),
            [rows[row][0].rpartition("_")[0] for row in first],
            split,
            note,
            {"species": [_species(rows[row][2], path) for row in first]},
            read_from=[root / "annotations" / name for name in ("list.txt", "trainval.txt", "test.txt")],
        )


def _species(word: str, path: Path) -> str:
    if word not in _SPECIES:
        raise DataError(f"'{path}' has the species '{word}', but there are 1 for cats and 2 for dogs")
    return _SPECIES[word]


def _official(root: Path, names: list[str]) -> np.ndarray:
    part_of = {}
    for part, file in (("train", "trainval.txt"), ("test", "test.txt")):
        part_of.update({row[0]: part for row in read_rows(root / "annotations" / file, 4)})
    return np.array([part_of.get(name, "") for name in names])


@dmlcore.hookimpl
def dmlcore_datasets() -> list[type]:
    return [Pets]
