"""`dmlcore find`: a learning rate and a size of batch, without a trace in the run."""

from __future__ import annotations

import copy
import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from dmlcore.cli import main
from dmlcore.errors import ConfigError, TrainingError
from dmlcore.training import RunConfig, finding
from dmlcore.training.folder import RunFolder
from dmlcore.training.memory_needed import bytes_needed
from dmlcore.training.run import Run
from dmlcore.training.step import take_step


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "features.npz"
    generator, labels = np.random.default_rng(0), np.repeat(np.arange(24), 6)
    np.savez(path, x=(generator.normal(size=(24, 9))[labels] + generator.normal(size=(144, 9))).astype(np.float32), y=labels)
    return str(path)


def new_run(data: str, folder: Path, **values: object) -> Run:
    settings = {"data": data, "plugins": "ms,proxy_anchor", "steps": 40, "model": "mlp", "classes_per_batch": 6, **values}
    return Run(RunConfig.create(**settings), RunFolder(folder))


def steps_of(run: Run, count: int) -> list[float]:
    stream = run.batches()
    return [take_step(run, *next(stream)).total for _ in range(count)]


def flat(value: object, path: str = "") -> dict[str, object]:
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in flat(inner, f"{path}/{key}").items()}
    if isinstance(value, list | tuple):
        return {k: v for key, inner in enumerate(value) for k, v in flat(inner, f"{path}/{key}").items()}
    return {path: value}


@pytest.mark.parametrize(
    "values", [{}, {"average": 0.9, "memory": 64, "precision": "bf16", "mlp": {"dropout": 0.2}, "freeze": 2}, {"compress": 4}]
)
def test_nothing_is_left_of_a_search(data: str, tmp_path: Path, values: dict[str, object]) -> None:
    run, other = new_run(data, tmp_path, **values), new_run(data, tmp_path, **values)
    for one in (run, other):
        torch.manual_seed(1)
        steps_of(one, 3)
        one.end_batches()
    before = flat(copy.deepcopy(run.state()))
    finding.find_learning_rate(run, 12)
    finding.find_batch_size(run)
    finding.tried_batch_size(run)
    after = flat(run.state())
    assert before.keys() == after.keys()
    for key, value in before.items():
        same = torch.equal(value, after[key]) if isinstance(value, torch.Tensor) else value == after[key]
        assert same, key
    torch.manual_seed(0)
    first = steps_of(run, 3)
    torch.manual_seed(0)
    assert first == steps_of(other, 3)


def test_a_rate_is_picked_where_the_loss_falls_fastest() -> None:
    rates = np.logspace(-6, 0, 121)
    logs = np.log10(rates)
    losses = 1 - 0.8 / (1 + np.exp(-(logs + 3) * 6)) + np.where(logs > -1, (logs + 1) * 9, 0)
    rate, reason = finding.pick(rates, losses, finding.smooth(losses))
    assert rate == pytest.approx(1e-3, rel=0.2) and "falls fastest" in reason
    late = 1 - 0.8 / (1 + np.exp(-(logs + 1.2) * 9)) + np.where(logs > -1, (logs + 1) * 9, 0)
    rate, reason = finding.pick(rates, late, finding.smooth(late))
    assert rate == pytest.approx(0.03, rel=0.3) and "a third" in reason
    noise = 1 + 0.1 * np.random.default_rng(0).normal(size=121)
    assert finding.pick(rates, noise, finding.smooth(noise))[0] is None
    assert finding.pick(rates[:3], noise[:3], finding.smooth(noise[:3]))[0] is None


def test_smoothing_keeps_straight_lines_in_the_middle() -> None:
    line = np.arange(60.0)
    assert np.allclose(finding.smooth(line)[15:45], line[15:45])
    assert np.allclose(finding.smooth(np.ones(5)), 1)


def test_the_largest_that_fits_is_found_without_trying_what_is_far_larger() -> None:
    for limit in range(1, 70):
        tried: list[int] = []

        def fits(size: int, limit: int = limit, tried: list[int] = tried) -> bool:
            tried.append(size)
            return size <= limit

        assert finding.largest(fits, 2, 50) == min(max(limit, 1), 50)
        assert max(tried) <= max(2, 2 * limit) and len(tried) == len(set(tried)) <= 12


def test_processes_divide_the_samples_and_perhaps_the_weights(data: str, tmp_path: Path) -> None:
    alone, whole, divided = (new_run(data, tmp_path, shard_model=is_divided) for is_divided in (False, False, True))
    for run in (whole, divided):
        run.processes = cast(Any, SimpleNamespace(size=2))
    assert bytes_needed(whole, 40) == bytes_needed(alone, 20) < bytes_needed(alone, 40)
    weights = [bytes_needed(run, 0) for run in (alone, whole, divided)]
    assert weights[0] == weights[1] == 2 * weights[2]
    assert bytes_needed(divided, 40) - weights[2] == bytes_needed(whole, 40) - weights[1]


def test_batches_that_are_too_large_are_noticed(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = new_run(data, tmp_path, samples_per_class=3)
    forward, sizes = type(run.model).forward, []

    def limited(model: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        sizes.append(len(inputs))
        if len(inputs) > 22:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(model, inputs)

    monkeypatch.setattr(type(run.model), "forward", limited)
    size = finding.tried_batch_size(run)
    assert (size.classes, size.samples) == (7, 3) and "does not fit" in size.reason
    assert all(size % 3 == 0 for size in sizes)
    monkeypatch.setattr(finding, "free_memory", lambda: 1)
    with pytest.raises(TrainingError, match="two classes"):
        finding.find_batch_size(run)
    monkeypatch.setattr(finding, "free_memory", lambda: int(bytes_needed(run, 15) / 0.7) + 40)
    assert finding.find_batch_size(run).classes == 5
    with pytest.raises(ConfigError, match="steps"):
        finding.find_learning_rate(run, 5)
    with pytest.raises(TrainingError, match="not enough memory"):
        finding.find_learning_rate(new_run(data, tmp_path, classes_per_batch=12), 20)


def test_the_command_shows_and_writes(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    common = ["--data", data, "--plugins", "ms", "--model", "mlp", "--classes-per-batch", "6"]
    assert main(["find", "lr", *common]) == 0
    first = capsys.readouterr().out
    assert "--learning-rate" in first and "learning-rate.csv" in first
    rows = list(csv.DictReader((tmp_path / "learning-rate.csv").open()))
    assert {"learning_rate", "loss", "smoothed", "rate_trunk", "rate_head"} <= rows[0].keys() and len(rows) > 30
    assert [path.name for path in tmp_path.iterdir()] == ["learning-rate.csv"]  # no run
    assert main(["find", "lr", *common]) == 0 and capsys.readouterr().out == first
    assert main(["find", "batch", *common, "--json"]) == 0
    size = json.loads(capsys.readouterr().out)
    assert size["batch_size"] == size["classes_per_batch"] * size["samples_per_class"] and 0 < size["memory"] < size["limit"]
    assert main(["find", "batch", *common]) == 0 and "--classes-per-batch" in capsys.readouterr().out
    for wrong, told in (
        (["find", "rate", *common], "nothing called 'rate'"),
        (["find", "batch", *common, "--out", "x.csv"], "--out"),
        (["find", "lr", *common, "--steps", "3"], "steps is 3"),
        (["find", "lr", "--plugins", "auto", "--data", data], "auto"),
        (["find", "lr", *common, "--ms.alfa", "3"], "alpha"),
    ):
        assert main(wrong) == 2
        assert told in " ".join(capsys.readouterr().err.split())
