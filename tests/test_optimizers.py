"""Optimizers: each keeps its contract, SAM steps as its paper says, and nothing of its second pass stays."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dmlcore import plugins
from dmlcore.cli import main
from dmlcore.errors import ConfigError, PluginError
from dmlcore.testing import check
from dmlcore.training import Optimizer, RunConfig, train, uncompiled
from dmlcore.training.climbing import Climb
from dmlcore.training.folder import RunFolder
from dmlcore.training.passage import Passage
from dmlcore.training.run import Run
from dmlcore.training.step import take_step

NAMES = [entry.name for entry in plugins.registry("optimizer").values() if entry.owner == "dmlcore"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "features.npz"
    generator, labels = np.random.default_rng(0), np.repeat(np.arange(24), 6)
    np.savez(path, x=(generator.normal(size=(24, 9))[labels] + generator.normal(size=(144, 9))).astype(np.float32), y=labels)
    return str(path)


def settings(data: str, **values: Any) -> dict[str, Any]:
    common = {"data": data, "plugins": "ms,proxy_anchor", "steps": 6, "eval_every": 3, "model": "mlp", "classes_per_batch": 6}
    return {**common, "report": False, **values}


def new_run(data: str, folder: Path, **values: Any) -> Run:
    return Run(RunConfig.create(**settings(data, **values)), RunFolder(folder))


@pytest.mark.parametrize("name", NAMES)
def test_the_contract(name: str) -> None:
    assert {"adamw", "adam", "sgd", "rmsprop", "sam"} <= set(NAMES)
    check(plugins.find("optimizer", name).component)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD, torch.optim.RMSprop])
def test_optimisers_without_the_graph_compiler(kind: type[torch.optim.Optimizer]) -> None:
    results = []
    for made in (kind, uncompiled(kind)):
        weights = [nn.Parameter(torch.linspace(-1, 1, 6))]
        optimiser = made(weights, lr=0.1)
        calls: list[Any] = []
        optimiser.register_step_post_hook(lambda *arguments, calls=calls: calls.append(arguments))
        for _ in range(3):
            optimiser.zero_grad()
            weights[0].square().sum().backward()
            optimiser.step()
        optimiser.load_state_dict(copy.deepcopy(optimiser.state_dict()))
        assert isinstance(optimiser, kind) and len(calls) == 3 and weights[0].requires_grad
        results.append((weights[0].detach(), repr(optimiser)))
    assert torch.equal(results[0][0], results[1][0]) and results[0][1] == results[1][1]
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):  # this PyTorch is one of those known
        assert getattr(uncompiled(kind), name).__globals__["__name__"] == "torch.optim.optimizer"


def test_options_are_checked() -> None:
    for name, values, told in (
        ("sam", {"rho": 0}, "rho"),
        ("adamw", {"betas": "0.9"}, "betas"),
        ("adamw", {"betas": "0.9,1"}, "betas"),
        ("sgd", {"momentum": 0.0, "nesterov": True}, "nesterov"),
    ):
        with pytest.raises(ConfigError, match=told):
            RunConfig.create(optimizer=name, **{name: values})
    with pytest.raises(ConfigError, match="Did you mean 'rmsprop'"):
        RunConfig.create(optimizer="rmsprob")


def _sharpness_aware_step(w: Any, gradient: Any, rho: float, rate: float, adaptive: bool, eta: float = 0.01) -> Any:
    """The paper's formulas in numpy: the weights after one step of gradient descent."""
    g = gradient(w)
    if adaptive:
        t = np.abs(w) + eta
        e = rho * t * t * g / np.sqrt(((t * g) ** 2).sum())
    else:
        e = rho * g / np.sqrt((g**2).sum())
    return w - rate * gradient(w + e)


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_step_of_sam_is_that_of_the_paper(adaptive: bool) -> None:
    generator = np.random.default_rng(0)
    a, b, start = generator.normal(size=(12, 7)), generator.normal(size=12), generator.normal(size=7)

    def gradient(w: Any) -> Any:  # of sum(log(cosh(a w - b)))
        return a.T @ np.tanh(a @ w - b)

    sam = plugins.find("optimizer", "sam").component
    optimizer = sam(sam.Options(rho=0.3, adaptive=adaptive, base="sgd", momentum=0.0))
    weights = nn.Parameter(torch.tensor(start))
    group = {"role": "trunk", "params": [weights], "lr": 0.1, "base_rate": 0.1, "weight_decay": 0.0}
    model = nn.Module()
    run: Any = SimpleNamespace(
        optimizer=optimizer,
        optimiser=optimizer.build([group]),
        passage=Passage(model, torch.device("cpu")),  # type: ignore[arg-type]
        model=model,
        ensemble=nn.Module(),
        memory=None,
    )

    def backward() -> None:
        torch.log(torch.cosh(torch.tensor(a) @ weights - torch.tensor(b))).sum().backward()

    expected = start
    for _ in range(3):
        climb = Climb(run)
        run.optimiser.zero_grad()
        backward()
        before = weights.detach().clone()
        assert climb.begin()
        assert not torch.equal(weights, before)
        with climb:
            backward()
        assert torch.equal(weights.detach(), before)  # exactly where it was
        run.optimiser.step()
        expected = _sharpness_aware_step(expected, gradient, 0.3, 0.1, adaptive)
        assert np.abs(weights.detach().numpy() - expected).max() < 1e-10


