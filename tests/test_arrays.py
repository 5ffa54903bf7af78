"""Tables in .npz files: features, images, labels, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from data_files import class_sets, feature_file

from dmlcore.data import (
    open_data,
)
from dmlcore.errors import DataError


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
