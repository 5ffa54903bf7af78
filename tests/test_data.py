"""Data: sources made of real files, splits, sampling, augmentation and loading."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dmlcore.data import (
    ClassBalancedSampler,
    CropAugmentation,
    LabelledDataset,
    OrderedBatches,
    ShiftAugmentation,
    batches,
    open_data,
)
from dmlcore.data.stores import ImageFiles, PixelStore
from dmlcore.errors import ConfigError, DataError

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("DML_SHARED_DATA", ROOT.parent / "shared" / "data"))


def save_image(path: Path, *, seed: int = 0, size: tuple[int, int] = (32, 32), mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = size if mode == "L" else (*size, {"RGB": 3, "RGBA": 4}[mode])
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(path)


def image_folder(root: Path, classes: int = 8, samples: int = 4, **image) -> Path:
    for label in range(classes):
        for sample in range(samples):
            save_image(root / f"class {label}" / f"{sample}.png", seed=100 * label + sample, **image)
    return root


def feature_file(path: Path, classes: int = 10, samples: int = 5, **extra) -> Path:
    y = np.repeat(np.arange(classes), samples)
    x = np.random.default_rng(0).normal(size=(len(y), 6)).astype(np.float32)
    np.savez(path, **{"x": x, "y": y, **extra})
    return path


def class_sets(splits) -> list[set[str]]:
    return [set(part.class_names) for part in (splits.train, splits.validation, splits.test)]


# ---- folders


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
    store = ImageFiles([str(tmp_path / "class 0" / "clear.png"), str(tmp_path / "class 1" / "deep.png")], (32, 32), 1)
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
    with pytest.raises(DataError, match=r"3 classes, but a split .* needs at least 6"):
        open_data(str(tmp_path / "a"))


# ---- manifests


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


# ---- arrays


def test_features_float16_and_class_names(tmp_path):
    x = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float16)
    names = np.array([f"name {i}" for i in range(10)])
    file = feature_file(tmp_path / "f.npz", x=x, y=np.arange(40) % 10, class_name=names)
    splits = open_data(str(file))
    assert splits.kind == "features" and splits.sample_shape == (5,)
    assert splits.train.batch([0]).dtype == torch.float32
    assert set().union(*class_sets(splits)) == set(names)
    assert splits.train.augmentation is None
    assert torch.equal(splits.train.batch([1], augment=True, generator=torch.Generator()), splits.train.batch([1]))


def test_huge_and_text_labels(tmp_path):
    y = np.repeat([-(2**62), -1, 0, 7, 10**15, 2**62], 3)
    splits = open_data(str(feature_file(tmp_path / "f.npz", x=np.zeros((18, 2)), y=y)))
    assert str(2**62) in set().union(*class_sets(splits))
    splits = open_data(str(feature_file(tmp_path / "g.npz", x=np.zeros((18, 2)), y=np.repeat(list("abcdef"), 3))))
    assert "a" in set().union(*class_sets(splits))


def test_given_split_as_numbers(tmp_path):
    split = np.repeat([0, 0, 0, 0, 0, 0, 1, 1, 2, 2], 5)
    splits = open_data(str(feature_file(tmp_path / "f.npz", official_split=split)))
    assert class_sets(splits)[1:] == [{"6", "7"}, {"8", "9"}]


@pytest.mark.parametrize(
    ("shape", "sample_shape"),
    [
        ((40, 9, 12), (1, 9, 12)),
        ((40, 9, 12, 1), (1, 9, 12)),
        ((40, 9, 12, 3), (3, 9, 12)),
        ((40, 9, 12, 4), (3, 9, 12)),
        ((40, 3, 9, 12), (3, 9, 12)),
    ],
)
def test_image_arrays(tmp_path, shape, sample_shape):
    x = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    file = str(feature_file(tmp_path / "f.npz", x=x, y=np.arange(40) % 8))
    assert open_data(file).sample_shape == sample_shape
    assert open_data(file, image_size=16).train[0][0].shape == (sample_shape[0], 16, 16)


def _with_nan() -> np.ndarray:
    x = np.zeros((50, 6))
    x[[17, 20], 3] = np.nan
    return x


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.array([{}] * 50)}, "'x' in .* holds Python objects"),
        ({"y": np.array([[1], [2, 3]] * 25, dtype=object)}, "'y' in .* holds Python objects"),
        ({"x": _with_nan()}, "NaN or infinite in 2 rows, the first is row 17"),
        ({"x": np.zeros((49, 6))}, "'y' .* has shape .50,., but 'x' has 49 rows"),
        ({"x": np.zeros((50, 0))}, "no columns"),
        ({"x": np.zeros((0, 6)), "y": np.zeros(0)}, "is empty"),
        ({"x": np.zeros(50)}, "but must be features"),
        ({"x": np.zeros((50, 8, 8), dtype=np.float32)}, "but must be features"),
        ({"x": np.zeros((50, 8, 8, 2), dtype=np.uint8)}, "but must be features"),
        ({"x": np.zeros((50, 6), dtype=complex)}, "must hold numbers"),
        ({"y": np.zeros((50, 2))}, "one label per row"),
        ({"y": np.linspace(0, 1, 50)}, "fractions or NaN"),
        ({"y": np.zeros(50, dtype=np.int64)}, "one class, '0'"),
        ({"y": np.arange(50)}, "50 of them with a single sample"),
        ({"class_name": np.array(["a", "b"])}, "a name for each label 0..9"),
        ({"split": np.array(["train"] * 49)}, "'split' .* has shape"),
    ],
)
def test_array_errors_are_one_line(tmp_path, arrays, message):
    with pytest.raises(DataError, match=message) as caught:
        open_data(str(feature_file(tmp_path / "f.npz", **arrays)))
    assert "\n" not in str(caught.value)


def test_damaged_and_wrong_array_files(tmp_path):
    file = feature_file(tmp_path / "f.npz")
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"text that is no archive", whole[:200] + b"\xff" * 100 + whole[300:]):
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"no \.npz file, or a damaged one"):
            open_data(str(file))
    np.savez(file, a=np.zeros(3))
    with pytest.raises(DataError, match=r"has no array 'x'; it has a"):
        open_data(str(file))
    with open(file, "wb") as opened:
        np.save(opened, np.zeros(3))
    with pytest.raises(DataError, match=r"single array"):
        open_data(str(file))


# ---- names, options, splits


def test_names_that_do_not_exist(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"no data set 'glyhps', and no file or folder of that name. Did you mean 'glyphs'"):
        open_data("glyhps")
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match=rf"Did you mean '{tmp_path}/photos'"):
        open_data(str(tmp_path / "photo"))
    (tmp_path / "a.zip").touch()
    with pytest.raises(DataError, match=r"Unpack it"):
        open_data("a.zip")


def test_wrong_options(tmp_path):
    file = str(feature_file(tmp_path / "f.npz"))
    with pytest.raises(ConfigError, match=r"npz has no option 'flop'. Did you mean 'flip'"):
        open_data(file, options={"flop": True})
    with pytest.raises(ConfigError, match=r"sum 1"):
        open_data(file, fractions=(0.5, 0.5, 0.5))
    with pytest.raises(ConfigError, match=r"image_size"):
        open_data(file, image_size=2)
    with pytest.raises(DataError, match=r"needs a path"):
        open_data("folder")


def test_single_sample_classes_are_spread_and_mentioned(tmp_path):
    y = np.concatenate([np.repeat(np.arange(12), 4), np.arange(12, 52)])
    splits = open_data(str(feature_file(tmp_path / "f.npz", x=np.zeros((len(y), 2)), y=y)))
    for part in (splits.train, splits.validation, splits.test):
        assert 2 <= (np.bincount(part.dense_labels) > 1).sum() < part.num_classes
    assert any("train classes have a single sample: repeated" in note for note in splits.notes)
    assert any("test classes have a single sample: never a query" in note for note in splits.notes)


@settings(max_examples=30, deadline=None)
@given(classes=st.integers(6, 40), samples=st.integers(2, 3), seed=st.integers(0, 1000), train=st.floats(0.05, 0.9))
def test_split_by_class_property(classes, samples, seed, train):
    from dmlcore.data.splits import split_by_class

    labels = np.repeat(np.arange(classes), samples)
    split = split_by_class(labels, classes, (train, (1 - train) / 3, 2 * (1 - train) / 3), seed)
    parts = [set(labels[split == part]) for part in ("train", "validation", "test")]
    assert sum(len(part) for part in parts) == classes and len(set.union(*parts)) == classes
    assert min(len(part) for part in parts) >= 2


def test_million_samples_are_fast():
    labels = np.random.default_rng(0).integers(0, 100_000, 1_000_000)
    dataset = LabelledDataset(
        PixelStore(np.zeros((1, 1, 1, 1), np.uint8)),
        np.zeros(len(labels), np.int64),
        labels,
        [str(i) for i in range(100_000)],
        (1, 1, 1),
    )
    sampler = ClassBalancedSampler(dataset.dense_labels, 128, 4, seed=0, steps=20)
    assert sum(len(batch) for batch in sampler) == 20 * 512


# ---- sampler


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 11), min_size=2, max_size=12),
    per_class=st.integers(1, 5),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_sampler_properties(counts, per_class, seed, data):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)) * 10**9, counts))
    classes = data.draw(st.integers(2, len(counts)))
    steps = 3 * len(counts)
    sampler = ClassBalancedSampler(labels, classes, per_class, seed, steps)
    drawn = list(sampler)
    assert len(drawn) == len(sampler) == steps
    in_order: list[int] = []
    of_class: dict[int, list[int]] = {}
    for batch in drawn:
        groups = np.array(batch).reshape(classes, per_class)
        ids = labels[groups]
        assert (ids == ids[:, :1]).all() and len(set(ids[:, 0])) == classes
        for group in groups:
            assert len(set(group)) == min(per_class, counts[labels[group[0]] // 10**9])
            of_class.setdefault(labels[group[0]] // 10**9, []).extend(group.tolist())
        in_order += ids[:, 0].tolist()
    for start in range(0, len(in_order) - len(counts) + 1, len(counts)):  # every round has every class once
        assert len(set(in_order[start : start + len(counts)])) == len(counts)
    for label, rows in of_class.items():
        if counts[label] >= per_class:  # and every round of a class every sample once
            for start in range(0, len(rows) - counts[label] + 1, counts[label]):
                assert len(set(rows[start : start + counts[label]])) == counts[label]


@pytest.mark.parametrize("before", [0, 1, 7, 50])
def test_sampler_resumes_exactly(before):
    labels = np.repeat(np.arange(13), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13])
    whole = list(ClassBalancedSampler(labels, 5, 4, seed=9, steps=80))
    first = ClassBalancedSampler(labels, 5, 4, seed=9, steps=80)
    stream = iter(first)
    assert [next(stream) for _ in range(before)] == whole[:before]
    state = first.state_dict()
    next(stream)
    second = ClassBalancedSampler(labels, 5, 4, seed=1, steps=80)
    second.load_state_dict(state)
    assert list(second) == whole[before:]


def test_sampler_errors():
    with pytest.raises(ConfigError, match=r"only 2 training classes. Lower it to 2"):
        ClassBalancedSampler(np.array([0, 0, 1]), 3, 2, seed=0)
    with pytest.raises(ConfigError, match=r"samples_per_class"):
        ClassBalancedSampler(np.array([0, 0, 1]), 2, 0, seed=0)
    sampler = ClassBalancedSampler(np.array([0, 0, 1]), 2, 2, seed=0)
    with pytest.raises(ConfigError, match=r"5 training classes, but the data has 2"):
        sampler.load_state_dict({"seed": 0, "step": 0, "round": 0, "position": 0, "order": np.arange(5)})


# ---- augmentation and loading


@pytest.mark.parametrize("augmentation", [ShiftAugmentation(flip=True), CropAugmentation()], ids=["shift", "crop"])
def test_augmentation_follows_its_generator(augmentation):
    images = torch.rand(6, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    first = augmentation(images, torch.Generator().manual_seed(1))
    assert first.shape == images.shape and torch.isfinite(first).all() and first.min() >= 0 and first.max() <= 1
    assert torch.equal(first, augmentation(images, torch.Generator().manual_seed(1)))
    assert not torch.equal(first, augmentation(images, torch.Generator().manual_seed(2)))


def test_augmentation_of_nothing_is_nothing():
    images = torch.rand(4, 1, 16, 16)
    still = ShiftAugmentation(shift=0, turn=0, slant=0, scale=1)
    assert torch.allclose(still(images, torch.Generator()), images, atol=1e-5)
    assert torch.allclose(CropAugmentation(area=1, aspect=1, flip=False)(images, torch.Generator()), images, atol=1e-5)


def test_shift_moves_by_pixels():
    images = torch.zeros(64, 1, 32, 32)
    images[:, :, 15:17, 15:17] = 1
    moved = ShiftAugmentation(shift=0.25, turn=0, slant=0, scale=1)(images, torch.Generator().manual_seed(0))
    columns = (moved.sum(2)[:, 0] * torch.arange(32)).sum(1) / moved.sum((1, 2, 3)) - 15.5
    assert 6 < columns.abs().max() <= 8  # a quarter of 32


def test_augmentation_choice(tmp_path):
    save = {"y": np.arange(40) % 8}
    grey = str(feature_file(tmp_path / "g.npz", x=np.zeros((40, 120, 120), np.uint8), **save))
    colour = str(feature_file(tmp_path / "c.npz", x=np.zeros((40, 120, 120, 3), np.uint8), **save))
    assert open_data(grey).train.augmentation == ShiftAugmentation()
    assert open_data(grey, options={"flip": True}).train.augmentation == ShiftAugmentation(flip=True)
    assert open_data(colour).train.augmentation == CropAugmentation(flip=True)
    assert open_data(colour, options={"augment": "none"}).train.augmentation is None


def _stream(folder: Path, workers: int, memory_mb: int, steps: int = 6) -> list:
    train = open_data(str(folder), options={"memory_mb": memory_mb}).train
    sampler = ClassBalancedSampler(train.dense_labels, 3, 2, seed=5, steps=steps)
    return list(batches(train, sampler, workers=workers, augment=True, seed=7))


def test_batches_are_the_same_with_any_number_of_workers(tmp_path):
    image_folder(tmp_path, size=(40, 44), mode="RGB")
    expected = _stream(tmp_path, 0, 512)
    assert len(expected) == 6
    for workers in (0, 1, 2):
        torch.manual_seed(workers)
        before = torch.random.get_rng_state()
        for (samples, labels), (wanted, wanted_labels) in zip(_stream(tmp_path, workers, 0), expected, strict=True):
            assert torch.equal(samples, wanted) and torch.equal(labels, wanted_labels)
            assert labels.dtype == torch.int64
        assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_resume_exactly(tmp_path, workers):
    image_folder(tmp_path)
    expected = _stream(tmp_path, 0, 0, steps=8)
    train = open_data(str(tmp_path), options={"memory_mb": 0}).train
    sampler = ClassBalancedSampler(train.dense_labels, 3, 2, seed=5, steps=8)
    stream = batches(train, sampler, workers=workers, augment=True, seed=7)
    for _ in range(3):
        next(stream)
    sampler = ClassBalancedSampler(train.dense_labels, 3, 2, seed=5, steps=8)
    sampler.load_state_dict(stream.state_dict())
    assert sampler.step == 3
    rest = list(batches(train, sampler, workers=0, augment=True, seed=7))
    assert len(rest) == 5
    for (samples, labels), (wanted, wanted_labels) in zip(rest, expected[3:], strict=True):
        assert torch.equal(samples, wanted) and torch.equal(labels, wanted_labels)


def test_ordered_batches_and_loader_interface(tmp_path):
    test = open_data(str(feature_file(tmp_path / "f.npz"))).test
    found = list(batches(test, OrderedBatches(len(test), 4)))
    assert torch.equal(torch.cat([samples for samples, _ in found]), test.batch(range(len(test))))
    assert torch.cat([labels for _, labels in found]).tolist() == test.dense_labels.tolist()
    loaded = torch.utils.data.DataLoader(test, batch_size=4)
    assert torch.equal(next(iter(loaded))[0], found[0][0])
    with pytest.raises(IndexError):
        test[len(test)]


# ---- data that come from elsewhere


def test_glyphs():
    try:
        splits = open_data("glyphs")
    except DataError as error:
        pytest.skip(str(error))
    assert splits.sample_shape == (1, 32, 32)
    train, validation, test = class_sets(splits)
    assert not train & test and not train & validation and not validation & test
    scripts = open_data("glyphs", options={"split": "unseen_scripts"})
    assert class_sets(scripts) != [train, validation, test]
    assert any("scripts never trained on" in note for note in scripts.notes)
    assert scripts.train.augmentation == ShiftAugmentation()
    assert open_data("glyphs", options={"augment": False}).train.augmentation is None


@pytest.mark.parametrize(
    ("file", "kind", "shape"),
    [
        ("emoji_64.npz", "images", (3, 64, 64)),
        ("grocery_mobilenetv2.npz", "features", (1280,)),
        ("banking77_minilm.npz", "features", (384,)),
    ],
)
def test_real_files(file, kind, shape):
    if not (SHARED / file).is_file():
        pytest.skip(f"{SHARED / file} is not here; set DML_SHARED_DATA to its folder")
    splits = open_data(str(SHARED / file))
    assert splits.kind == kind and splits.sample_shape == shape
    assert splits.train.batch(range(8)).isfinite().all()
    if "grocery" in file:
        assert any("not class-disjoint: 81 of 81 test classes" in note for note in splits.notes)


def test_package_import_needs_no_torch():
    code = "import sys, dmlcore.data; sys.exit('torch' in sys.modules)"
    path = os.pathsep.join([str(ROOT), str(ROOT / "plugins")])
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}).returncode == 0


# ---- sources of plugins


def test_source_of_a_plugin(monkeypatch):
    from dataclasses import dataclass

    from dmlcore import plugins
    from dmlcore.data import DataSource, FeatureStore, Table
    from dmlcore.errors import PluginError

    @dataclass(frozen=True)
    class Options:
        wrong: bool = False

    class Toy(DataSource):
        name = "toy"

        def load(self):
            labels = np.repeat(np.arange(9), 3) + (100 if self.options.wrong else 0)
            return Table("features", FeatureStore(np.zeros((27, 4), np.float32)), labels, [f"c{i}" for i in range(9)], (4,))

    Toy.Options = Options
    entries = {**plugins.registry("data"), "toy": plugins.Entry("data", "toy", Toy, "here", "")}
    monkeypatch.setattr(plugins, "registry", lambda kind: entries)
    assert open_data("toy").train.batch([0]).shape == (1, 4)
    with pytest.raises(PluginError, match=r"data set 'toy': labels are int64"):
        open_data("toy", options={"wrong": True})
