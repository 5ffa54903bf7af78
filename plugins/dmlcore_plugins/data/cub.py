"""CUB-200-2011: photographs of 200 species of birds, with the lists of its authors."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import dmlcore
from dmlcore.data import Listing, PublishedImages, SplitOptions, dense_ids, first_half, id_numbers, official_note, read_rows
from dmlcore.errors import DataError


class Cub(PublishedImages):
    """CUB-200-2011 (Wah et al., 2011): 11,788 photographs of 200 birds. The first 100 classes train."""

    name = "cub"
    Options = SplitOptions
    title = "CUB-200-2011"
    home = "https://www.vision.caltech.edu/datasets/cub_200_2011"
    layout = (
        "DIR is the folder CUB_200_2011 of its archive, with images.txt, image_class_labels.txt, classes.txt,"
        " train_test_split.txt and the folder images"
    )
    marks = (("images.txt", "image_class_labels.txt"),)
    folders = ("CUB_200_2011",)
    published = (200, 11788)

    @classmethod
    def claims(cls, path: Path) -> bool:
        """Folders with the lists, or one folder above."""
        return cls.root_of(path) is not None

    def read(self, root: Path) -> Listing:
        """Read images.txt and the lists that go with it; ids count from 1."""
        classes = read_rows(root / "classes.txt", 2)
        ids = id_numbers([row[0] for row in classes], root / "classes.txt")
        order = np.argsort(ids, kind="stable")
        files = {row[0]: row[1] for row in read_rows(root / "images.txt", 2)}
        labels = dense_ids(
            id_numbers(_by_image(root / "image_class_labels.txt", files), root / "image_class_labels.txt"),
            ids[order],
            root / "image_class_labels.txt",
        )
        names = [classes[place][1] for place in order]
        split, note = first_half(labels, len(names))
        if self.options.split == "official":
            words = _by_image(root / "train_test_split.txt", files)
            split, note = np.where(np.array(words) == "1", "train", "test"), official_note(self.title)
        lists = [root / name for name in ("classes.txt", "images.txt", "image_class_labels.txt", "train_test_split.txt")]
        return Listing([f"images/{file}" for file in files.values()], labels, names, split, note, read_from=lists)


def _by_image(path: Path, files: dict[str, str]) -> list[str]:
    """What a list says of each image, in the order of the images."""
    values = {row[0]: row[1] for row in read_rows(path, 2)}
    for image in files:
        if image not in values:
            raise DataError(f"'{path}' says nothing of image {image}: is the file cut off?")
    return [values[image] for image in files]


@dmlcore.hookimpl
def dmlcore_datasets() -> list[type]:
    return [Cub]
