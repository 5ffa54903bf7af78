"""Cars-196: photographs of 196 models of cars, as its authors publish them in two forms."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import dmlcore
from dmlcore.data import (
    Listing,
    PublishedImages,
    SplitOptions,
    dense_ids,
    first_half,
    matlab_field,
    matlab_numbers,
    matlab_texts,
    official_note,
    read_matlab,
)
from dmlcore.errors import DataError

_LABELLED = "cars_test_annos_withlabels.mat"
_LISTS = ("cars_meta.mat", "cars_train_annos.mat", _LABELLED)


class Cars(PublishedImages):
    """Cars-196 (Krause et al., 2013): 16,185 photographs of 196 models. The first 98 classes train. A slash in a name
    of a class becomes a hyphen.
    """

    name = "cars"
    Options = SplitOptions
    title = "Cars-196"
    home = "https://ai.stanford.edu/~jkrause/cars/car_dataset.html"
    layout = (
        "DIR holds cars_annos.mat and the folder car_ims; or the folders cars_train and cars_test, the folder devkit with"
        f" cars_meta.mat and cars_train_annos.mat, and {_LABELLED}"
    )
    marks = (("cars_annos.mat",), ("devkit/cars_meta.mat",), ("cars_meta.mat",))
    folders = ("stanford_cars",)
    published = (196, 16185)

    @classmethod
    def claims(cls, path: Path) -> bool:
        """Folders with one of the two forms of annotations."""
        return cls.root_of(path) is not None

    def read(self, root: Path) -> Listing:
        """Read the annotations; classes count from 1."""
        annotations = root / "cars_annos.mat"
        is_joined = annotations.is_file() and ((root / "car_ims").is_dir() or not (root / "cars_train").is_dir())
        files, ids, is_test, names = _joined(annotations) if is_joined else self._devkit(root)
        labels = dense_ids(ids, np.arange(1, len(names) + 1), root)
        split, note = first_half(labels, len(names))
        if self.options.split == "official":
            split, note = np.where(is_test, "test", "train"), official_note(self.title)
        lists = [folder / name for folder in (root, root / "devkit") for name in _LISTS]
        folders = [root / name for name in ("car_ims", "cars_train")]
        names = [name.replace("/", "-") for name in names]
        return Listing(files, labels, names, split, note, read_from=[annotations, *folders, *lists])

    def _devkit(self, root: Path) -> tuple[list[str], np.ndarray, np.ndarray, list[str]]:
        """Files, classes, whether they are of the test part, and names, from the authors' first form."""
        meta = _either(root, "cars_meta.mat")
        names = matlab_texts(read_matlab(meta, ["class_names"])["class_names"], f"the class names of '{meta}'")
        files, ids, counts = list[str](), [], []
        for folder, file in (("cars_train", "cars_train_annos.mat"), ("cars_test", _LABELLED)):
            path = _either(root, file)
            if not path.is_file() and file == _LABELLED:
                raise DataError(
                    f"'{root}' lacks {_LABELLED}: without it half of {self.title} has no classes. It is published beside the"
                    f" devkit, at {self.home}"
                )
            records = read_matlab(path, ["annotations"])["annotations"]
            pictures = matlab_texts(matlab_field(records, "fname", path), f"fname in '{path}'")
            files += [f"{folder}/{name}" for name in pictures]
            ids.append(matlab_numbers(matlab_field(records, "class", path), f"class in '{path}'"))
            counts.append(len(pictures))
        return files, np.concatenate(ids), np.repeat([False, True], counts), names


def _joined(path: Path) -> tuple[list[str], np.ndarray, np.ndarray, list[str]]:
    """The same from the form where both parts are one folder."""
    variables = read_matlab(path, ["annotations", "class_names"])
    records = variables["annotations"]
    return (
        matlab_texts(matlab_field(records, "relative_im_path", path), f"relative_im_path in '{path}'"),
        matlab_numbers(matlab_field(records, "class", path), f"class in '{path}'"),
        matlab_numbers(matlab_field(records, "test", path), f"test in '{path}'") > 0,
        matlab_texts(variables["class_names"], f"the class names of '{path}'"),
    )


def _either(root: Path, name: str) -> Path:
    """A file of the devkit, in its folder or beside it."""
    inside = root / "devkit" / name
    return inside if inside.is_file() else root / name


@dmlcore.hookimpl
def dmlcore_datasets() -> list[type]:
    return [Cars]
