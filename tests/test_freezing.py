"""Frozen stages of the trunk and frozen normalisation of batches: nothing of them moves, whatever calls `train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interrupting import Stop
from torch import nn

from dmlcore.errors import ConfigError, Interrupted
from dmlcore.models.stages import stages_of
from dmlcore.training import RunConfig, checkpoints, train
from dmlcore.training.folder import RunFolder
from dmlcore.training.run import Run
from dmlcore.training.step import take_step

BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "pictures.npz"
    generator, labels = np.random.default_rng(0), np.repeat(np.arange(12), 6)
    np.savez(path, x=generator.integers(0, 255, (72, 16, 16), dtype=np.uint8), y=labels)
    return str(path)


def settings(data: str, **values: Any) -> dict[str, Any]:
    common = {"data": data, "plugins": "ms", "steps": 6, "eval_every": 2, "classes_per_batch": 4, "model": "conv"}
    return {**common, "conv": {"channels": (4, 6, 8, 8)}, "compress": 0, "embedding_dim": 6, "report": False, **values}


def new_run(data: str, folder: Path, **values: Any) -> Run:
    return Run(RunConfig.create(**settings(data, **values)), RunFolder(folder))


def copy_of(run: Run) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run.model.state_dict().items()}


def take_steps(run: Run, count: int = 3) -> None:
    batches = run.batches()
    for _ in range(count):
        take_step(run, *next(batches), factor=1.0)


VARIANTS = [{}, {"gradient_checkpointing": True}, {"average": 0.5}, {"accumulate": 2}, {"optimizer": "sam"}]


@pytest.mark.parametrize("extra", VARIANTS, ids=[next(iter(extra), "plain") for extra in VARIANTS])
@pytest.mark.parametrize("frozen", ["statistics", "all"])
def test_normalisation_stays(frozen: str, extra: dict[str, Any], pictures: str, tmp_path: Path) -> None:
    run = new_run(pictures, tmp_path, freeze_norm=frozen, weight_decay=0.1, learning_rate=0.01, **extra)
    layers = [layer for layer in run.model.trunk.modules() if isinstance(layer, BATCH_NORM)]
    assert len(layers) == 4
    with torch.no_grad():
        for layer in layers:  # statistics that differ from those of any batch
            layer.running_mean.fill_(-0.1)
            layer.running_var.fill_(1.7)
    before = copy_of(run)
    run.model.train()
    run.model.trunk.train()
    take_steps(run)
    assert not any(layer.training for layer in layers)
    names = {id(value): name for name, value in run.model.named_parameters()}
    for layer in layers:
        assert (layer.running_mean == -0.1).all() and (layer.running_var == 1.7).all() and layer.num_batches_tracked == 0
        for p in (layer.weight, layer.bias):
            assert torch.equal(p.detach(), before[names[id(p)]]) == (frozen == "all")
            assert (p.grad is None) == (frozen == "all")
    moved = [name for name, value in copy_of(run).items() if not torch.equal(value, before[name])]
    assert any("blocks" in name for name in moved) and any("head" in name for name in moved)
    # In training the trunk computes what it computes in an evaluation.
    x = torch.rand(5, 1, 16, 16)
    torch.testing.assert_close(run.model.train().trunk(x), run.model.eval().trunk(x))


@pytest.mark.parametrize("extra", VARIANTS, ids=[next(iter(extra), "plain") for extra in VARIANTS])
@pytest.mark.parametrize("trainable", [0, 1, 3])
def test_only_the_last_stages_train(trainable: int, extra: dict[str, Any], pictures: str, tmp_path: Path) -> None:
    if trainable == 0 and "gradient_checkpointing" in extra:
        pytest.skip("the same as without: nothing of the trunk is computed again")
    run = new_run(pictures, tmp_path, trainable_stages=trainable, weight_decay=0.1, learning_rate=0.01, **extra)
    stages = [{id(p) for p in stage.parameters()} for stage in stages_of(run.model.trunk)]
    assert len(stages) == 4
    before = copy_of(run)
    take_steps(run)
    frozen = set().union(*stages[: 4 - trainable])
    grouped = {id(p) for group in run.optimiser.param_groups for p in group["params"]}
    for name, p in run.model.named_parameters():
        assert torch.equal(p.detach(), before[name]) == (id(p) in frozen), name
        assert (p.grad is None) == (id(p) in frozen) and (id(p) in grouped) == (id(p) not in frozen)
    for name, buffer in run.model.trunk.named_buffers():
        number = next(n for n, layer in enumerate(normalisations(run)) if any(b is buffer for b in layer.buffers()))
        assert torch.equal(buffer, before[f"trunk.{name}"]) == (number < 4 - trainable), name
    if run.averaged is not None:
        after = run.averaged.model.state_dict()
        assert all(torch.equal(after[n], before[n]) for n, p in run.model.named_parameters() if id(p) in frozen)


def normalisations(run: Run) -> list[nn.Module]:
    return [layer for layer in run.model.trunk.modules() if isinstance(layer, BATCH_NORM)]


def test_a_run_with_frozen_parts_goes_on_exactly(pictures: str, tmp_path: Path) -> None:
    values = settings(pictures, trainable_stages=2, freeze_norm="statistics", freeze=2, average=0.9, layer_decay=0.7)
    train(out=tmp_path / "whole", **values)
    with pytest.raises(Interrupted):
        train(out=tmp_path / "parts", loggers=[Stop(3)], **values)
    train(resume=tmp_path / "parts")
    whole, parts = (checkpoints.load(tmp_path / name / "checkpoints", "last") for name in ("whole", "parts"))
    for key in ("model", "trained"):
        assert all(torch.equal(value, parts[key][name]) for name, value in whole[key].items())


def test_misuse_is_refused(pictures: str, tmp_path: Path) -> None:
    for values, told in (
        ({"trainable_stages": 5}, "has 4 stages"),
        ({"freeze_norm": "all", "conv": {"norm": "none"}}, "no BatchNorm"),
        (
            {"recipe": "oodml_ms", "npz": {"crops": "square"}, "conv": {"norm": "none"}},
            "as the recipe 'oodml_ms' may say, but the model 'conv'",
        ),
        ({"head": "none", "embedding_dim": "none", "trainable_stages": 0}, "nothing of the model"),
    ):
        with pytest.raises(ConfigError, match=told):
            new_run(pictures, tmp_path, **values)
