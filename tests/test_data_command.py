"""`dmlcore data`: the example pictures, and what `show` says of data."""

from __future__ import annotations

import json
import os
import time

import numpy as np
import pytest
from data_files import feature_file, image_folder, save_image
from PIL import Image

from dmlcore.cli import main
from dmlcore.data import open_data
from dmlcore.data.example_pictures import write_example
from dmlcore.errors import ConfigError, TrainingError


def test_the_example_is_a_folder_of_photographs(tmp_path, capsys):
    photos = tmp_path / "new" / "photos"
    begin = time.process_time()
    assert main(["data", "example", str(photos), "--classes", "12", "--samples", "4"]) == 0
    assert time.process_time() - begin < 20  # most of it is the import of torch
    said = capsys.readouterr().out
    assert f"48 pictures of 12 classes in {photos}" in said and f"dmlcore train --data {photos}" in said
    assert sorted(os.listdir(photos.parent)) == ["photos"]  # nothing half written beside it
    files = sorted(photos.glob("*/*.jpg"))
    assert len(files) == 48 and len({file.parent.name.casefold() for file in files}) == 12
    for file in files:
        with Image.open(file) as picture:
            assert picture.format == "JPEG" and picture.mode == "RGB" and picture.size == (96, 96)
            assert np.asarray(picture).std() > 10  # something is to be seen
    splits = open_data(str(photos))
    assert splits.sample_shape == (3, 96, 96) and splits.test.num_classes == 4


def test_the_example_is_the_same_for_a_seed(tmp_path):
    sizes = {"classes": 6, "samples": 2, "size": 48}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_example(tmp_path / name, **sizes, seed=seed)
    content = {name: [file.read_bytes() for file in sorted((tmp_path / name).rglob("*.jpg"))] for name in "abc"}
    assert content["a"] == content["b"] != content["c"]
    names = {name: sorted(os.listdir(tmp_path / name)) for name in "abc"}
    assert names["a"] == names["b"] != names["c"]


def test_the_example_takes_no_folder_that_holds_something(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    write_example(tmp_path / "empty", classes=6, samples=2, size=32)
    for folder in ("empty", "."):
        assert main(["data", "example", str(tmp_path / folder)]) == 2
        assert "is not an empty folder" in capsys.readouterr().err
    for numbers in ({"classes": 5}, {"samples": 101}, {"size": 31}, {"seed": -1}):
        with pytest.raises(ConfigError, match=next(iter(numbers))):
            write_example(tmp_path / "new", **numbers)
    with pytest.raises(ConfigError, match="fewer than 500"):
        write_example(tmp_path / "new", classes=500, samples=90)


def test_an_example_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def full(*words, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(TrainingError, match="No space left"):
        write_example(tmp_path / "new", classes=6, samples=2, size=32)
    assert not os.listdir(tmp_path)


def test_show_says_what_data_hold(tmp_path, capsys):
    image_folder(tmp_path / "images")
    save_image(tmp_path / "images" / "\x1b[31mred" / "0.png", seed=1)
    (tmp_path / "images" / "class 0" / "0.png").write_bytes(b"no image")
    assert main(["data", "show", str(tmp_path / "images"), "--folder.memory_mb", "0"]) == 0
    said = capsys.readouterr().out
    assert "images 1 x 32 x 32" in said and "32, decoded when they are needed" in said
    assert "1 to 4, median 4" in said and "drawn by class when training" in said
    assert "note: 1 image that cannot be read was skipped: 'class 0/0.png'" in said
    assert "\\x1b[31mred (1)" in said and "\x1b" not in said
    split = np.repeat(["train", "test"], 25)
    feature_file(tmp_path / "f.npz", split=split)
    assert main(["data", "show", str(tmp_path / "f.npz"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["split"] == {"test": 25, "train": 25} and facts["samples_per_class"] == {"least": 5, "median": 5.0, "most": 5}
    np.savez(tmp_path / "bare.npz", x=np.zeros((3, 2)))
    assert main(["data", "show", str(tmp_path / "bare.npz")]) == 0
    assert "the data have no labels" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [["show"], ["show", "nowhere"], ["example"], ["shwo", "glyphs"], ["show", "glyphs", "--a.b", "1"]]
)
def test_mistakes_are_one_line(words, capsys):
    assert main(["data", *words]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
