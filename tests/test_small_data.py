"""Data of one class, of single samples, or without labels: they can be embedded, and `eval` says what cannot be measured. Data
of few classes: they are trained on with a note."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_files import feature_file, image_folder, save_image

from dmlcore import cli
from dmlcore.data import open_data
from dmlcore.errors import DataError
from dmlcore.evaluation import retrieval_metrics
from dmlcore.training import train

SMALL: dict[str, Any] = {"plugins": "ms", "steps": 2, "embedding_dim": 4, "compress": 0, "metrics": "uniformity"}


@pytest.fixture(scope="module")
def features_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features")
    train(out=folder / "run", data=str(feature_file(folder / "data.npz")), **SMALL)
    return folder / "run"


@pytest.fixture(scope="module")
def images_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    train(out=folder / "run", data=str(image_folder(folder / "photos")), **SMALL)
    return folder / "run"


def embedded(run: Path, data: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, np.ndarray]:
    assert cli.main(["embed", str(run), "--data", str(data), "--out", str(out)]) == 0, capsys.readouterr().err
    with np.load(out) as file:
        return {name: file[name] for name in file.files}


def rows(count: int) -> np.ndarray:
    return np.random.default_rng(5).normal(size=(count, 6)).astype(np.float32)


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (["a"] * 4, "there is one class, so whatever a query finds is right"),
        (["a"], "every class has a single sample"),
        (["a", "b", "c"], "every class has a single sample"),
    ],
)
def test_labels_that_measure_nothing(
    labels: list[str], reason: str, features_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "few.npz", x=rows(len(labels)), y=np.array(labels))
    arrays = embedded(features_run, tmp_path / "few.npz", tmp_path / "e.npz", capsys)
    assert arrays["class_name"].tolist() == labels and arrays["x"].shape == (len(labels), 4)
    capsys.readouterr()
    assert cli.main(["eval", str(features_run), "--data", str(tmp_path / "few.npz")]) == 0
    assert f"all: {reason}" in capsys.readouterr().err
    assert cli.main(["eval", str(features_run), "--data", str(tmp_path / "few.npz"), "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]["all"]
    assert "recall@1" not in metrics and any(name.startswith("uniformity.") for name in metrics)


def test_three_classes_are_measured(features_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    y = np.repeat(["a", "b", "c"], 3)
    np.savez(tmp_path / "three.npz", x=rows(9), y=y)
    arrays = embedded(features_run, tmp_path / "three.npz", tmp_path / "e.npz", capsys)
    capsys.readouterr()
    assert cli.main(["eval", str(features_run), "--data", str(tmp_path / "three.npz"), "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]["all"]
    right = retrieval_metrics(arrays["x"], arrays["y"])
    assert {name: metrics[name] for name in right} == pytest.approx(right)


def test_features_without_labels(features_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "bare.npz", x=rows(5), class_name=np.array(["of nothing"]))
    arrays = embedded(features_run, tmp_path / "bare.npz", tmp_path / "e.npz", capsys)
    assert set(arrays) == {"x", "row", "split", "model"} and arrays["split"].tolist() == ["all"] * 5
    assert cli.main(["eval", str(features_run), "--data", str(tmp_path / "bare.npz")]) == 2
    assert "has no labels, so nothing can be measured on it. `dmlcore embed`" in capsys.readouterr().err
    assert cli.main(["train", "--data", str(tmp_path / "bare.npz"), "--out", str(tmp_path / "run")]) == 2
    assert "has no array 'y'" in capsys.readouterr().err


def test_images_without_labels(images_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        save_image(tmp_path / "loose" / f"{number}.png", seed=number)
        save_image(tmp_path / "one class" / "a" / f"{number}.png", seed=number)
    (tmp_path / "list.csv").write_text("path\n" + "".join(f"loose/{number}.png\n" for number in range(3)))
    loose = embedded(images_run, tmp_path / "loose", tmp_path / "loose.npz", capsys)
    listed = embedded(images_run, tmp_path / "list.csv", tmp_path / "listed.npz", capsys)
    single = embedded(images_run, tmp_path / "one class", tmp_path / "single.npz", capsys)
    assert "y" not in loose and "y" not in listed and single["class_name"].tolist() == ["a"] * 3
    np.testing.assert_array_equal(loose["x"], single["x"])
    np.testing.assert_array_equal(listed["x"], single["x"])
    for data in ("loose", "list.csv"):
        assert cli.main(["eval", str(images_run), "--data", str(tmp_path / data)]) == 2
        assert "has no labels" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert cli.main(["embed", str(images_run), "--data", str(tmp_path / "empty"), "--out", str(tmp_path / "x.npz")]) == 2
    assert "holds no images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("counts", "parts"),
    [
        ([6, 6], [(2, 2)] * 3),  # classes and least samples of a class, by part
        ([40, 6, 3], [(3, 2), (2, 2), (2, 2)]),
        ([4, 4, 5, 5, 2], [(5, 2), (2, 2), (2, 2)]),
        ([20, 20, 1, 1, 1, 1], [(6, 1), (2, 3), (2, 7)]),
    ],
)
def test_few_classes_are_split_by_samples(counts: list[int], parts: list[tuple[int, int]], tmp_path: Path) -> None:
    y = np.repeat(np.arange(len(counts)), counts)
    splits = open_data(str(feature_file(tmp_path / "few.npz", x=rows(len(y)), y=y)))
    sets = [splits.train, splits.validation, splits.test]
    assert [(part.num_classes, int(np.bincount(part.dense_labels).min())) for part in sets] == parts
    assert sorted(np.concatenate([part.rows for part in sets]).tolist()) == list(range(len(y)))
    assert any(f"too few classes ({len(counts)})" in note and "test classes are trained on" in note for note in splits.notes)
    assert any("only trained on" in note for note in splits.notes) == (min(counts) < 4)


@pytest.mark.parametrize("counts", [[5, 5], [3, 3, 3, 3, 3], [6, 5], [2, 2]])
def test_too_little_to_measure_is_refused(counts: list[int], tmp_path: Path) -> None:
    y = np.repeat(np.arange(len(counts)), counts)
    with pytest.raises(DataError, match=rf"{len(counts)} classes and {len(y)} samples, too few to measure"):
        open_data(str(feature_file(tmp_path / "few.npz", x=rows(len(y)), y=y)))


def test_a_split_of_few_classes_without_validation(tmp_path: Path) -> None:
    y = np.repeat(["a", "b"], 8)
    split = np.array(["train", "train", "train", "train", "train", "test", "test", "test"] * 2)
    splits = open_data(str(feature_file(tmp_path / "two.npz", x=rows(16), y=y, split=split)))
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [6, 4, 6]
    assert any("some samples of 2 are held out for it" in note for note in splits.notes)
    assert any("2 of 2 test classes are trained on" in note for note in splits.notes)
    split = np.array(["train", "train", "train", "test", "test", "test", "test", "test"] * 2)
    with pytest.raises(DataError, match="no validation part, and to take one from the training part needs 4 classes"):
        open_data(str(feature_file(tmp_path / "less.npz", x=rows(16), y=y, split=split)))


def test_two_classes_are_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    y = np.repeat(["a", "b"], 12)
    data = feature_file(tmp_path / "two.npz", x=rows(24) + (y == "a")[:, None] * 3, y=y)
    line = ["train", "--data", str(data), "--steps", "2", "--out", str(tmp_path / "run")]
    assert cli.main(line) == 0
    shown = capsys.readouterr().err
    assert "2 of the test classes were trained on" in (tmp_path / "run" / "report.html").read_text()
    assert "too few classes (2)" in shown and "training  2 steps of 2 classes x 4 samples" in shown
    assert cli.main(["eval", str(tmp_path / "run"), "--json"]) == 0
    test = json.loads(capsys.readouterr().out)["metrics"]["test"]
    assert test == pytest.approx(json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]["test"])
