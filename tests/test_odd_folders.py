"""Folders of images as they come from cameras, other systems and other people: parts beside others, links, odd names, pipes."""

from __future__ import annotations

import os
import socket
import unicodedata
from pathlib import Path

import pytest
import torch
from data_files import class_sets, image_folder, save_image

from dmlcore.data import open_data
from dmlcore.errors import DataError


def folder_with_parts(root: Path, *words: str) -> Path:
    """Eight classes in the first part, three in the second, four in the third, with three images each."""
    for word, classes in zip(words, (range(8), range(8, 11), range(11, 15)), strict=False):
        for label in classes:
            for sample in range(3):
                save_image(root / word / f"c{label:02d}" / f"{sample}.png", seed=10 * label + sample)
    return root


def sizes(splits) -> list[int]:
    return [len(part.class_names) for part in (splits.train, splits.validation, splits.test)]


def note(splits, text: str) -> str:
    lines = [line for line in splits.notes if text in line]
    assert len(lines) == 1, splits.notes
    return lines[0]


@pytest.mark.parametrize(
    "words",
    [("train", "val", "test"), ("Train", "Valid", "TEST"), ("training", "dev", "testing"), ("TRAIN", "validation", "Test")],
)
def test_parts_beside_another_folder(tmp_path, words):
    folder_with_parts(tmp_path, *words)
    save_image(tmp_path / "annotations" / "overview.png")
    save_image(tmp_path / words[0] / "loose.png")
    splits = open_data(str(tmp_path))
    assert sizes(splits) == [8, 3, 4] and len(splits.train) == 24
    assert "were not read: 'annotations'" in note(splits, "no such part")
    assert note(splits, "belong to no class").startswith("1 images")


def test_a_flat_part_beside_others_is_said(tmp_path):
    folder_with_parts(tmp_path, "train", "val")
    save_image(tmp_path / "test" / "0.png")  # without classes
    splits = open_data(str(tmp_path))
    assert sum(sizes(splits)) == 11 and "'test'" in note(splits, "no such part")


def test_a_class_called_like_a_part_is_a_class(tmp_path):
    image_folder(tmp_path)
    save_image(tmp_path / "train" / "front" / "0.png", seed=1)
    save_image(tmp_path / "train" / "side" / "1.png", seed=2)
    for digit in range(10):  # numbers are classes, even those that mean parts elsewhere
        for sample in range(2):
            save_image(tmp_path / str(digit) / "deep" / f"{sample}.png", seed=sample)
    classes = set().union(*class_sets(open_data(str(tmp_path))))
    assert classes == {f"class {label}" for label in range(8)} | {"train"} | {str(digit) for digit in range(10)}


def test_links_to_folders_are_followed_once(tmp_path):
    outside = image_folder(tmp_path / "outside", classes=2)
    root = image_folder(tmp_path / "data")
    (root / "class 0" / "further").symlink_to(outside / "class 0")
    (root / "class 8").symlink_to(outside / "class 1")
    (root / "class 1" / "up").symlink_to(root)  # a loop
    (root / "class 2" / "self").symlink_to(root / "class 2" / "self")
    (root / "a copy").symlink_to(root / "class 3")  # before it by name: its images still belong to class 3
    (root / "class 4" / "gone.png").symlink_to(root / "nowhere.png")
    splits = open_data(str(root))
    counts = {name: 0 for name in set().union(*class_sets(splits))}
    for part in (splits.train, splits.validation, splits.test):
        for label in part.dense_labels:
            counts[part.class_names[label]] += 1
    assert counts == {f"class {label}": 8 if label == 0 else 4 for label in range(9)}
    assert note(splits, "were followed").startswith("2 links")
    assert "'a copy', 'class 1/up'" in note(splits, "are read already")
    assert "gone.png" in note(splits, "cannot be read")


