"""Small folders in the layouts of published data sets, with their quirks: padded columns, ids from 1, structs of MATLAB."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

CLASSES = 8
PICTURES = 4


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (40, 30)) -> None:
    """A colour JPEG of a few smooth blots, width and height of `size`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path, quality=90)


def write(path: Path, lines: Sequence[str], end: str = "\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((end.join(lines) + end).encode())


def structs(path: Path, rows: Sequence[dict[str, Any]], **variables: Any) -> None:
    """A MATLAB file with an array of structs [1, N] called `annotations`, and cell arrays [1, N] of texts."""
    records = np.empty((1, len(rows)), dtype=[(name, object) for name in rows[0]])
    for place, row in enumerate(rows):
        records[0, place] = tuple(row.values())
    cells = {}
    for name, texts in variables.items():
        cells[name] = np.empty((1, len(texts)), dtype=object)
        cells[name][0] = texts
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"annotations": records, **cells}, do_compression=True)


def cub(root: Path, end: str = "\n") -> Path:
    names = [f"{label + 1:03}.Bird_{chr(65 + label)}" for label in range(CLASSES)]
    images = [(label, f"{names[label]}/{names[label][4:]}_{n:04}_{n}.jpg") for label in range(CLASSES) for n in range(PICTURES)]
    for seed, (_, file) in enumerate(images):
        picture(root / "images" / file, seed)
    write(root / "classes.txt", [f"{label + 1} {name}" for label, name in enumerate(names)], end)
    write(root / "images.txt", [f"{n + 1} {file}" for n, (_, file) in enumerate(images)], end)
    write(root / "image_class_labels.txt", [f"{n + 1} {label + 1}" for n, (label, _) in enumerate(images)], end)
    write(root / "train_test_split.txt", [f"{n + 1} {int(n % PICTURES < 2)}" for n in range(len(images))], end)
    write(root / "README", ["The classes are birds."], end)
    return root


CAR_NAMES = ["AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012", *(f"Car {n} Coupe 2012" for n in range(3, 9))]
_BOX = {"bbox_x1": np.uint16(3), "bbox_y1": np.uint16(5), "bbox_x2": np.uint16(300), "bbox_y2": np.uint16(250)}


