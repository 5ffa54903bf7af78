"""In-Shop Clothes Retrieval of DeepFashion: photographs of clothes in a shop, with queries and a gallery."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import dmlcore
from dmlcore.data import LevelledFileOptions, Listing, PublishedImages, id_numbers, read_rows, split_words
from dmlcore.errors import DataError

_LIST = "list_eval_partition.txt"
_COLUMNS = ["image_name", "item_id", "evaluation_status"]


class InShop(PublishedImages):
    """In-Shop Clothes Retrieval (Liu et al., CVPR 2016): 52,712 photographs of 7,982 items. The split is the authors': 3,997
    items train, and queries of 3,985 others are ranked against a gallery. The level `category` is the kind of clothes.
    """

    name = "in_shop"
    Options = LevelledFileOptions
    title = "In-Shop Clothes Retrieval"
    home = "https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html"
    layout = f"DIR holds {_LIST}, or the folder Eval with it, and the folder img, or Img/img, with the unpacked pictures"
    marks = ((_LIST,), (f"Eval/{_LIST}",))
    folders = ("In-shop Clothes Retrieval Benchmark", "In-shop_Clothes_Retrieval_Benchmark")
    published = (7982, 52712)

    @classmethod
    def claims(cls, path: Path) -> bool:
        """Folders with the list."""
        return cls.root_of(path) is not None

    def read(self, root: Path) -> Listing:
        """Read the list: the number of pictures, a line of headings, then picture, item and part in padded columns."""
        path = root / _LIST if (root / _LIST).is_file() else root / "Eval" / _LIST
        head = [row[0].split() for row in read_rows(path, 1)[:2]]
        if len(head) < 2 or head[1] != _COLUMNS:  # other parts of DeepFashion have lists of this name
            raise DataError(
                f"the columns of '{path}' are not {' '.join(_COLUMNS)}, so it is no list of {self.title}. To read the folder as"
                f" classes, name its form: --data folder --folder.path DIR"
            )
        rows = read_rows(path, 3, skip=2)
        if id_numbers(head[0], path).tolist() != [len(rows)]:
            raise DataError(f"'{path}' says that it has {head[0][0]} rows, but has {len(rows):,}: is it cut off?")
        if not rows:
            raise DataError(f"'{path}' names no picture")
        items, first, labels = np.unique([row[1] for row in rows], return_index=True, return_inverse=True)
        above = next((f"{folder}/" for folder in ("Img",) if (root / folder / rows[0][0]).is_file()), "")
        return Listing(
            [above + row[0] for row in rows],
            labels.astype(np.int64),
            [str(item) for item in items],
            split_words([row[2] for row in rows], f"'{path}'"),
            f"the split of {self.title}: no item of the queries and the gallery is trained on",
            {"category": ["/".join(rows[row][0].split("/")[1:3]) for row in first]},  # img/WOMEN/Dresses/id_00000002/...
            read_from=[root / _LIST, root / "Eval" / _LIST, root / "Img"],
        )


@dmlcore.hookimpl
def dmlcore_datasets() -> list[type]:
    return [InShop]
