"""Tiny ImageNet: 64 x 64 photographs of 200 classes, with the lists of its authors."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

import dmlcore
from dmlcore.data import Listing, PublishedImages, SplitOptions, dense_ids, first_half, official_note, read_rows


class TinyImageNet(PublishedImages):
    """Tiny ImageNet (CS231n, 2015): 110,000 photographs of 200 classes, training and validation together. The first 100 classes
    by their numbers in WordNet train. The pictures of the test folder have no labels and are not read.
    """

    name = "tiny_imagenet"
    Options = SplitOptions
    title = "Tiny ImageNet"
    home = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
    layout = "DIR is the folder tiny-imagenet-200 of its archive, with wnids.txt, words.txt, train and val"
    marks = (("wnids.txt", "val/val_annotations.txt"), ("wnids.txt", "train"))
    folders = ("tiny-imagenet-200",)
    published = (200, 110000)

    @classmethod
    def claims(cls, path: Path) -> bool:
        """Folders with the list of classes."""
        return cls.root_of(path) is not None

    def read(self, root: Path) -> Listing:
        """Read wnids.txt, look for the pictures of training, and read the list of those of validation. A class is called by its
        number in WordNet and its first word there."""
        wnids = sorted({row[0] for row in read_rows(root / "wnids.txt", 1)})
        words = {row[0]: row[1].partition(",")[0] for row in read_rows(root / "words.txt", 2, separator="\t")}
        files, owners = list[str](), list[str]()
        for wnid in wnids:
            for name in _names(root / "train" / wnid / "images"):
                files.append(f"train/{wnid}/images/{name}")
                owners.append(wnid)
        trained = len(files)
        path = root / "val" / "val_annotations.txt"
        for row in read_rows(path, 3, separator="\t"):
            files.append(f"val/images/{row[0]}")
            owners.append(row[1])
        labels = dense_ids(np.array(owners), np.array(wnids), path)
        split, note = first_half(labels, len(wnids))
        if self.options.split == "official":
            split, note = np.where(np.arange(len(files)) < trained, "train", "test"), official_note(self.title)
        read_from = [root / "wnids.txt", root / "words.txt", path, *(root / "train" / wnid / "images" for wnid in wnids)]
        names = [f"{wnid} {words.get(wnid, '')}".strip() for wnid in wnids]
        return Listing(files, labels, names, split, note, read_from=read_from)


def _names(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.upper().endswith(".JPEG")) if folder.is_dir() else []


@dmlcore.hookimpl
def dmlcore_datasets() -> list[type]:
    return [TinyImageNet]
