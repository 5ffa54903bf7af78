"""Schedules of the learning rate: each against PyTorch's own, within a run, and exactly gone on with."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interrupting import Stop
from torch.optim import lr_scheduler

from dmlcore import plugins
from dmlcore.cli import main
from dmlcore.errors import ConfigError, Interrupted
from dmlcore.testing import check
from dmlcore.training import RunConfig, checkpoints, schedule, train
from dmlcore.training.building import build_components

NAMES = [entry.name for entry in plugins.registry("schedule").values() if entry.owner == "dmlcore"]
SCORES = [0.1, 0.3, 0.2, 0.3, 0.3, 0.35, 0.1, 0.2, 0.3, 0.1, 0.1, 0.1, 0.9]
RATE = 0.3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "features.npz"
    generator, labels = np.random.default_rng(0), np.repeat(np.arange(24), 6)
    np.savez(path, x=(generator.normal(size=(24, 8))[labels] + generator.normal(size=(144, 8))).astype(np.float32), y=labels)
    return str(path)


def built(name: str, **options: Any) -> schedule.Schedule:
    config = RunConfig.create(schedule=name, **({name: options} if options else {}))
    (component,) = build_components(config, "schedule")
    return component


def of_torch(make: Any, steps: int) -> list[float]:
    """The rates of PyTorch's schedule, relative to `RATE`."""
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)
    scheduler, rates = make(sgd), []
    for _ in range(steps):
        rates.append(sgd.param_groups[0]["lr"] / RATE)
        sgd.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("name", NAMES)
def test_the_contract(name: str) -> None:
    assert {"constant", "cosine", "multi_step", "one_cycle", "plateau"} <= set(NAMES)
    check(plugins.find("schedule", name).component)


@pytest.mark.parametrize(
    "name, options, make",
    [
        ("constant", {}, lambda sgd: lr_scheduler.ConstantLR(sgd, 1.0)),
        ("cosine", {"floor": 0.05}, lambda sgd: lr_scheduler.CosineAnnealingLR(sgd, 60, eta_min=0.05 * RATE)),
        ("multi_step", {"milestones": (7, 30), "gamma": 0.2}, lambda sgd: lr_scheduler.MultiStepLR(sgd, [7, 30], 0.2)),
        ("multi_step", {"every": 9, "gamma": 0.5}, lambda sgd: lr_scheduler.StepLR(sgd, 9, 0.5)),
        ("multi_step", {}, lambda sgd: lr_scheduler.StepLR(sgd, 20, 0.1)),
        ("one_cycle", {}, lambda sgd: lr_scheduler.OneCycleLR(sgd, RATE, 60, cycle_momentum=False)),
        (
            "one_cycle",
            {"rise": 0.4, "start": 0.1, "end": 0.001},
            lambda sgd: lr_scheduler.OneCycleLR(
                sgd, RATE, 60, pct_start=0.4, div_factor=10, final_div_factor=100, cycle_momentum=False
            ),
        ),
    ],
)
def test_a_schedule_is_that_of_pytorch(name: str, options: dict[str, Any], make: Any) -> None:
    own = [schedule.factor(built(name, **options), step, 60, 0) for step in range(60)]
    assert own == pytest.approx(of_torch(make, 60), rel=1e-9, abs=1e-12)


def test_a_plateau_is_that_of_pytorch() -> None:
    own = built("plateau", gamma=0.4, patience=1, threshold=0.02, floor=0.05)
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)
    theirs = lr_scheduler.ReduceLROnPlateau(
        sgd, mode="max", factor=0.4, patience=1, threshold=0.02, threshold_mode="abs", min_lr=0.05 * RATE
    )
    factors = []
    for score in SCORES * 2:
        own.evaluated(score)
        theirs.step(score)
        factors.append(own.factor(0, 100, 0))
        assert factors[-1] == pytest.approx(sgd.param_groups[0]["lr"] / RATE, rel=1e-9)
    assert factors[0] == 1 and factors[-1] == 0.05 and len(set(factors)) > 3


def test_the_rise_is_that_of_pytorch() -> None:
    own = [schedule.factor(built("multi_step", milestones=(20,)), step, 60, 10) for step in range(30)]
    theirs = of_torch(lambda sgd: lr_scheduler.LinearLR(sgd, 0.1, total_iters=9), 30)
    assert own[:20] == pytest.approx(theirs[:20]) and own[20:] == pytest.approx([0.1] * 10)


