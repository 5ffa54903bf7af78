"""Folders of images: classes, damaged files, kinds and sizes of images."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from data_files import class_sets, image_folder, save_image
from PIL import Image

from dmlcore.data import (
    open_data,
)
from dmlcore.data.encoded import PathImages
from dmlcore.data.stores import ImageFiles, PixelStore
from dmlcore.errors import DataError


def test_folder_is_split_by_class(tmp_path):
    splits = open_data(image_folder(tmp_path), seed=3)
    train, validation, test = class_sets(splits)
    assert not train & validation and not train & test and not validation & test
    assert len(train | validation | test) == 8
    assert splits.sample_shape == (1, 32, 32) and splits.kind == "images"
    sample, label = splits.train[0]
    assert sample.dtype == torch.float32 and sample.shape == (1, 32, 32) and sample.min() >= 0 and sample.max() <= 1
    assert label == splits.train.dense_labels[0]
    assert sorted(set(splits.test.dense_labels)) == list(range(len(test)))
    json.dumps(splits.describe())


def test_split_follows_the_seed(tmp_path):
    folder = str(image_folder(tmp_path))
    assert class_sets(open_data(folder, seed=1)) == class_sets(open_data(folder, seed=1))
    assert any(class_sets(open_data(folder, seed=0)) != class_sets(open_data(folder, seed=seed)) for seed in range(1, 5))


def test_damaged_images_are_skipped_and_named(tmp_path):
    image_folder(tmp_path, mode="RGB")
    whole = tmp_path / "class 0" / "photo.jpg"
    save_image(whole, mode="RGB", size=(64, 64))
    cut = tmp_path / "class 1" / "cut.jpg"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (tmp_path / "class 2" / "text.png").write_text("not an image")
    (tmp_path / "class 2" / "notes.txt").write_text("not meant to be one")
    (tmp_path / "class 3" / "empty.png").touch()
    flipped = bytearray((tmp_path / "class 4" / "0.png").read_bytes())
    flipped[len(flipped) // 2] ^= 255  # the header and the end are intact
    (tmp_path / "class 4" / "0.png").write_bytes(flipped)
    splits = open_data(str(tmp_path))
    notes = " ".join(splits.notes)
    assert "4 images that cannot be read were skipped" in notes
    assert "cut.jpg" in notes and "text.png" in notes
    assert "1 files that are no images" in notes
    assert sum(len(part) for part in (splits.train, splits.validation, splits.test)) == 8 * 4 + 1 - 1
    assert splits.sample_shape == (3, 64, 64)


def test_lazy_files_skip_cut_images_too(tmp_path):
    image_folder(tmp_path, mode="RGB", size=(40, 30))
    save_image(tmp_path / "class 1" / "cut.jpg", mode="RGB", size=(64, 64))
    cut = tmp_path / "class 1" / "cut.jpg"
    cut.write_bytes(cut.read_bytes()[:-200])
    splits = open_data(str(tmp_path), options={"memory_mb": 0})
    assert isinstance(splits.train.samples, ImageFiles)
    assert "cut.jpg" in " ".join(splits.notes)
    in_memory = open_data(str(tmp_path))
    assert isinstance(in_memory.train.samples, PixelStore)
    assert torch.equal(splits.train.batch([0, 3]), in_memory.train.batch([0, 3]))


def test_file_that_vanishes_later_is_named(tmp_path):
    image_folder(tmp_path)
    splits = open_data(str(tmp_path), options={"memory_mb": 0})
    for file in tmp_path.rglob("*.png"):
        file.unlink()
    with pytest.raises(DataError, match=r"\.png' cannot be read"):
        splits.train.batch([0])


def test_mostly_unreadable_folder_is_refused(tmp_path):
    image_folder(tmp_path, samples=1)
    for label in range(8):
        for sample in range(2):
            (tmp_path / f"class {label}" / f"bad{sample}.jpg").write_text("no")
    with pytest.raises(DataError, match=r"16 of 24 images"):
        open_data(str(tmp_path))


def test_image_kinds_and_sizes(tmp_path):
    image_folder(tmp_path, size=(50, 80), mode="RGB")
    save_image(tmp_path / "class 0" / "clear.png", mode="RGBA", size=(100, 60))
    Image.fromarray(np.full((40, 40), 40000, dtype=np.uint16)).save(tmp_path / "class 1" / "deep.png")
    Image.new("P", (30, 30)).save(tmp_path / "class 2" / "palette.gif")
    assert open_data(str(tmp_path)).sample_shape == (3, 64, 64)
    assert open_data(str(tmp_path), default_image_size=96).sample_shape == (3, 96, 96)
    assert open_data(str(tmp_path), image_size=20).sample_shape == (3, 20, 20)


def test_images_of_one_small_size_stay_as_they_are(tmp_path):
    assert open_data(str(image_folder(tmp_path, size=(28, 36)))).sample_shape == (1, 28, 36)


def test_transparency_is_white_and_depth_is_kept(tmp_path):
    image_folder(tmp_path)
    Image.new("RGBA", (32, 32), (0, 0, 0, 0)).save(tmp_path / "class 0" / "clear.png")
    Image.fromarray(np.full((32, 32), 128 * 257, dtype=np.uint16)).save(tmp_path / "class 1" / "deep.png")
    paths = [str(tmp_path / "class 0" / "clear.png"), str(tmp_path / "class 1" / "deep.png")]
    store = ImageFiles(PathImages(paths), (32, 32), 1)
    values = store.fetch(np.array([0, 1]))
    assert values[0].min() == 1
    assert torch.allclose(values[1], torch.tensor(128 / 255))


def test_folder_with_parts(tmp_path):
    for part, classes in (("train", range(4)), ("val", range(4, 6)), ("test", range(6, 8))):
        for label in classes:
            for sample in range(2):
                save_image(tmp_path / part / f"c{label}" / f"{sample}.png", seed=label)
    splits = open_data(str(tmp_path))
    assert class_sets(splits) == [{"c0", "c1", "c2", "c3"}, {"c4", "c5"}, {"c6", "c7"}]
    assert any("parts of a split" in note for note in splits.notes)


def test_unicode_names(tmp_path):
    for label in "äöüßéñ漢字":
        for sample in range(2):
            save_image(tmp_path / f"{label} {label}" / f"{sample}.png")
    assert set().union(*class_sets(open_data(str(tmp_path)))) == {f"{label} {label}" for label in "äöüßéñ漢字"}


def test_folder_errors(tmp_path):
    with pytest.raises(DataError, match=r"no sub-folders"):
        open_data(str(tmp_path))
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match=r"holds no images"):
        open_data(str(tmp_path))
    save_image(tmp_path / "a" / "0.png")
    with pytest.raises(DataError, match=r"one class, 'a'"):
        open_data(str(tmp_path))
    image_folder(tmp_path / "a", classes=3)
    with pytest.raises(DataError, match=rf"Did you mean '{tmp_path}/a'"):
        open_data(str(tmp_path))
    with pytest.raises(DataError, match=r"3 classes and 12 samples, too few to measure anything"):
        open_data(str(tmp_path / "a"))
