"""`start = race`: two models of features, or three settings of pictures, train, and the best one on the validation part is the
run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_distributed_training import check_same, one_thread, run, words  # noqa: F401  the fixture serves all tests

from dmlcore.cli import main
from dmlcore.errors import ConfigError
from dmlcore.training import Logger, RunConfig, train
from dmlcore.training.folder import RunFolder
from dmlcore.training.start import validation_score

QUICK: dict[str, Any] = {"plugins": "ms", "steps": 8, "eval_every": 2, "warmup": 2, "classes_per_batch": 4, "report": False}
STARTS = ("identity", "mlp")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("race") / "features.npz"
    generator, labels = np.random.default_rng(0), np.repeat(np.arange(24), 6)
    centres = generator.normal(size=(24, 12))
    np.savez(path, x=(centres[labels] + 1.2 * generator.normal(size=(144, 12))).astype(np.float32), y=labels)
    return str(path)


@pytest.mark.parametrize("winner", STARTS)
def test_the_better_start_is_the_run(winner: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def score(config: RunConfig, folder: RunFolder, **values: Any) -> float:
        validation_score(config, folder, **values)
        return float(config.settings.model.trunk == winner)

    monkeypatch.setattr("dmlcore.training.start.validation_score", score)
    result = train(out=tmp_path / "raced", data=data, start="race", **QUICK)
    settings = RunConfig.read(tmp_path / "raced" / "config.toml").settings
    assert (settings.model.trunk, settings.optimiser.learning_rate, settings.run.steps) == (winner, 2e-3, 4)
    assert result["steps"] == result["steps_done"] == 4 and not (tmp_path / "raced" / "search").exists()
    alone = train(out=tmp_path / "alone", data=data, model=winner, learning_rate=2e-3, **{**QUICK, "steps": 4})
    for key in ("metrics", "baselines", "chosen_step"):
        assert result[key] == alone[key]
    records = [json.loads(line) for line in (tmp_path / "raced" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if record["kind"] == "evaluation"] == [0, 2, 4]


def test_it_takes_the_higher_validation_score(data: str, tmp_path: Path) -> None:
    result = train(out=tmp_path / "raced", data=data, start="race", **QUICK)
    scores = {
        name: train(out=tmp_path / name, data=data, model=name, learning_rate=2e-3, **{**QUICK, "steps": 4})["metrics"]
        for name in STARTS
    }
    assert result["metrics"]["validation"]["map@r"] == max(score["validation"]["map@r"] for score in scores.values())


def test_what_is_given_counts_for_both(data: str, tmp_path: Path) -> None:
    train(out=tmp_path / "run", data=data, start="race", learning_rate=3e-4, embedding_dim=5, **QUICK)
    settings = RunConfig.read(tmp_path / "run" / "config.toml").settings
    assert (settings.optimiser.learning_rate, settings.model.embedding_dim) == (3e-4, 5)


def test_a_raced_run_goes_on_and_is_evaluated(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--steps", "4", "--eval-every", "1", "--classes-per-batch", "4", "--start", "race", "--out", str(tmp_path / "run")]
    assert main(["train", "--data", data, "--plugins", "ms", *flags]) == 0
    told = capsys.readouterr()
    assert "start 1 of 2: identity, 2 steps" in told.out + told.err and "taken: " in told.out + told.err
    assert main(["train", "--resume", str(tmp_path / "run"), "--steps", "5"]) == 0
    assert main(["eval", str(tmp_path / "run"), "--json"]) == 0


class Listener(Logger):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def test_an_interrupted_race_goes_on(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(config: RunConfig, folder: RunFolder, **values: Any) -> float:
        """After the first evaluation that follows a step of the second start."""
        if config.settings.model.trunk == STARTS[0]:
            return validation_score(config, folder, **values)

        def goes_on(run: Any, score: float) -> bool:
            raise KeyboardInterrupt

        return validation_score(config, folder, goes_on=goes_on, **values)

    data = str(shutil.copy(data, tmp_path))
    values: dict[str, Any] = {**QUICK, "data": data, "start": "race"}
    with monkeypatch.context() as patch:
        patch.setattr("dmlcore.training.start.validation_score", interrupted)
        with pytest.raises(KeyboardInterrupt, match="Go on by the same command with --out"):
            train(out=tmp_path / "run", **values)
    assert not (tmp_path / "run" / "config.toml").exists()
    with pytest.raises(ConfigError, match="Go on by the command that began it, with --out"):
        train(resume=tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    listener, other = Listener(), Listener()
    result = train(out=tmp_path / "run", loggers=[listener], **values)
    told = [text for text in listener.texts if text.startswith("start ")]
    assert told == ["start 1 of 2: identity, 4 steps, 4 done already", "start 2 of 2: mlp, 4 steps, 2 done already"]
    assert sum(text.startswith("  step ") for text in listener.texts) == 1  # of the one evaluation that was left
    whole = train(out=tmp_path / "whole", **values)
    assert (result["metrics"], result["chosen_step"]) == (whole["metrics"], whole["chosen_step"])
    shutil.copytree(tmp_path / "other", tmp_path / "grown")
    train(out=tmp_path / "other", loggers=[other], **{**values, "steps": 6})
    assert any("a race with other settings" in text for text in other.texts)
    assert "start 1 of 2: identity, 3 steps" in other.texts
    with np.load(data) as arrays:
        grown = {"x": np.concatenate([arrays["x"], np.eye(6, 12, dtype=np.float32)]), "y": [*arrays["y"], *[24] * 6]}
    np.savez(data, **grown)  # a class more, which a split that is drawn anew would have
    shutil.rmtree(tmp_path / "grown" / "search" / STARTS[1])
    assert train(out=tmp_path / "grown", **values)["metrics"] == whole["metrics"]


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_two_processes_race_as_one(data: str, tmp_path: Path) -> None:
    values = {**QUICK, "data": data, "start": "race", "device": "cpu", "shard_model": True, "optimizer": "sgd"}
    alone = train(out=tmp_path / "alone", **values)
    done = run("--out", str(tmp_path / "two"), "--processes", "2", *words(values))
    assert done.returncode == 0, done.stderr
    two = json.loads((tmp_path / "two" / "result.json").read_text())
    assert two["chosen_step"] == alone["chosen_step"] and not (tmp_path / "two" / "search").exists()
    for part in ("validation", "test"):
        for name, value in alone["metrics"][part].items():
            assert two["metrics"][part][name] == pytest.approx(value, abs=1e-3), name
    check_same(tmp_path / "two", tmp_path / "alone", least=5)


@pytest.mark.parametrize(
    "values, told",
    [
        ({"model": "mlp"}, "start is race, which chooses the model, but model is mlp"),
        ({"plugins": "auto"}, "start is race, but plugins is auto"),
        ({"validation": "none"}, "start is race, but validation is none"),
        ({"epochs": 2, "steps": None}, "start is race, but epochs is given"),
        ({"stop_after": "1h"}, "start is race, but stop_after is given"),
        ({"ensemble": "heads", "plugins": "ms,triplet"}, "start is race, but ensemble is heads"),
        ({"steps": 1}, "2 models need a step each, but steps is 1"),
    ],
)
def test_what_cannot_race_is_refused(values: dict[str, Any], told: str, data: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=told):
        train(out=tmp_path / "run", data=data, start="race", **{**QUICK, **values})
    assert not (tmp_path / "run" / "config.toml").exists()


def test_features_do_not_race_from_an_earlier_run(data: str, tmp_path: Path) -> None:
    train(out=tmp_path / "first", data=data, start="preset", **QUICK)
    with pytest.raises(ConfigError, match="start is race, which chooses the model, but init is"):
        train(out=tmp_path / "run", data=data, start="race", init=str(tmp_path / "first"), **QUICK)
    with pytest.raises(ConfigError, match="start is race, which chooses the model, but model is python_model"):
        train(out=tmp_path / "run", data=data, start="race", model=torch.nn.Linear(12, 6), **QUICK)


def pictures() -> tuple[np.ndarray, np.ndarray]:
    generator, labels = np.random.default_rng(0), np.repeat(np.arange(24), 6)
    centres = generator.integers(0, 255, (24, 8, 8))
    return np.clip(centres[labels] + generator.normal(0, 120, (144, 8, 8)), 0, 255).astype(np.uint8), labels


QUICK_PICTURES: dict[str, Any] = {key: value for key, value in QUICK.items() if key != "plugins"}
QUICK_PICTURES |= {"model": "conv", "conv": {"channels": [4, 8]}}


def test_pictures_race_for_all_of_the_steps(tmp_path: Path) -> None:
    racers: dict[str, dict[str, Any]] = {
        "unchanged": {},
        "ms+sup_con": {"plugins": "ms,sup_con"},
        "rate 0.008": {"learning_rate": 8e-3},
    }
    listener = Listener()
    result = train(out=tmp_path / "raced", data=pictures(), start="race", loggers=[listener], **QUICK_PICTURES)
    told = [text for text in listener.texts if text.startswith("start ")]
    assert told == [f"start {place} of 3: {name}, 8 steps" for place, name in enumerate(racers, 1)]
    alone = {name: train(out=tmp_path / name, data=pictures(), **{**QUICK_PICTURES, **more}) for name, more in racers.items()}
    best = max(alone, key=lambda name: alone[name]["metrics"]["validation"]["map@r"])
    assert listener.texts.count(f"taken: {best}") == 1
    for key in ("metrics", "baselines", "chosen_step", "steps_done"):
        assert result[key] == alone[best][key]
    assert not (tmp_path / "raced" / "search").exists()
    assert RunConfig.read(tmp_path / "raced" / "config.toml").settings.model.start == "preset"


def test_pictures_race_by_what_is_open(tmp_path: Path) -> None:

    def told(**more: Any) -> list[str]:
        listener = Listener()
        name = "-".join(more)
        train(out=tmp_path / name, data=pictures(), start="race", loggers=[listener], **{**QUICK_PICTURES, "steps": 2, **more})
        return [text.split(": ")[1].split(",")[0] for text in listener.texts if text.startswith("start ")]

    assert told(plugins="ms") == ["unchanged", "rate 0.008"]
    assert told(learning_rate=1e-3) == ["unchanged", "ms+sup_con"]
    assert told(weights=[1, 1, 2]) == told(circle={"gamma": 64}) == ["unchanged", "rate 0.008"]
    with pytest.raises(ConfigError, match="losses and learning rate are given: nothing is left to choose"):
        told(plugins="ms", learning_rate=1e-3)
    assert not (tmp_path / "plugins-learning_rate").exists()


def test_texts_do_not_race(tmp_path: Path) -> None:
    lines = [f"sample {number} of {number // 4},{number // 4}" for number in range(48)]
    (tmp_path / "texts.csv").write_text("\n".join(["text,label", *lines]))
    with pytest.raises(ConfigError, match="the data are texts: only features and pictures race"):
        train(out=tmp_path / "run", data=str(tmp_path / "texts.csv"), start="race", **QUICK)


def test_a_default_run_on_features_races(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmlcore.training.race.DEFAULT_STEPS", 4)
    monkeypatch.setattr("dmlcore.training.step_counts.DEFAULT_STEPS", 4)
    values = {key: value for key, value in QUICK.items() if key != "steps"}

    def raced(name: str, **more: Any) -> bool:
        train(out=tmp_path / name, data=data, **values, **more)
        settings = RunConfig.read(tmp_path / name / "config.toml").settings
        assert settings.model.start == "preset"  # nothing is left to choose
        return settings.run.steps == 2

    assert raced("open")
    assert not raced("preset", start="preset")
    assert RunConfig.create(data=data, shard_model=True).settings.may_race
    for more in ({"steps": 4}, {"learning_rate": 1e-3}, {"model": "mlp"}, {"embedding_dim": 3}, {"validation": "none"}):
        assert not raced(f"given-{next(iter(more))}", **more)
