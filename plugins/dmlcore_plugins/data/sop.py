"""Stanford Online Products: photographs of products on sale, with the lists of its authors."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import dmlcore
from dmlcore.data import LevelledFileOptions, Listing, PublishedImages, id_numbers, read_rows
from dmlcore.errors import DataError


class Sop(PublishedImages):
    """Stanford Online Products (Song et al., CVPR 2016): 120,053 photographs of 22,634 products. The split is the authors'. The
    level `super_class` is the kind of product.
    """

    name = "sop"
    Options = LevelledFileOptions
    title = "Stanford Online Products"
    home = "https://cvgl.stanford.edu/projects/lifted_struct"
    layout = (
        "DIR is the folder Stanford_Online_Products of its archive, with Ebay_train.txt, Ebay_test.txt and twelve folders such"
        " as bicycle_final. The twelve are kinds, not classes: a class is a product of the lists"
    )
    marks = (("Ebay_train.txt",), ("Ebay_test.txt",), ("bicycle_final", "cabinet_final"))
    folders = ("Stanford_Online_Products",)
    published = (22634, 120053)

    @classmethod
    def claims(cls, path: Path) -> bool:
        """Folders with the lists, or with the folders of kinds without them, which would be read as twelve classes."""
        return cls.root_of(path) is not None

    def read(self, root: Path) -> Listing:
        """Read both lists: image, class, kind and path, under a line of headings. Ids count from 1, over both lists."""
        files, ids, parts = list[str](), list[np.ndarray](), list[str]()
        kind_of: dict[int, str] = {}
        for part in ("train", "test"):
            path = root / f"Ebay_{part}.txt"
            if not path.is_file():
                raise DataError(f"'{root}' lacks {path.name}, so nobody can say which products are there. {self.layout}")
            rows = read_rows(path, 4, skip=1)
            own = id_numbers([row[1] for row in rows], path)
            both = next((product for product in own.tolist() if product in kind_of), None)
            if both is not None:
                raise DataError(f"product {both} is in both lists of '{root}', training and test")
            kind_of.update(zip(own.tolist(), (row[3].partition("/")[0].removesuffix("_final") for row in rows), strict=True))
            files += [row[3] for row in rows]
            ids.append(own)
            parts += [part] * len(rows)
        present, labels = np.unique(np.concatenate(ids), return_inverse=True)
        return Listing(
            files,
            labels.astype(np.int64),
            [str(product) for product in present],
            np.array(parts),
            f"the split of {self.title}: no test product is trained on",
            {"super_class": [kind_of[product] for product in present.tolist()]},
            read_from=[root / f"Ebay_{part}.txt" for part in ("train", "test")],
        )


@dmlcore.hookimpl
def dmlcore_datasets() -> list[type]:
    return [Sop]
