"""What chooses the checkpoint: held-out classes, held-out samples, or nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interrupting import Stop

from dmlcore.cli import main
from dmlcore.data import open_data
from dmlcore.data.validating import validate_by
from dmlcore.errors import DataError, Interrupted
from dmlcore.training import checkpoints, kept, train

SMALL: dict[str, Any] = {"plugins": "ms", "eval_every": 2, "warmup": 2, "classes_per_batch": 4, "samples_per_class": 3}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "features.npz"
    generator, labels = np.random.default_rng(0), np.repeat(np.arange(24), 6)
    np.savez(path, x=(generator.normal(size=(24, 8))[labels] + generator.normal(size=(144, 8))).astype(np.float32), y=labels)
    return str(path)


def own_split(path: Path, with_validation: bool = False) -> str:
    """Classes 0-9 train, 10-15 test; with classes 8 and 9 as the data's own validation part."""
    labels = np.repeat(np.arange(16), 6)
    split = np.where(labels < 10, "train", "test").astype("<U10")
    if with_validation:
        split[(labels == 8) | (labels == 9)] = "validation"
    np.savez(path, x=np.random.default_rng(1).normal(size=(96, 4)).astype(np.float32), y=labels, split=split)
    return str(path)


@pytest.mark.parametrize("kind", ["random", "own", "own with validation"])
def test_all_training_classes_are_trained_on(kind: str, data: str, tmp_path: Path) -> None:
    path = data if kind == "random" else own_split(tmp_path / "own.npz", "validation" in kind)
    before, none, samples = (open_data(path, validation=name) for name in ("classes", "none", "samples"))
    side = {*before.train.rows.tolist(), *before.validation.rows.tolist()}
    classes = {*before.train.class_names, *before.validation.class_names}
    assert before.train.num_classes < len(classes)
    assert set(none.train.rows.tolist()) == side and len(none.validation) == 0
    assert {*samples.train.rows.tolist(), *samples.validation.rows.tolist()} == side
    assert not set(samples.train.rows.tolist()) & set(samples.validation.rows.tolist())
    for splits in (none, samples):
        assert set(splits.train.class_names) == classes
        assert splits.test.rows.tolist() == before.test.rows.tolist()
    counts = np.bincount(samples.validation.dense_labels)
    assert len(counts) == len(classes) and (counts == 2).all()  # of 6: 0.15 / 0.65 rounds to 1, and two are needed
    assert any(note.startswith(f"no validation part: all {len(classes)} training classes") for note in none.notes)


def test_too_few_samples_are_refused() -> None:
    labels = np.repeat(np.arange(4), 3)
    split, fractions = np.full(12, "train", dtype="<U10"), (0.5, 0.15, 0.35)
    with pytest.raises(DataError, match="--validation none"):
        validate_by(split, labels, "samples", fractions, np.random.default_rng(0))


@pytest.mark.parametrize(
    "settings",
    [
        {"model": "mlp", "compress": 4},
        {"plugins": "ms,sup_con", "ensemble": "heads", "compress": 4, "average": 0.5},
        {"plugins": "ms,sup_con", "ensemble": "heads", "weights": (1.0, 3.0), "head_start": "principal"},
    ],
)
def test_what_evaluations_leave_is_what_would_be_computed_again(
    settings: dict[str, Any], data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for most in (kept.MOST_BYTES, -1):
        monkeypatch.setattr(kept, "MOST_BYTES", most)
        results.append(train(data=data, steps=4, device="cpu", report=False, out=tmp_path / str(most), **{**SMALL, **settings}))
    for key in ("metrics", "baselines", "embeddings", "chosen_step"):
        assert results[0].get(key) == results[1].get(key)


def test_without_validation_the_last_weights_are_kept(data: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = train(data=data, steps=5, validation="none", out=run, **SMALL)
    assert result["chosen_step"] == 5 and set(result["metrics"]) == {"test"}
    assert {part: counts["classes"] for part, counts in result["data"]["parts"].items()}["train"] == 16
    best, last = (checkpoints.load(run / "checkpoints", name) for name in ("best", "last"))
    assert best["step"] == last["step"] == 5
    for name, value in best["model"].items():
        assert torch.equal(value, last["model"][name])
    kinds = {json.loads(line)["kind"] for line in (run / "metrics.jsonl").read_text().splitlines()}
    assert kinds == {"step"}


def test_a_run_without_validation_goes_on_exactly(data: str, tmp_path: Path) -> None:
    settings = {**SMALL, "data": data, "validation": "none", "steps": 6}
    whole = train(out=tmp_path / "whole", **settings)
    with pytest.raises(Interrupted):
        train(out=tmp_path / "parts", loggers=[Stop(3)], **settings)
    resumed = train(resume=tmp_path / "parts")
    assert resumed["metrics"] == whole["metrics"] and resumed["chosen_step"] == 6


def test_commands_cope_with_a_run_without_validation(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "runs" / "none")
    flags = ["--data", data, "--plugins", "ms", "--classes-per-batch", "4"]
    assert main(["train", *flags, "--steps", "2", "--validation", "none", "--out", run]) == 0
    shown = capsys.readouterr()
    assert "there is no validation" in " ".join(shown.out.split()) and "validation none" in shown.err
    assert main(["eval", run, "--json"]) == 0
    shown = capsys.readouterr()
    assert set(json.loads(shown.out)["metrics"]) == {"test"} and "no samples are left" not in shown.err
    assert main(["runs", str(tmp_path / "runs")]) == 0
    assert main(["train", *flags, "--validation", "none", "--patience", "2"]) == 2
    assert "patience needs evaluations" in capsys.readouterr().err
    assert main(["train", "--data", data, "--plugins", "auto", "--validation", "none"]) == 2
    assert "plugins = auto chooses by validation" in " ".join(capsys.readouterr().err.split())