def test_pipes_and_sockets_are_not_opened(tmp_path):
    image_folder(tmp_path)
    os.mkfifo(tmp_path / "class 0" / "pipe.png")  # opening it would wait for ever
    os.symlink("/dev/zero", tmp_path / "class 1" / "zero.png")
    place = os.getcwd()
    os.chdir(tmp_path / "class 2")  # paths of sockets are short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
        os.chdir(place)
        assert note(open_data(str(tmp_path)), "no images").startswith("3 files")


def test_a_pipe_is_no_data(tmp_path):
    for name in ("x.npz", "x.csv", "x"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(DataError, match="neither a file nor a folder"):
            open_data(str(tmp_path / name))
    with pytest.raises(DataError, match="no file or folder of that name"):
        open_data(str(tmp_path / ("x" * 300)))


def test_folders_that_cannot_be_opened_are_said(tmp_path, monkeypatch):
    image_folder(tmp_path)
    save_image(tmp_path / "class 0" / "secret" / "0.png")
    listing = os.scandir

    def guarded(place):
        if Path(place).name in closed:
            raise PermissionError(13, "Permission denied", str(place))
        return listing(place)

    monkeypatch.setattr(os, "scandir", guarded)  # the tests may run as a user who may read everything
    closed = {"secret"}
    assert "'class 0/secret' (Permission denied)" in note(open_data(str(tmp_path)), "cannot be opened")
    closed = {tmp_path.name}
    with pytest.raises(DataError, match=r"cannot be opened: Permission denied"):
        open_data(str(tmp_path))


def test_names_that_look_alike(tmp_path):
    image_folder(tmp_path)
    for form in ("NFC", "NFD"):
        for sample in range(2):
            save_image(tmp_path / unicodedata.normalize(form, "Café") / f"{form}{sample}.png", seed=sample)
    for name in ("bird", "bird ", "Bird"):
        save_image(tmp_path / name / "0.png")
        save_image(tmp_path / name / "1.png")
    splits = open_data(str(tmp_path))
    classes = set().union(*class_sets(splits))
    assert classes == {f"class {label}" for label in range(8)} | {"Café", "bird", "Bird"}
    assert "'Café', 'bird'" in note(splits, "are one class") and "'Bird and bird'" in note(splits, "only in capitals")


def test_files_and_folders_of_systems_are_left_out(tmp_path):
    image_folder(tmp_path)
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / "class 0" / name).write_bytes(b"x")
    save_image(tmp_path / "__MACOSX" / "class 0" / "._0.png")
    save_image(tmp_path / "class 0" / "@eaDir" / "0.png" / "THUMB.jpg")
    save_image(tmp_path / "class 0" / ".hidden.png")
    save_image(tmp_path / ".cache" / "0.png")
    splits = open_data(str(tmp_path))
    assert len(splits.sample_names) == 32 and len(set().union(*class_sets(splits))) == 8


def test_names_of_any_bytes_and_lengths(tmp_path):
    image_folder(tmp_path)
    latin = os.fsdecode("Café".encode("latin-1"))
    longest = "n" * 255
    for name in (latin, longest):
        for sample in range(2):
            save_image(tmp_path / "new" / f"{sample}.png", seed=sample)
        os.rename(tmp_path / "new", tmp_path / name)
    os.rename(tmp_path / "class 0" / "0.png", tmp_path / "class 0" / os.fsdecode(b"\xe9.png"))
    (tmp_path / "class 0" / os.fsdecode(b"\xff.png")).write_text("no image")
    splits = open_data(str(tmp_path))
    assert {"Caf\\udce9", longest} <= set().union(*class_sets(splits))
    assert "class 0/\\udce9.png" in splits.sample_names
    for text in (*splits.notes, *splits.sample_names):
        text.encode()
    whole = open_data(str(tmp_path), options={"memory_mb": 0})
    assert torch.equal(splits.test.batch([0, 1]), whole.test.batch([0, 1]))