def _state(run: Run) -> dict[str, torch.Tensor]:
    buffers = {f"model.{name}": buffer for name, buffer in run.model.named_buffers()}
    buffers |= {f"ensemble.{name}": buffer for name, buffer in run.ensemble.named_buffers()}
    memory = {} if run.memory is None else {f"memory.{name}": value for name, value in run.memory.memory_state().items()}
    return copy.deepcopy({**buffers, **memory, "random": torch.get_rng_state()})


@pytest.mark.parametrize(
    "values",
    [
        {"plugins": "ms,proxy_anchor"},
        {"accumulate": 3},
        {"memory": 48, "weighting": "fixed", "mlp": {"dropout": 0.3}},
        {"plugins": "ms,triplet", "weighting": "dynamic_average", "clip": 0.01, "precision": "bf16"},
    ],
)
def test_of_the_second_pass_only_the_gradient_stays(data: str, tmp_path: Path, values: dict[str, Any]) -> None:
    runs = [new_run(data, tmp_path, optimizer=name, **values) for name in ("adamw", "sam")]
    states, records = [], []
    for run in runs:
        torch.manual_seed(3)
        records.append(take_step(run, *next(run.batches())))
        states.append(_state(run))
    assert records[0].total == records[1].total and records[0].terms == records[1].terms
    assert records[0].gradient_norms != records[1].gradient_norms
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key


def test_batch_statistics_move_once(tmp_path: Path) -> None:
    common: dict[str, Any] = {"data": "glyphs", "image_size": 16, "plugins": "ms", "classes_per_batch": 4, "model": "conv"}
    runs = []
    for name in ("adamw", "sam"):
        run = Run(RunConfig.create(**common, optimizer=name, conv={"channels": "4,8", "norm": "batch"}), RunFolder(tmp_path))
        take_step(run, *next(run.batches()))
        runs.append(run)
    statistics = [dict(run.model.named_buffers()) for run in runs]
    assert any("running_mean" in name for name in statistics[0])
    assert all(torch.equal(value, statistics[1][name]) for name, value in statistics[0].items())