def cars_joined(root: Path) -> Path:
    """The form of one folder: car_ims and cars_annos.mat."""
    rows = []
    for n in range(CLASSES * PICTURES):
        file = f"car_ims/{n + 1:06}.jpg"
        picture(root / file, n)
        rows.append(
            {"relative_im_path": file, **_BOX, "class": np.uint8(n // PICTURES + 1), "test": np.uint8(n % PICTURES > 1)}
        )
    structs(root / "cars_annos.mat", rows, class_names=CAR_NAMES)
    return root


def cars_devkit(root: Path) -> Path:
    """The form of two folders and the devkit; names of files begin at 1 in both."""
    for part, end in (("train", ""), ("test", "_withlabels")):
        rows = []
        for n in range(CLASSES * PICTURES // 2):
            picture(root / f"cars_{part}" / f"{n + 1:05}.jpg", n + 100 * (part == "test"))
            rows.append({**_BOX, "class": np.uint8(n // 2 + 1), "fname": f"{n + 1:05}.jpg"})
        structs(root / ("" if end else "devkit") / f"cars_{part}_annos{end}.mat", rows)
        if end:
            for row in rows:
                del row["class"]
            structs(root / "devkit" / "cars_test_annos.mat", rows)
    structs(root / "devkit" / "cars_meta.mat", [{"unused": 1}], class_names=CAR_NAMES)
    return root


def sop(root: Path, end: str = "\r\n") -> Path:
    image = product = 0
    for part in ("train", "test"):
        lines = ["image_id class_id super_class_id path"]
        for kind, number in (("bicycle", 1), ("cabinet", 2)):
            for _ in range(4):
                product += 1
                for n in range(3):
                    image += 1
                    file = f"{kind}_final/1110851228{product:02}_{n}.JPG"
                    picture(root / file, image)
                    lines.append(f"{image} {product} {number} {file}")
        write(root / f"Ebay_{part}.txt", lines, end)
    return root


def in_shop(root: Path, unpacked: str = "Img") -> Path:
    rows = []
    for item in range(1, 11):
        kind = "WOMEN/Dresses" if item % 2 else "MEN/Jackets_Vests"
        for n in range(4):
            file = f"img/{kind}/id_{item:08}/0{n + 1}_1_front.jpg"
            picture(root / unpacked / file, 10 * item + n)
            part = "train" if item <= 6 else "query" if n < 2 else "gallery"
            rows.append(f"{file:<70}id_{item:08} {part}")
    place = root / "Eval" if unpacked else root
    write(place / "list_eval_partition.txt", [str(len(rows)), "image_name item_id evaluation_status", *rows])
    return root


def flowers(root: Path) -> Path:
    labels = np.tile(np.arange(1, 10), 5)  # in no order, as in the real file
    for n in range(len(labels)):
        picture(root / "jpg" / f"image_{n + 1:05}.jpg", n)
    savemat(root / "imagelabels.mat", {"labels": labels.astype(np.uint8)[None]})
    numbers = np.arange(1, len(labels) + 1, dtype=np.uint16)[None]
    sets = {"trnid": numbers[:, :18], "valid": numbers[:, 18:36], "tstid": numbers[:, 36:]}
    savemat(root / "setid.mat", sets, do_compression=True)
    return root


BREEDS = ["Abyssinian", "american_bulldog", "basset_hound", "Bengal", "chihuahua", "Egyptian_Mau", "samoyed"]


def pets(root: Path, end: str = "\n") -> Path:
    rows = []
    for label, breed in enumerate(BREEDS):
        for n in range(4):
            picture(root / "images" / f"{breed}_{n + 1}.jpg", 10 * label + n)
            rows.append((n, f"{breed}_{n + 1} {label + 1} {1 if breed[0].isupper() else 2} {label + 1}"))
    picture(root / "images" / "Bengal_999.jpg")  # in no list
    head = ["#Image CLASS-ID SPECIES BREED ID", "#ID: 1:37 Class ids", "#SPECIES: 1:Cat 2:Dog"]
    write(root / "annotations" / "list.txt", [*head, *(row for _, row in rows)], end)
    write(root / "annotations" / "trainval.txt", [row for n, row in rows if n < 2], end)
    write(root / "annotations" / "test.txt", [row for n, row in rows if n >= 2], end)
    return root


def tiny_imagenet(root: Path) -> Path:
    wnids = [f"n{number:08}" for number in (2124075, 4067472, 1443537, 9428293, 2231487, 3126707)]
    for label, wnid in enumerate(wnids):
        for n in range(3):
            picture(root / "train" / wnid / "images" / f"{wnid}_{n}.JPEG", 10 * label + n, (64, 64))
        write(root / "train" / wnid / f"{wnid}_boxes.txt", [f"{wnid}_0.JPEG\t0\t0\t62\t62"])
    rows = []
    for n in range(12):
        picture(root / "val" / "images" / f"val_{n}.JPEG", 100 + n, (64, 64))
        rows.append(f"val_{n}.JPEG\t{wnids[n % 6]}\t0\t32\t44\t62")
    picture(root / "test" / "images" / "test_0.JPEG", 200, (64, 64))
    write(root / "wnids.txt", wnids)
    write(root / "val" / "val_annotations.txt", rows)
    write(root / "words.txt", ["n00001740\tentity", *(f"{wnid}\tanimal {wnid[-2:]}, other name" for wnid in wnids)])
    return root


def inaturalist(root: Path, *, lists: bool = False) -> Path:
    """Eight species; two are called alike. Numbers of categories count from 0, those of validation begin behind training."""
    groups = ["Aves", "Insecta"]
    categories = [
        {"id": n, "name": "Morus" if n in (2, 5) else f"Species {n}", "supercategory": groups[n // 4], "genus": f"g{n // 2}"}
        for n in range(8)
    ]
    paths, number = [], 0
    for part, count in (("train", 3), ("val", 1)):
        images, annotations = [], []
        for category in categories:
            for _ in range(count):
                number += 1
                file = f"train_val2018/{category['supercategory']}/{category['id']}/{number:032x}.jpg"
                picture(root / file, number)
                paths.append((category["id"], file))
                images.append({"id": number, "file_name": file, "license": 3, "width": 40, "height": 30})
                annotations.append({"id": number, "image_id": number, "category_id": category["id"]})
        content = {"images": images, "annotations": annotations[::-1], "categories": categories}
        (root / f"{part}2018.json").write_text(json.dumps(content))
    if lists:
        for name, species in (("train", {0, 2, 4, 6}), ("test", {1, 3, 5, 7})):
            lines = [file for category, file in paths if category in species]
            write(root / "Inat_dataset_splits" / f"Inaturalist_{name}_set1.txt", lines)
    return root


LAYOUTS = {  # by form: the source that reads it, and what makes it
    "cub": ("cub", cub),
    "cars, joined": ("cars", cars_joined),
    "cars, devkit": ("cars", cars_devkit),
    "sop": ("sop", sop),
    "in_shop": ("in_shop", in_shop),
    "flowers": ("flowers", flowers),
    "pets": ("pets", pets),
    "tiny_imagenet": ("tiny_imagenet", tiny_imagenet),
    "inaturalist": ("inaturalist", inaturalist),
}
