"""The index of files that lists name: published data sets and CSV files. What is read again, and which changes are seen."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import field_files as files
import numpy as np
import pytest

from dmlcore.data import image_tables, load_table, picture_index
from dmlcore.errors import ConfigError

STREAMED = {"memory_mb": 0}
OPENED: list[str] = []  # files that Python opened while somebody counts
COUNTING = [False]
TIMES = itertools.count()


def _listen(event: str, arguments: tuple[Any, ...]) -> None:
    if COUNTING is not None and COUNTING[0] and event == "open" and isinstance(arguments[0], str | os.PathLike):
        OPENED.append(os.fspath(arguments[0]))


sys.addaudithook(_listen)


def manifest(root: Path) -> Path:
    """A CSV file with parts, coarser labels and Windows line ends, and its pictures, one of which is damaged."""
    rows = ["path,label,kind,split"]
    for label in range(8):
        for n in range(4):
            file = f"pictures/{label}/{n}.jpg"
            files.picture(root / file, 10 * label + n)
            rows.append(f"{file},class {label},kind {label // 4},{'train' if label < 4 else 'test'}")
    broken = root / "pictures" / "0" / "0.jpg"
    broken.write_bytes(broken.read_bytes()[:100])
    files.write(root / "list.csv", rows, "\r\n")
    return root / "list.csv"


LAYOUTS = {**files.LAYOUTS, "csv": ("csv", manifest)}
LISTS = {  # by form: a list, and a folder of pictures
    "cub": ("train_test_split.txt", "images/001.Bird_A"),
    "cars, joined": ("cars_annos.mat", "car_ims"),
    "cars, devkit": ("cars_test_annos_withlabels.mat", "cars_test"),
    "sop": ("Ebay_test.txt", "cabinet_final"),
    "in_shop": ("Eval/list_eval_partition.txt", "Img/img/MEN/Jackets_Vests/id_00000002"),
    "flowers": ("setid.mat", "jpg"),
    "pets": ("annotations/test.txt", "images"),
    "tiny_imagenet": ("words.txt", "train/n02124075/images"),
    "inaturalist": ("val2018.json", "train_val2018/Aves/0"),
    "csv": ("list.csv", "pictures/3"),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DML_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(picture_index, "LEAST", 20)
    monkeypatch.setattr(image_tables, "LEAST", 20)
    return tmp_path / "cache"


def settle(root: Path) -> None:
    """Let what was written just now look as if that was long ago, each at a time of its own."""
    for folder, _, names in os.walk(root):
        for path in (folder, *(os.path.join(folder, name) for name in names)):
            if os.stat(path).st_mtime > 1.5 * 10**9:
                os.utime(path, (10**9, 10**9 + next(TIMES)))


def made(form: str, tmp_path: Path) -> tuple[str, Path, Path]:
    """A source's name, the root, and the path that is given."""
    name, make = LAYOUTS[form]
    path = make(tmp_path / "data")
    settle(tmp_path / "data")
    return name, tmp_path / "data", path


def load(name: str, path: Path, **options: Any):
    return load_table(name, options={"path": str(path), **STREAMED, **options})[1]


def facts(table) -> dict[str, Any]:
    return {
        "paths": list(table.paths),
        "names": list(table.sample_names),
        "labels": table.labels.tolist(),
        "classes": table.class_names,
        "split": None if table.split is None else table.split.tolist(),
        "note": table.split_note,
        "shape": table.sample_shape,
        "digests": table.content_digests().tolist(),
        "levels": table.levels,
        "unreadable": dict(table.unreadable),
        "notes": [note for note in table.skipped if "index in the cache" not in note],
        "first": table.samples.fetch(np.arange(3)).tolist(),
    }


@pytest.mark.parametrize("form", LAYOUTS)
def test_the_second_start_opens_no_list_and_no_pictures(form: str, tmp_path: Path, cache: Path) -> None:
    name, root, path = made(form, tmp_path)
    plain = facts(load(name, path, index="none"))
    assert not cache.exists()
    first = load(name, path)
    assert facts(first) == plain
    OPENED.clear()
    COUNTING[0] = True
    again = load(name, path)
    digests = again.content_digests()
    COUNTING[0] = False
    assert digests.tolist() == plain["digests"]
    assert {file for file in OPENED if str(root) in file} <= {plain["paths"][0]}  # whose shape is checked
    assert sum(str(cache) in file for file in OPENED) > 0  # the hook does count
    assert facts(again) == plain and any("index in the cache" in note for note in again.skipped)
    renewed = load(name, path, index="renew")
    assert facts(renewed) == plain and not any("index in the cache" in note for note in renewed.skipped)


