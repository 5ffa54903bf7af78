"""iNaturalist 2018: photographs of 8,142 species, with its JSON files, and the zero-shot lists of Smooth-AP."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import dmlcore
from dmlcore.data import LevelledSplitOptions, Listing, PublishedImages, dense_ids, first_half, official_note, read_rows
from dmlcore.errors import DataError

_LISTS = (("train", "Inaturalist_train_set1.txt"), ("test", "Inaturalist_test_set1.txt"))
_RANKS = ("genus", "family", "order", "class", "phylum", "kingdom", "supercategory")  # from fine to coarse


class INaturalist(PublishedImages):
    """iNaturalist 2018 (Van Horn et al., CVPR 2018): 461,939 labelled photographs of 8,142 species. With the lists of Smooth-AP
    (Brown et al., ECCV 2020) their split is taken, else the first half of the species trains. Levels are those of the file of
    categories: `supercategory`, and where it has them `genus`, `family`, `order`, `class`, `phylum`, `kingdom`.
    """

    name = "inaturalist"
    Options = LevelledSplitOptions
    title = "iNaturalist 2018"
    home = "https://github.com/visipedia/inat_comp/tree/master/2018"
    layout = (
        "DIR holds train2018.json, val2018.json and the folder train_val2018. The zero-shot lists of Smooth-AP,"
        f" {_LISTS[0][1]} and {_LISTS[1][1]}, lie there or in Inat_dataset_splits, and do without the JSON files"
    )
    marks = (("train2018.json",), (_LISTS[0][1],), (f"Inat_dataset_splits/{_LISTS[0][1]}",))
    published = (8142, 461939)

    @classmethod
    def claims(cls, path: Path) -> bool:
        """Folders with the JSON files or the lists."""
        return cls.root_of(path) is not None

    def read(self, root: Path) -> Listing:
        """Read the lists of Smooth-AP, where they are and the split is the zero-shot one; else both JSON files."""
        lists = next((place for place in (root, root / "Inat_dataset_splits") if (place / _LISTS[0][1]).is_file()), None)
        if lists is not None and self.options.split == "zero_shot":
            return _listed(lists, self._read_from(root))
        if not (root / "train2018.json").is_file():
            raise DataError(f"'{root}' lacks train2018.json, which has the official split. {self.layout}")
        return self._annotated(root)

    def _annotated(self, root: Path) -> Listing:
        files, ids, counts = list[str](), list[np.ndarray](), list[int]()
        categories: list[dict[str, Any]] = []
        for name in ("train2018.json", "val2018.json"):
            content = _json(root / name)
            try:
                category_of = {entry["image_id"]: entry["category_id"] for entry in content["annotations"]}
                files += [str(entry["file_name"]) for entry in content["images"]]
                ids.append(np.array([int(category_of[entry["id"]]) for entry in content["images"]], dtype=np.int64))
                counts.append(len(content["images"]))
                categories = categories or sorted(content["categories"], key=lambda entry: int(entry["id"]))
                names = [str(entry["name"]) for entry in categories]
                known = np.array([int(entry["id"]) for entry in categories], dtype=np.int64)
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
                reason = f"no {error}" if isinstance(error, KeyError) else str(error)
                raise DataError(f"'{root / name}' is no file of {self.title}: {reason}") from None
        labels = dense_ids(np.concatenate(ids), known, root / "train2018.json")
        split, note = first_half(labels, len(names))
        if self.options.split == "official":
            split, note = np.repeat(["train", "test"], counts), official_note(self.title)
        else:
            note += ". The lists of Smooth-AP, which the publications use, are not there"
        levels = {rank: [str(entry[rank]) for entry in categories] for rank in _RANKS if all(rank in e for e in categories)}
        return Listing(files, labels, _told_apart(names, known), split, note, levels, read_from=self._read_from(root))

    def _read_from(self, root: Path) -> list[Path]:
        lists = [place / name for place in (root, root / "Inat_dataset_splits") for _, name in _LISTS]
        return [*lists, root / "train2018.json", root / "val2018.json"]


def _told_apart(names: Sequence[str], ids: np.ndarray) -> list[str]:
    """Names of categories, with their numbers where two are called alike."""
    if len(set(names)) == len(names):
        return list(names)
    return [f"{number} {name}" for number, name in zip(ids, names, strict=True)]


def _listed(folder: Path, read_from: list[Path]) -> Listing:
    """The split of the lists: paths of pictures, whose last two folders are the group and the species."""
    files, owners, parts = list[str](), list[str](), list[str]()
    for part, name in _LISTS:
        for (file,) in read_rows(folder / name, 1):
            places = file.split("/")
            if len(places) < 3:
                raise DataError(
                    f"'{folder / name}' has '{file}', but each row must be a path such as train_val2018/Aves/7/1.jpg"
                )
            files.append(file)
            owners.append("/".join(places[-3:-1]))
            parts.append(part)
    present, labels = np.unique(owners, return_inverse=True)
    names = [str(owner) for owner in present]
    levels = {"supercategory": [name.partition("/")[0] for name in names]}
    note = "the zero-shot split of Smooth-AP: no test species is trained on"
    return Listing(files, labels.astype(np.int64), names, np.array(parts), note, levels, read_from=read_from)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"there is no file '{path}'") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"'{path}' is damaged: {error}") from None
    if not isinstance(content, dict):
        raise DataError(f"'{path}' holds {type(content).__name__}, but must hold images, annotations and categories")
    return content


@dmlcore.hookimpl
def dmlcore_datasets() -> list[type]:
    return [INaturalist]
