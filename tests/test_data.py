"""Opening data: names, options, splits, data sets that come from elsewhere, sources of plugins."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data_files import SHARED, class_sets, feature_file
from dmlcore_plugins.samplers.class_balanced import ClassBalancedSampler
from hypothesis import given, settings
from hypothesis import strategies as st

from dmlcore.data import (
    LabelledDataset,
    ShiftAugmentation,
    open_data,
)
from dmlcore.data.stores import PixelStore
from dmlcore.errors import ConfigError, DataError

ROOT = Path(__file__).parents[1]


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


def test_whole_classes_are_drawn_where_single_samples_say_nothing() -> None:
    """Sorted data with more classes than samples wanted, few large classes, uneven ones, and little data."""
    samples = np.zeros((1, 1), np.float32)

    def drawn(labels: np.ndarray, most: int) -> np.ndarray:
        names = [str(label) for label in range(labels.max() + 1)]
        dataset = LabelledDataset(samples, np.arange(len(labels)), labels, names, (1,))
        part = dataset.spread_classes(most, 16)
        assert np.array_equal(part.labels, labels[part.rows]) and np.all(np.diff(part.rows) > 0)
        return np.bincount(part.labels, minlength=len(names))

    many = drawn(np.repeat(np.arange(2000), 10), 1024)
    assert set(many) == {0, 10} and 900 <= many.sum() <= 1100 and np.flatnonzero(many)[-1] == 1999
    mixed = drawn(np.random.default_rng(0).permutation(np.repeat(np.arange(300), 40)), 1024)
    assert set(mixed) == {0, 16} and 900 <= mixed.sum() <= 1100
    assert drawn(np.repeat(np.arange(4), 1000), 1024).tolist() == [256] * 4
    assert drawn(np.repeat([0, 1, 2], [1, 2, 5]), 1024).tolist() == [1, 2, 5]
    assert drawn(np.repeat([0, 3, 7], [500, 500, 24]), 600).sum() <= 700  # labels need not be dense
