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
        ({"y": np.zeros((50, 1))}, "one label per row"),
        ({"y": np.linspace(0, 1, 50)}, "fractions or infinite"),
        ({"y": np.r_[np.inf, np.arange(49.0)]}, "fractions or infinite"),
        ({"y": np.full(50, np.nan)}, "has no label: all are empty or nan"),
        ({"y": np.array(["", " ", "nan", "NaN", "<NA>"] * 10)}, "has no label: all are empty or nan"),
        (
            {"y": np.repeat(2.0**63 + 4096.0 * np.arange(10), 5)},
            "float64 beyond 2.53, where different whole numbers become one",
        ),
        ({"y": np.repeat(2.0**53 * np.arange(-4, 6), 5)}, "float64 beyond 2.53"),
        ({"y": np.repeat(np.float32(2.0**24) * np.arange(10, dtype=np.float32), 5)}, "float32 beyond 2.24"),
        ({"y": np.zeros(50, dtype=np.int64)}, "one class, '0'"),
        ({"y": np.arange(50)}, "50 of them with a single sample"),
        ({"class_name": np.array(["a", "b"])}, "a name for each label 0..9"),
        ({"split": np.array(["train"] * 49)}, "'split' .* has shape"),
        ({"split": np.zeros(50, "V4")}, "'split' .* is of type .V4, but must hold text or 0, 1, 2"),
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


def labels_by_row(splits) -> dict[int, str]:
    """The name of the class of every row that is in a part."""
    parts = (splits.train, splits.validation, splits.test)
    return {int(r): part.class_names[d] for part in parts for r, d in zip(part.rows, part.dense_labels, strict=True)}


@pytest.mark.parametrize("kind", [np.float64, np.float32, str])
def test_missing_labels_are_counted_and_no_class(tmp_path, kind):
    y = np.repeat(np.arange(8), 5).astype(kind)
    missing = [0, 7, 39]
    y[missing] = ["", " NaN ", "nan"] if kind is str else np.nan
    x = np.arange(80, dtype=np.float32).reshape(40, 2)
    split = np.array(["train"] * 20 + ["val"] * 10 + ["test"] * 10)
    splits = open_data(str(feature_file(tmp_path / "f.npz", x=x, y=y, split=split)))
    assert "3 rows without a label (empty or nan) were left out" in splits.notes
    rows = [row for row in range(40) if row not in missing]
    assert splits.sample_names == [str(row) for row in rows]  # samples keep the numbers of their rows
    names = labels_by_row(splits)
    assert len(names) == 37
    for position, name in names.items():
        assert int(float(name)) == rows[position] // 5
    assert splits.test.batch([0])[0].tolist() == x[30].tolist()


def test_large_whole_numbers_stay_apart(tmp_path):
    for y in (2**63 + np.arange(8, dtype=np.uint64), 2**53 - 1 - np.arange(8, dtype=np.float64), 2**62 + np.arange(8)):
        splits = open_data(str(feature_file(tmp_path / "f.npz", x=np.zeros((24, 2)), y=np.repeat(y, 3))))
        assert set().union(*class_sets(splits)) == {str(int(label)) for label in y}


def test_blanks_and_accents_do_not_split_a_class(tmp_path):
    y = np.array(["a", "a ", " a", "Café", "Cafe\u0301", "A", "c", "d", "caf\udce9", "e"]).repeat(3)
    splits = open_data(str(feature_file(tmp_path / "f.npz", x=np.zeros((30, 2)), y=y)))
    names = labels_by_row(splits)
    right = ["a", "a", "a", "Café", "Café", "A", "c", "d", "caf\\udce9", "e"]
    assert names == {row: right[row // 3] for row in range(30)}
    notes = " ".join(splits.notes)
    assert "are one class: 'Café', 'a'" in notes and "only in capitals" in notes


def test_class_names_of_two_labels_stay_two_classes(tmp_path):
    names = np.array(["a", "a ", *"bcdefgh", "i"])
    splits = open_data(str(feature_file(tmp_path / "f.npz", class_name=names)))
    assert sorted(name for part in class_sets(splits) for name in part).count("a") <= 2
    assert sum(part.num_classes for part in (splits.train, splits.validation, splits.test)) == 10


def test_text_that_is_no_unicode_is_refused(tmp_path):
    for order in "<>":
        y = np.repeat(list("abcdefgh"), 3).astype(f"{order}U1")
        y.view(f"{order}u4")[5] = 0x110000  # beyond the last character
        np.savez(tmp_path / "f.npz", x=np.zeros((24, 2)), y=y)
        with pytest.raises(DataError, match=r"a damaged one: its text is no Unicode"):
            open_data(str(tmp_path / "f.npz"))
