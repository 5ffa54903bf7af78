"""Published data sets: folders in the authors' layouts, opened by their path alone, against the split of the field."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.fidelity.rows import Row
from dmlcore.data import open_data

sys.path.append(str(Path(__file__).parents[2] / "tests"))

import field_files as files

TITLES = {
    "cub": "CUB-200-2011",
    "cars, joined": "Cars-196, one folder of pictures",
    "cars, devkit": "Cars-196 with its devkit",
    "sop": "Stanford Online Products",
    "in_shop": "In-Shop",
    "flowers": "Flowers-102",
    "pets": "Oxford-IIIT pets",
    "inaturalist": "iNaturalist 2018",
    "tiny_imagenet": "Tiny ImageNet",
}


def rows() -> list[Row]:
    """A row per layout."""
    return [*(_row(title, *files.LAYOUTS[form]) for form, title in TITLES.items()), _omniglot()]


def _row(name: str, source: str, make) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        splits = open_data(str(make(Path(folder) / "data")))
        trained = {*splits.train.class_names, *splits.validation.class_names}
        tested = set(splits.test.class_names)
        is_disjoint = not trained & tested
        names = splits.train.table_names
        is_half = tested == set(names[-len(tested) :]) and abs(2 * len(tested) - len(names)) <= 1
        has_gallery = len(np.intersect1d(splits.test.queries, splits.test.references)) == 0
    holds = is_disjoint and (has_gallery if source == "in_shop" else is_half)
    what = "queries and gallery apart" if source == "in_shop" else f"{len(trained)} classes train, the next {len(tested)} test"
    return Row(name, "the authors' files", f"`--data DIR`, `--data {source}`", "agrees" if holds else "differs", what)


def _omniglot() -> Row:
    with tempfile.TemporaryDirectory() as folder:
        for part, alphabet in (("images_background", "Greek"), ("images_evaluation", "Tengwar")):
            for character in range(4):
                for drawing in range(3):
                    place = Path(folder) / part / alphabet / f"character{character + 1:02}"
                    files.picture(place / f"{drawing}.png", 10 * character + drawing, (105, 105))
        splits = open_data(folder)
        trained = {*splits.train.class_names, *splits.validation.class_names}
        holds = all(name.startswith("Greek/") for name in trained) and len(trained) == 4
        holds = holds and all(name.startswith("Tengwar/") for name in splits.test.class_names)
    what = "background alphabets train, evaluation alphabets test"
    return Row("Omniglot", "the authors' files", "`--data DIR`, `--data omniglot`", "agrees" if holds else "differs", what)
