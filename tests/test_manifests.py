"""Manifests: CSV files that list images."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_files import class_sets, image_folder, save_image

from dmlcore.data import (
    open_data,
)
from dmlcore.errors import DataError


def write_manifest(root: Path, rows: list[str], header: str = "path,label") -> str:
    file = root / "list.csv"
    file.write_text("\n".join([header, *rows]), encoding="utf-8-sig")
    return str(file)


def test_manifest_respects_its_split(tmp_path):
    image_folder(tmp_path)
    part = {0: "train", 1: "train", 2: "train", 3: "train", 4: "val", 5: "val", 6: "test", 7: "test"}
    rows = [f"class {c}/{s}.png,Größe {c},{part[c]}" for c in range(8) for s in range(4)]
    splits = open_data(write_manifest(tmp_path, rows, "path,label,split"))
    assert class_sets(splits)[1] == {"Größe 4", "Größe 5"}
    assert not any("class-disjoint" in note for note in splits.notes)


def test_manifest_split_without_validation_takes_training_classes(tmp_path):
    image_folder(tmp_path)
    rows = [f"class {c}/{s}.png,{c},{'test' if s == 3 else 'train'}" for c in range(8) for s in range(4)]
    rows += [f"class {c}/extra.png,{c},test" for c in range(8)]
    for c in range(8):
        save_image(tmp_path / f"class {c}" / "extra.png")
    splits = open_data(write_manifest(tmp_path, rows, "path,label,split"))
    train, validation, test = class_sets(splits)
    assert len(test) == 8 and not train & validation
    assert any("not class-disjoint: 6 of 8 test classes" in note for note in splits.notes)
    assert any("no validation part: 2 of 8" in note for note in splits.notes)


def test_manifest_reports_what_it_skips(tmp_path):
    image_folder(tmp_path)
    rows = [f"class {c}/{s}.png,{c},me" for c in range(8) for s in range(4)]
    rows += ["gone.png,0,me", "class 0/0.png,0,me", "class 0/0.png,1,me", "class 0/1.png,,me"]
    notes = " ".join(open_data(write_manifest(tmp_path, rows, "path,label,author")).notes)
    for text in (
        "1 listed images do not exist",
        "gone.png",
        "1 rows that repeat",
        "a second label",
        "1 rows without",
        "columns not used: author",
    ):
        assert text in notes


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ("", [], "must name the columns"),
        ("path,labl", ["a.png,1"], "no column 'label'; it has path, labl. Did you mean to name 'labl'"),
        ("path,label", [], "lists no images"),
        ("path,label", ["a.png,1", "b.png,2"], "2 of 2 images .* do not exist"),
        ("path,label,split", ["class 0/0.png,1,training set"], "is 'training set', but must be train, validation or test"),
        ("path,label,split", ["class 0/0.png,1,train", "class 1/0.png,2,"], "split of sample 1 .* is empty"),
        ("path,label,split", ["class 0/0.png,1,train", "class 1/0.png,2,train"], "has only train"),
    ],
)
def test_manifest_errors(tmp_path, header, rows, message):
    image_folder(tmp_path)
    with pytest.raises(DataError, match=message):
        open_data(write_manifest(tmp_path, rows, header))


def test_binary_file_named_csv(tmp_path):
    (tmp_path / "x.csv").write_bytes(bytes(range(256)))
    with pytest.raises(DataError, match=r"cannot be read as a UTF-8 CSV"):
        open_data(str(tmp_path / "x.csv"))