@pytest.mark.parametrize("form", LAYOUTS)
def test_changes_are_seen(form: str, tmp_path: Path) -> None:
    name, root, path = made(form, tmp_path)
    is_known = lambda: any("index in the cache" in note for note in load(name, path).skipped)  # noqa: E731
    load(name, path)
    assert is_known()
    listed, folder = (root / place for place in LISTS[form])
    pictures = sorted(entry for entry in folder.iterdir() if entry.suffix.lower() in (".jpg", ".jpeg"))
    changes = {
        "a list": lambda: os.utime(listed),
        "a list of the same time": lambda: _lengthen(listed),
        "a picture that is new": lambda: files.picture(folder / "new.jpg"),
        "a picture that is gone": lambda: (folder / "new.jpg").unlink(),
        "a picture's content": lambda: files.picture(pictures[-1], 999),
    }
    for what, change in changes.items():
        change()
        settle(root)
        assert not is_known(), what
        assert is_known(), what
    assert facts(load(name, path)) == facts(load(name, path, index="none"))


def _lengthen(listed: Path) -> None:
    """Bytes behind the end of a list that readers leave out. Its time stays, but a MATLAB file cannot be lengthened."""
    time = os.stat(listed).st_mtime
    if listed.suffix in (".txt", ".csv", ".json"):
        listed.write_bytes(listed.read_bytes() + b"\n")
        os.utime(listed, (time, time))
    else:
        os.utime(listed)


def test_a_picture_that_is_mended_comes_back(tmp_path: Path) -> None:
    name, _, path = made("csv", tmp_path)
    assert len(load(name, path).labels) == 31 and len(load(name, path).unreadable) == 1
    files.picture(path.parent / "pictures" / "0" / "0.jpg", 3)
    assert len(load(name, path).labels) == 32


def test_what_decides_the_content_has_an_index_of_its_own(tmp_path: Path, cache: Path) -> None:
    name, _, path = made("cub", tmp_path)
    for split in ("zero_shot", "official", "zero_shot", "official"):
        assert ("classification split" in load(name, path, split=split).split_note) == (split == "official")
    assert len(list(cache.glob("pictures/*.index"))) == 2
    with pytest.raises(ConfigError, match="no level 'shape'"):
        load_table("sop", options={"path": str(files.sop(tmp_path / "sop")), "levels": ("shape",)})


def test_coarser_and_several_labels(tmp_path: Path) -> None:
    name, _, path = made("csv", tmp_path)
    for _ in range(2):
        assert set(load(name, path, levels=("kind",)).levels["kind"]) == {"kind 0", "kind 1"}
    text = path.read_text().replace("label,", "labels,", 1).replace("class 1,", "class 1;class 2,")
    path.write_bytes(text.encode())
    settle(path.parent)
    tables = [load(name, path) for _ in range(2)]
    assert any("index in the cache" in note for note in tables[1].skipped)
    first, second = ([table.class_names, table.label_names, table.label_sets.matrix().tolist()] for table in tables)
    assert first == second and "class 1; class 2" in first[0]


def test_paths_of_a_list_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, root, path = made("csv", tmp_path)
    away = tmp_path / "away.jpg"
    files.picture(away)
    path.write_bytes(path.read_bytes() + f"{away},class 7,kind 1,test\r\n".encode())
    settle(root)
    monkeypatch.chdir(root)
    for _ in range(2):
        table = load(name, Path("list.csv"))
        assert list(table.paths)[-2:] == ["pictures/7/3.jpg", str(away)]
        assert list(table.sample_names)[-2:] == ["pictures/7/3.jpg", "../away.jpg"]


def _load_often(path: str, results: Any) -> None:
    picture_index.LEAST = image_tables.LEAST = 20
    results.put([load("csv", Path(path), index=index).labels.tolist() for index in ("renew", "auto") * 8])


def test_two_processes_at_once(tmp_path: Path) -> None:
    _, _, path = made("csv", tmp_path)
    expected = load("csv", path, index="none").labels.tolist()
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_load_often, args=(str(path), results)) for _ in range(2)]
    for process in processes:
        process.start()
    assert all(labels == expected for _ in processes for labels in results.get(timeout=60))
    for process in processes:
        process.join()


def test_a_cache_that_may_only_be_read(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, _, path = made("sop", tmp_path)
    expected = facts(load(name, path))
    content = {file: file.read_bytes() for file in cache.rglob("*.index")}

    def refuse(*arguments: Any, **named: Any) -> None:
        raise PermissionError(13, "Permission denied")

    for function in ("utime", "replace", "mkdir"):
        monkeypatch.setattr(os, function, refuse)
    assert any("index in the cache" in note for note in load(name, path).skipped)
    assert facts(load(name, path, index="renew")) == expected
    assert {file: file.read_bytes() for file in cache.rglob("*.index")} == content
