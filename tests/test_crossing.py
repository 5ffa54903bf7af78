"""`dmlcore train --folds`: a model for each fold of the classes, measured apart and side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dmlcore.cli import main
from dmlcore.data import RecordedSplit
from dmlcore.errors import ConfigError
from dmlcore.evaluation import evaluating
from dmlcore.protocols import crossing
from dmlcore.serving import TrainedRun
from dmlcore.training import RunConfig
from dmlcore.training.building import open_splits


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "features.npz"
    generator, labels = np.random.default_rng(0), np.repeat(np.arange(24), 6)
    x = generator.normal(size=(24, 9))[labels] + 1.5 * generator.normal(size=(144, 9))
    np.savez(path, x=x.astype(np.float32), y=labels, split=np.where(labels < 12, "train", "test"))
    return str(path)


def config(data: str, **values: Any) -> RunConfig:
    common = {"data": data, "plugins": "ms", "steps": 4, "eval_every": 2, "classes_per_batch": 4, "learning_rate": 0.01}
    return RunConfig.create(**{**common, "report": False, **values})


def test_embeddings_are_joined_by_direction() -> None:
    first, second = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 0.0, 10.0]])
    expected = torch.tensor([[0.6, 0.8, 0.0, 0.0, 1.0]]) / 2**0.5
    torch.testing.assert_close(crossing.joined_embeddings([first, second]), expected)


def test_every_class_validates_once_and_all_models_are_measured(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "folds"
    flags = ["train", "--data", data, "--plugins", "ms", "--steps", "4", "--eval-every", "2", "--classes-per-batch", "4"]
    flags += ["--learning-rate", "0.01", "--out", str(out), "--folds", "3"]
    assert main([*flags, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    runs = [TrainedRun(out / "seed-0" / f"fold-{fold}") for fold in (1, 2, 3)]
    splits = [run.open() for run in runs]
    validated = [set(split.validation.class_names) for split in splits]
    assert set().union(*validated) == {str(label) for label in range(12)} and sum(map(len, validated)) == 12
    for split, classes in zip(splits, validated, strict=True):
        assert len(classes) == 4 and set(split.train.class_names) == {str(label) for label in range(12)} - classes
        assert set(split.test.class_names) == {str(label) for label in range(12, 24)}
    # Scores of each model, and of all side by side, computed another way.
    test, scores, rows = splits[0].test, [], []
    for run in runs:
        embeddings = evaluating.embed(run.model, test).double().numpy()
        rows.append(embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True))
        scores.append(json.loads((run.folder.path / "result.json").read_text())["metrics"]["test"]["recall@1"])
    assert summary["metrics"]["test"]["recall@1"][0] == pytest.approx(np.mean(scores))
    half = 4.302652729696142 * np.std(scores, ddof=1) / np.sqrt(3)  # t(2, 97.5 %)
    assert summary["metrics"]["test"]["recall@1"][1] == pytest.approx(half)
    cosines = sum(part @ part.T for part in rows) / 3
    np.fill_diagonal(cosines, -2)
    labels = test.dense_labels
    nearest = (labels[cosines.argmax(1)] == labels).mean()
    assert summary["concatenated"]["test"]["recall@1"] == [pytest.approx(nearest), None]
    assert summary["embedding_dim"] == sum(part.shape[1] for part in rows) and (out / "folds.json").exists()
    before = (out / "seed-0" / "fold-1" / "result.json").stat().st_mtime_ns
    assert main(flags) == 0  # nothing is done again
    shown = capsys.readouterr().out
    assert "3 models concatenated" in shown and "nan" not in shown
    assert (out / "seed-0" / "fold-1" / "result.json").stat().st_mtime_ns == before


def test_seeds_of_folds_give_intervals_over_seeds(data: str, tmp_path: Path) -> None:
    summary = crossing.run(config(data, steps=2), 2, [3, 5], tmp_path / "a")
    cells = tmp_path / "a" / "cells"
    means = []
    for seed in (3, 5):
        results = [json.loads((cells / f"seed-{seed}" / f"fold-{fold}.json").read_text())["result"] for fold in (1, 2)]
        means.append(np.mean([result["metrics"]["test"]["map@r"] for result in results]))
    half = 12.706204736432095 * np.std(means, ddof=1) / np.sqrt(2)  # t(1, 97.5 %)
    assert summary["metrics"]["test"]["map@r"] == pytest.approx([np.mean(means), half])
    joined = [json.loads((cells / f"seed-{seed}" / "concatenated.json").read_text())["result"] for seed in (3, 5)]
    scores = [result["metrics"]["test"]["map@r"] for result in joined]
    assert summary["concatenated"]["test"]["map@r"][0] == pytest.approx(np.mean(scores))


def test_misuse_is_refused(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for values, folds, told in (
        ({"validation": "none"}, 2, "folds validate on classes"),
        ({"plugins": "auto"}, 2, "plugins is auto"),
        ({}, 1, "folds is 1"),
        ({}, 9, "folds is 9"),
    ):
        with pytest.raises(ConfigError, match=told):
            crossing.run(config(data, **values), folds, [0], tmp_path / "x")
    assert main(["train", "--resume", "x", "--folds", "2"]) == 2
    assert "--folds" in capsys.readouterr().err


def test_seeds_can_share_the_test_classes(data: str, tmp_path: Path) -> None:
    """Where the data have no split, each seed would draw its own. A recorded one is everybody's, and folds still differ."""
    with np.load(data) as arrays:
        np.savez(tmp_path / "x.npz", x=arrays["x"], y=arrays["y"])
    drawn = config(str(tmp_path / "x.npz"), steps=1, eval_every=1)
    record = open_splits(drawn).record
    assert record is not None
    shared = RecordedSplit.of_json(record())
    crossing.run(drawn, 2, [1, 2], tmp_path / "out", recorded=shared)
    opened = [TrainedRun(tmp_path / "out" / f"seed-{seed}" / "fold-1").open() for seed in (1, 2)]
    names = {shared.class_names[label] for label in set(shared.parts["test"].labels.tolist())}
    assert [set(splits.test.class_names) for splits in opened] == [names, names]
    assert set(opened[0].validation.class_names) != set(opened[1].validation.class_names)