def test_the_default_is_what_it_was() -> None:
    def before(step: int, steps: int, warmup: int, floor: float = 0.01) -> float:
        warmup = min(warmup, steps // 5)
        if step < warmup:
            return (step + 1) / warmup
        progress = min((step - warmup) / max(steps - warmup, 1), 1.0)
        return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2

    default = build_components(RunConfig(), "schedule")[0] if RunConfig().components else built("cosine")
    for steps in (1, 3, 60, 700):
        for step in range(steps):
            assert schedule.factor(default, step, steps, 50) == before(step, steps, 50)  # bit for bit


def settings(data: str, **values: Any) -> dict[str, Any]:
    common = {"data": data, "plugins": "ms", "steps": 8, "eval_every": 1, "warmup": 2, "classes_per_batch": 4, "report": False}
    return {**common, **values}


def rates(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["learning_rates"]["head"] for line in lines if line["kind"] == "step"]


def test_a_run_follows_its_schedule(data: str, tmp_path: Path) -> None:
    values = settings(data, eval_every=4, schedule="multi_step", learning_rate=0.1, warmup=0, validation="none")
    train(out=tmp_path / "run", **values, multi_step={"milestones": (3, 6), "gamma": 0.5})
    assert rates(tmp_path / "run") == pytest.approx([0.1] * 3 + [0.05] * 3 + [0.025] * 2)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"milestones": (3, 7)}, ""),
        ({"milestones": (3, 8, 90)}, "milestones = 8, 90 lies beyond the 8 steps"),
        ({"every": 8}, "every = 8 lies beyond the 8 steps"),
        ({}, ""),
    ],
)
def test_falls_beyond_the_end_are_told(options: dict[str, Any], told: str, data: str, tmp_path: Path) -> None:
    """A trial of few steps by a recipe is no mistake, so it is a warning."""
    result = train(out=tmp_path / "run", **settings(data, schedule="multi_step", validation="none"), multi_step=options)
    warnings = [text for text in result.get("warnings", []) if "beyond" in text]
    assert len(warnings) == bool(told) and all(told in text for text in warnings)


def test_a_plateau_goes_on_exactly(data: str, tmp_path: Path) -> None:
    values = settings(data, schedule="plateau", learning_rate=0.3, plateau={"patience": 0, "gamma": 0.5})
    train(out=tmp_path / "whole", **values)
    with pytest.raises(Interrupted):
        train(out=tmp_path / "parts", loggers=[Stop(5)], **values)
    train(resume=tmp_path / "parts")
    assert rates(tmp_path / "parts") == rates(tmp_path / "whole") and len(set(rates(tmp_path / "whole"))) > 2
    whole, parts = (checkpoints.load(tmp_path / name / "checkpoints", "last") for name in ("whole", "parts"))
    assert whole["schedule"] == parts["schedule"]
    assert all(torch.equal(value, parts["model"][name]) for name, value in whole["model"].items())


def test_a_run_of_before_goes_on(data: str, tmp_path: Path) -> None:
    """A checkpoint and a file from before there were schedules and validations, also where the file was written anew since."""
    values = settings(data, eval_every=4)
    train(out=tmp_path / "run", **values)
    place = tmp_path / "run" / "checkpoints"
    state = checkpoints.load(place, "last")
    del state["schedule"], state["config"]["schedule"], state["config"]["cosine"], state["config"]["validation"]
    checkpoints.save(place, "last", state)
    train(resume=tmp_path / "run", steps=10)
    assert "schedule" in checkpoints.load(place, "last")


def test_misuse_is_refused(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name, options, told in (
        ("multi_step", {"milestones": (5, 5)}, "must rise"),
        ("multi_step", {"milestones": (5,), "every": 2}, "both given"),
        ("cosine", {"floor": 2}, "floor"),
        ("one_cycle", {"rise": 0}, "rise"),
        ("plateau", {"gamma": 1}, "gamma"),
    ):
        with pytest.raises(ConfigError, match=told):
            RunConfig.create(schedule=name, **{name: options})
    assert main(["train", "--data", data, "--schedule", "plateau", "--validation", "none"]) == 2
    assert "plateau" in capsys.readouterr().err