def test_a_step_is_taken_with_the_second_gradient(data: str, tmp_path: Path) -> None:
    run = new_run(data, tmp_path, optimizer="sam", sam={"base": "sgd", "momentum": 0.0, "rho": 0.2}, clip="none", warmup=0)
    other = new_run(data, tmp_path, optimizer="sgd", clip="none", warmup=0, weighting="equal_gradient_norms")
    inputs, labels = next(run.batches())
    model, losses = other.model.train(), other.ensemble.train()
    weights = [p for p in model.parameters() if p.requires_grad]

    def gradients() -> list[torch.Tensor]:
        return list(torch.autograd.grad(losses(model.losses_part(model(inputs)), labels), weights, allow_unused=True))

    before = copy.deepcopy(losses.state_dict())
    first = gradients()
    norm = torch.cat([g.flatten() for g in first if g is not None]).norm()
    start = [p.detach().clone() for p in weights]
    with torch.no_grad():
        for p, g in zip(weights, first, strict=True):
            p += 0 if g is None else 0.2 * g / norm
    losses.load_state_dict(before)
    second = gradients()
    record = take_step(run, inputs, labels)
    rate = record.learning_rates["trunk"]
    decay = run.config.settings.optimiser.weight_decay
    own = [p for p in run.model.parameters() if p.requires_grad]
    for p, w, g in zip(own, start, second, strict=True):
        expected = w - rate * ((0 if g is None else g) + decay * w)
        torch.testing.assert_close(p.detach(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["sam", "sgd", "rmsprop"])
def test_a_run_goes_on_exactly(data: str, tmp_path: Path, name: str) -> None:
    values = settings(data, optimizer=name, mlp={"dropout": 0.2}, learning_rate=0.01)
    whole = train(**values, out=tmp_path / "whole")
    cut = train(**{**values, "steps": 3}, out=tmp_path / "cut")
    assert cut["steps_done"] == 3
    first = train(**values, out=tmp_path / "again")
    assert first["metrics"] == whole["metrics"]
    # A checkpoint of the middle, as an interruption leaves it.
    (tmp_path / "again" / "result.json").unlink()
    (tmp_path / "again" / "checkpoints" / "last.pt").unlink()
    resumed = train(resume=tmp_path / "again", checkpoint="previous")
    assert resumed["metrics"] == whole["metrics"]


def test_float16_steps_and_overflows(data: str, tmp_path: Path) -> None:
    run = new_run(data, tmp_path, optimizer="sam", precision="fp16")
    before = [p.detach().clone() for p in run.model.parameters()]
    stream = run.batches()
    run.passage.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)  # larger than float16 bears
    record = take_step(run, *next(stream))
    assert record.is_skipped and all(torch.equal(p, b) for p, b in zip(run.model.parameters(), before, strict=True))
    run.passage.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    record = take_step(run, *next(stream))
    assert not record.is_skipped and not all(torch.equal(p, b) for p, b in zip(run.model.parameters(), before, strict=True))


def test_optimizers_that_break_their_contract(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sgd, sam = (plugins.find("optimizer", name).component for name in ("sgd", "sam"))
    monkeypatch.setattr(sgd, "build", lambda self, groups: torch.optim.SGD(groups[0]["params"]))
    with pytest.raises(PluginError, match="over the groups"):
        new_run(data, tmp_path, optimizer="sgd")
    monkeypatch.setattr(sam, "perturbation", lambda self, parameters: [])
    run = new_run(data, tmp_path, optimizer="sam")
    with pytest.raises(PluginError, match="perturbation"):
        take_step(run, *next(run.batches()))
    with pytest.raises(NotImplementedError, match="build"):
        Optimizer().build([])


def test_the_command(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--data", data, "--plugins", "ms", "--steps", "2", "--out", str(tmp_path / "run")]
    assert main([*words, "--optimizer", "sam", "--sam.rho", "0.1", "--sam.adaptive"]) == 0
    config = RunConfig.read(tmp_path / "run" / "config.toml")
    assert config.options["sam"]["rho"] == 0.1 and config.options["sam"]["adaptive"] is True
    assert main(["train", "--data", data, "--sam.rho", "0.1"]) == 2
    assert "not selected" in capsys.readouterr().err
