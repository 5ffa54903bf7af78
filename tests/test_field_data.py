"""Published data sets read from their authors' own files, in small copies of their layouts."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path
from typing import Any

import field_files as files
import numpy as np
import pytest
from data_files import SHARED

from dmlcore import plugins
from dmlcore.cli import main
from dmlcore.data import open_data, read_matlab
from dmlcore.data.opening import find_source, load_table
from dmlcore.errors import ConfigError, DataError
from dmlcore.protocols.shift.pickles import read_pickle
from dmlcore.protocols.shift.published import import_published
from dmlcore.testing import run_checks_of


def load(name: str, root: Path, **options: Any):
    return load_table(name, options={"path": str(root), **options})[1]


def parts_of_classes(table) -> dict[str, set[str]]:
    return {str(part): {table.class_names[label] for label in table.labels[table.split == part]} for part in set(table.split)}


@pytest.mark.parametrize("form", files.LAYOUTS)
def test_a_folder_is_recognised_and_keeps_the_contract(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, make = files.LAYOUTS[form]
    root = make(tmp_path / "data")
    assert find_source(str(root))[0].name == name
    report = run_checks_of(plugins.find("data", name).component, path=str(root))
    report.raise_failures()
    splits = open_data(str(root))
    by_name = open_data(name, options={"path": str(root)})
    assert splits.test.class_names == by_name.test.class_names and splits.train.rows.tolist() == by_name.train.rows.tolist()
    assert not {*splits.train.class_names, *splits.validation.class_names} & set(splits.test.class_names)
    assert splits.paths and all(Path(path).is_file() for path in splits.paths)
    assert main(["data", "show", str(root)]) == 0
    assert re.search(rf"source:? +{name}\n", capsys.readouterr().out)
    with pytest.raises(DataError, match="needs a path: .*published at https?://"):
        load_table(name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no .*published at https?://"):
        load(name, tmp_path / "empty")
    with pytest.raises(DataError, match="there is no folder"):
        load(name, tmp_path / "nowhere")


@pytest.mark.parametrize(("form", "place"), [("cub", "images"), ("in_shop", "Img/img"), ("tiny_imagenet", "train")])
def test_a_folder_within_a_data_set_is_named(form: str, place: str, tmp_path: Path) -> None:
    name, make = files.LAYOUTS[form]
    root = make(tmp_path / "data")
    source, table = load_table(str(root / place), options={"memory_mb": 0})
    assert source.name == "folder"
    assert [note for note in table.skipped if f"'{root}', which holds the lists" in note and f"--{name}.path" in note]
    assert not [note for note in load_table(str(root))[1].skipped if "which holds the lists" in note]
    with pytest.raises(DataError, match="is a file, but must be the folder of"):
        load(name, next(path for path in root.rglob("*.*") if path.is_file()))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_cub(end: str, tmp_path: Path) -> None:
    root = files.cub(tmp_path / "CUB_200_2011", end)
    table = load("cub", tmp_path)  # one folder above
    half = [f"{n:03}.Bird_{chr(64 + n)}" for n in range(1, 9)]
    assert table.class_names == half and len(table.labels) == 32
    assert parts_of_classes(table) == {"train": set(half[:4]), "test": set(half[4:])}
    assert table.sample_names[5] == "images/002.Bird_B/Bird_B_0001_1.jpg" and table.labels[5] == 1
    official = load("cub", root, split="official")
    assert parts_of_classes(official) == {"train": set(half), "test": set(half)}
    assert (official.split == "train").sum() == 16
    notes = open_data("cub", options={"path": str(root), "split": "official"}).notes
    assert any("the test classes are trained on" in note for note in notes)
    assert any("as published has 11,788 pictures of 200 classes" in note for note in notes)


def test_images_in_another_order_than_their_classes(tmp_path: Path) -> None:
    root = files.cub(tmp_path)
    straight = load("cub", root)
    for name in ("image_class_labels.txt", "classes.txt"):
        lines = (root / name).read_text().splitlines()
        files.write(root / name, lines[::-1])
    turned = load("cub", root)
    assert turned.class_names == straight.class_names and turned.labels.tolist() == straight.labels.tolist()


def test_both_forms_of_cars(tmp_path: Path) -> None:
    names = [name.replace("/", "-") for name in files.CAR_NAMES]
    joined = load("cars", files.cars_joined(tmp_path / "joined"))
    devkit = load("cars", files.cars_devkit(tmp_path / "devkit"))
    for table in (joined, devkit):
        assert table.class_names == names and np.bincount(table.labels).tolist() == [4] * 8
        assert parts_of_classes(table) == {"train": set(names[:4]), "test": set(names[4:])}
    assert joined.sample_names[0] == "car_ims/000001.jpg"
    assert devkit.sample_names[16] == "cars_test/00001.jpg" and devkit.labels[16] == 0
    for root in ("joined", "devkit"):
        official = load("cars", tmp_path / root, split="official")
        assert (official.split == "train").sum() == (official.split == "test").sum() == 16
    (tmp_path / "devkit" / "cars_test_annos_withlabels.mat").unlink()
    with pytest.raises(DataError, match="lacks cars_test_annos_withlabels.mat: without it half"):
        load("cars", tmp_path / "devkit")


def test_the_root_of_sop_is_never_read_as_its_kinds(tmp_path: Path) -> None:
    root = files.sop(tmp_path / "Stanford_Online_Products")
    table = load("sop", root, levels=("super_class",))
    assert len(table.class_names) == 16 and len(table.labels) == 48
    assert parts_of_classes(table) == {
        "train": {str(n) for n in range(1, 9)},
        "test": {str(n) for n in range(9, 17)},
    }
    kinds = dict(zip(table.class_names, table.levels["super_class"], strict=True))
    assert [kinds[str(n)] for n in range(1, 17)] == (["bicycle"] * 4 + ["cabinet"] * 4) * 2
    assert not load("sop", root).levels
    with pytest.raises(ConfigError, match="no level 'superclass', but super_class"):
        load("sop", root, levels=("superclass",))
    for list_name in ("Ebay_test.txt", "Ebay_train.txt"):
        (root / list_name).unlink()
        with pytest.raises(DataError, match=r"lacks Ebay_(test|train)\.txt"):
            open_data(str(root))
        with pytest.raises(DataError, match="a class is a product of the lists"):
            open_data(str(tmp_path))


def test_a_folder_of_one_folder_says_what_to_do(tmp_path: Path) -> None:
    for n in range(4):
        files.picture(tmp_path / "outer" / "jpg" / f"image_{n:05}.jpg", n)
    with pytest.raises(DataError, match="holds one class, 'jpg'.*Put the images of each class into a folder of its own"):
        open_data(str(tmp_path / "outer"))
    files.cub(tmp_path / "above" / "birds")
    with pytest.raises(DataError, match=f"Did you mean '{tmp_path}/above/birds'"):
        open_data(str(tmp_path / "above"))


def test_in_shop_has_queries_and_a_gallery(tmp_path: Path) -> None:
    for unpacked in ("Img", ""):
        root = files.in_shop(tmp_path / f"shop {unpacked}", unpacked)
        splits = open_data(str(root), options={"levels": ("category",)})
        assert (len(splits.test), len(splits.test.queries), len(splits.test.references)) == (16, 8, 8)
        assert set(splits.test.at_level("category").class_names) == {"WOMEN/Dresses", "MEN/Jackets_Vests"}
    listed = root / "list_eval_partition.txt"
    whole = listed.read_text()
    listed.write_text("\n".join(whole.splitlines()[:-3]))
    with pytest.raises(DataError, match="says that it has 40 rows, but has 37"):
        open_data(str(root))
    listed.write_text(whole.replace("image_name item_id", "image_pair_name_1 image_pair_name_2 item_id"))
    with pytest.raises(DataError, match="is no list of In-Shop"):
        open_data(str(root))


def test_flowers(tmp_path: Path) -> None:
    root = files.flowers(tmp_path / "flowers-102")
    table = load("flowers", tmp_path)
    assert table.class_names == [f"{n:03}" for n in range(1, 10)] and table.labels[:10].tolist() == [*range(9), 0]
    assert parts_of_classes(table) == {"train": set(table.class_names[:4]), "test": set(table.class_names[4:])}
    official = load("flowers", root, split="official")
    assert official.split is not None
    assert official.split.tolist() == ["train"] * 18 + ["validation"] * 18 + ["test"] * 9
    files.savemat(root / "setid.mat", {"trnid": [[1]], "valid": [[2]], "tstid": [[46]]})
    with pytest.raises(DataError, match="tstid in .* must be numbers of images from 1 to 45"):
        load("flowers", root, split="official")


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_pets(end: str, tmp_path: Path) -> None:
    root = files.pets(tmp_path, end)
    table = load("pets", root, levels=("species",))
    assert table.class_names == files.BREEDS and len(table.labels) == 28
    assert table.levels == {"species": ["cat", "dog", "dog", "cat", "dog", "cat", "dog"]}
    assert parts_of_classes(table) == {"train": set(files.BREEDS[:4]), "test": set(files.BREEDS[4:])}
    official = load("pets", root, split="official")
    assert parts_of_classes(official) == {"train": set(files.BREEDS), "test": set(files.BREEDS)}
    listed = root / "annotations" / "list.txt"
    listed.write_text(listed.read_text().replace("samoyed_1 7 2", "samoyed_1 7 3"))
    with pytest.raises(DataError, match="has the species '3'"):
        load("pets", root)


def test_tiny_imagenet(tmp_path: Path) -> None:
    root = files.tiny_imagenet(tmp_path / "tiny-imagenet-200")
    table = load("tiny_imagenet", tmp_path)
    assert table.class_names[:2] == ["n01443537 animal 37", "n02124075 animal 75"] and len(table.labels) == 30
    assert table.sample_shape == (3, 64, 64) and np.bincount(table.labels).tolist() == [5] * 6
    assert parts_of_classes(table) == {"train": set(table.class_names[:3]), "test": set(table.class_names[3:])}
    official = load("tiny_imagenet", root, split="official")
    assert official.split is not None and official.split.tolist() == ["train"] * 18 + ["test"] * 12


def test_inaturalist(tmp_path: Path) -> None:
    root = files.inaturalist(tmp_path / "json")
    table = load("inaturalist", root, levels=("genus", "supercategory"))
    assert len(table.labels) == 32 and table.class_names[2] == "2 Morus" and table.class_names[5] == "5 Morus"
    for name, label in zip(table.sample_names, table.labels.tolist(), strict=True):
        assert name.split("/")[2] == str(label)
    assert table.levels["genus"] == [f"g{n // 2}" for n in range(8)]
    assert parts_of_classes(table) == {"train": set(table.class_names[:4]), "test": set(table.class_names[4:])}
    assert "which the publications use, are not there" in table.split_note
    official = load("inaturalist", root, split="official")
    assert official.split is not None and official.split.tolist() == ["train"] * 24 + ["test"] * 8
    (root / "val2018.json").write_text('{"images": [{"id": 1}], "annotations": []}')
    with pytest.raises(DataError, match="val2018.json' is no file of iNaturalist 2018: no 'file_name'"):
        load("inaturalist", root)
    (root / "val2018.json").write_text("[" * 9)
    with pytest.raises(DataError, match="is damaged"):
        load("inaturalist", root)


def test_inaturalist_with_the_lists_of_smooth_ap(tmp_path: Path) -> None:
    root = files.inaturalist(tmp_path, lists=True)
    table = load("inaturalist", root, levels=("supercategory",))
    assert len(table.labels) == 32 and table.class_names[:2] == ["Aves/0", "Aves/1"]
    species = ["Aves/0", "Aves/1", "Aves/2", "Aves/3", "Insecta/4", "Insecta/5", "Insecta/6", "Insecta/7"]
    assert parts_of_classes(table) == {"train": set(species[::2]), "test": set(species[1::2])}
    assert table.levels["supercategory"] == ["Aves"] * 4 + ["Insecta"] * 4
    for name in ("train2018.json", "val2018.json"):
        (root / name).unlink()
    assert find_source(str(root))[0].name == "inaturalist" and len(load("inaturalist", root).labels) == 32
    with pytest.raises(DataError, match="lacks train2018.json, which has the official split"):
        load("inaturalist", root, split="official")


def test_pictures_that_are_missing_or_damaged(tmp_path: Path) -> None:
    root = files.cub(tmp_path)
    (root / "images/001.Bird_A/Bird_A_0001_1.jpg").unlink()
    (root / "images/002.Bird_B/Bird_B_0002_2.jpg").write_bytes(b"no picture")
    table = load("cub", root)
    assert len(table.labels) == 30 and list(table.unreadable) == ["images/002.Bird_B/Bird_B_0002_2.jpg"]
    assert any("1 of 32 pictures that the lists name are missing" in note for note in table.skipped)
    for label in range(1, 6):
        shutil.rmtree(root / "images" / f"{label:03}.Bird_{chr(64 + label)}")
    with pytest.raises(DataError, match="20 of 32 pictures that the lists name are missing"):
        load("cub", root)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda root: (root / "classes.txt").unlink(), "there is no file '.*classes.txt'"),
        (lambda root: (root / "images.txt").write_text("1 a.jpg\n2"), "line 2 of .*images.txt' has 1 columns"),
        (lambda root: (root / "images.txt").write_bytes(b"1 \xff.jpg"), "cannot read .*images.txt'"),
        (lambda root: (root / "images.txt").write_text("\n\n"), "name no picture|empty"),
        (lambda root: (root / "image_class_labels.txt").write_text("1 1"), "says nothing of image 2"),
        (lambda root: files.write(root / "image_class_labels.txt", [f"{n} 99" for n in range(1, 33)]), "has the class 99"),
        (lambda root: files.write(root / "image_class_labels.txt", [f"{n} x" for n in range(1, 33)]), "is damaged"),
    ],
)
def test_damaged_lists_are_one_line(change: Any, said: str, tmp_path: Path) -> None:
    change(files.cub(tmp_path))
    with pytest.raises(DataError, match=said) as refused:
        load("cub", tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is damaged, or no MATLAB file"),
        (b"\x80\x04\x95 a pickle", "is damaged, or no MATLAB file"),
        (b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(600), "version 7.3"),
    ],
)
def test_damaged_annotations_are_one_line(content: bytes, said: str, tmp_path: Path) -> None:
    file = files.cars_joined(tmp_path) / "cars_annos.mat"
    whole = file.read_bytes()
    for damaged in (content, whole[: len(whole) // 2]):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=said if damaged is content else "is damaged|has no variable") as refused:
            load("cars", tmp_path)
        assert "\n" not in str(refused.value)
    files.structs(file, [{"relative_im_path": "a.jpg", "class": 1.5, "test": 0}], class_names=["a"])
    with pytest.raises(DataError, match="class in .* must be whole numbers"):
        load("cars", tmp_path)
    files.structs(file, [{"relative_im_path": 7, "class": 1, "test": 0}], class_names=["a"])
    with pytest.raises(DataError, match="relative_im_path in .* must be texts"):
        load("cars", tmp_path)
    files.structs(file, [{"path": "a.jpg", "class": 1, "test": 0}], class_names=["a"])
    with pytest.raises(DataError, match="have no field 'relative_im_path'"):
        load("cars", tmp_path)


def test_a_folder_of_the_same_name_is_named_in_the_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cars").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"is meant by \./cars"):
        open_data("cars")


def test_training_on_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, run = files.sop(tmp_path / "data"), tmp_path / "run"
    words = [
        "train",
        "--data",
        str(root),
        "--sop.levels",
        "super_class",
        "--plugins",
        "ms",
        "--steps",
        "2",
        "--image-size",
        "16",
    ]
    assert main([*words, "--compress", "0", "--embedding-dim", "4", "--out", str(run)]) == 0
    assert main(["eval", str(run), "--json"]) == 0
    assert "super_class" in capsys.readouterr().out


def test_very_many_pictures_begin_within_seconds(tmp_path: Path) -> None:
    picture = tmp_path / "picture.jpg"
    files.picture(picture, size=(64, 64))
    count = 50_000
    lines: dict[str, list[str]] = {part: ["image_id class_id super_class_id path"] for part in ("train", "test")}
    (tmp_path / "bicycle_final").mkdir()
    for n in range(1000):
        (tmp_path / "bicycle_final" / f"{n}_0.JPG").hardlink_to(picture)
    for n in range(count):
        lines["train" if n < count // 2 else "test"].append(f"{n + 1} {n // 5 + 1} 1 bicycle_final/{n % 1000}_0.JPG")
    for part, rows in lines.items():
        files.write(tmp_path / f"Ebay_{part}.txt", rows)
    begin = time.process_time()
    splits = open_data(str(tmp_path), image_size=64, options={"memory_mb": 64})
    assert len(splits.test) == count // 2
    assert time.process_time() - begin < 15  # 2 on a slow core; reading all of the pictures takes a minute
    assert splits.record is not None and len(splits.record()) > count


def test_the_published_splits_of_cars(tmp_path: Path) -> None:
    """The real file of ooDML on the names of all classes and of the pictures that it names, each of them one tiny picture."""
    file = SHARED / "oodml_cars196_splits.pkl"
    if not file.is_file():
        pytest.skip("the published file is not here")
    published = read_pickle(file)
    names = sorted({str(name) for name in (*published[1]["train"], *published[1]["test"])})
    assert len(names) == 196
    pictures: dict[str, set[str]] = {name: set() for name in names}
    for split in published.values():
        for episodes in split["test_episodes"].values():
            for episode in episodes.values() if isinstance(episodes, dict) else episodes:
                for name, drawn in episode.items():
                    pictures[str(name)] |= {str(picture) for picture in drawn}
    files.picture(tmp_path / "one.jpg", size=(8, 8))
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    numbered: dict[str, set[str]] = {"train": set(), "test": set()}
    for part in rows:
        (tmp_path / f"cars_{part}").mkdir()
    for label, name in enumerate(names):
        for picture in sorted(pictures[name]) or ["90000.jpg", "90001.jpg"]:  # one that is never tested has pictures, too
            part = "test" if picture in numbered["train"] else "train"  # numbers begin at 1 in both
            assert picture[0] == "9" or picture not in numbered[part]
            numbered[part].add(picture)
            (tmp_path / f"cars_{part}" / picture).unlink(missing_ok=True)
            (tmp_path / f"cars_{part}" / picture).hardlink_to(tmp_path / "one.jpg")
            rows[part].append({"class": np.uint8(label + 1), "fname": picture})
    files.structs(tmp_path / "devkit" / "cars_train_annos.mat", rows["train"])
    files.structs(tmp_path / "cars_test_annos_withlabels.mat", rows["test"])
    official = [name.replace("Ram C-V", "Ram C/V") for name in names]
    files.structs(tmp_path / "devkit" / "cars_meta.mat", [{"unused": 0}], class_names=official)
    splits, notes = import_published(file, str(tmp_path))
    assert [round(split.fid, 2) for split in splits.splits] == [8.59, 14.33, 32.18, 43.58, 63.29, 86.12, 101.17, 123.03]
    assert [len(split.train) for split in splits.splits] == [98, 98, 98, 98, 98, 86, 74, 62]
    assert [len(split.test) for split in splits.splits] == [98, 98, 98, 98, 98, 86, 74, 62]
    counts = [(len(split.train_part), len(split.validation_part)) for split in splits.splits]
    assert counts == [(73, 25)] * 5 + [(64, 22), (55, 19), (46, 16)]
    assert [split.swapped for split in splits.splits[:5]] == [0, 6, 16, 20, 30]
    table = load("cars", tmp_path)
    trained = {table.class_names[label] for label in table.labels[table.split == "train"]}
    assert trained == set(splits.find("1").train)  # the standard zero-shot split is the published default
    assert not any("lack" in note for note in notes), notes


def test_annotations_with_wrong_bytes_never_end_the_process(tmp_path: Path) -> None:
    file, draw = tmp_path / "a.mat", np.random.default_rng(0)
    records = np.array([("a.jpg", 1.5), ("b.jpg", 7)], dtype=[("fname", object), ("class", object)])
    files.savemat(file, {"annotations": records, "class_names": np.array(["x", "y"], dtype=object)})
    whole = np.frombuffer(file.read_bytes(), dtype=np.uint8)
    values = read_matlab(file, ["annotations", "class_names"])
    assert values["annotations"]["fname"] == ["a.jpg", "b.jpg"] and values["class_names"] == ["x", "y"]
    assert [value.tolist() for value in values["annotations"]["class"]] == [[1.5], [7]]
    refused = 0
    for _ in range(500):
        wrong = whole.copy()
        wrong[draw.integers(128, len(whole), 3)] = draw.integers(0, 256, 3)
        file.write_bytes(wrong[: draw.integers(100, len(whole) + 1)].tobytes())
        try:
            read_matlab(file, ["annotations", "class_names"])
        except DataError:
            refused += 1
    assert refused > 100
