"""Gradient checkpointing and channels-last: the same gradients and batch statistics, with less memory or another layout."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from dmlcore.cli import main
from dmlcore.errors import ConfigError
from dmlcore.training import RunConfig
from dmlcore.training.folder import RunFolder
from dmlcore.training.memory_needed import bytes_needed
from dmlcore.training.run import Run
from dmlcore.training.step import take_step

COMMON: dict[str, Any] = {"data": "glyphs", "plugins": "ms", "classes_per_batch": 4, "learning_rate": 0.01, "optimizer": "sgd"}
TRUNKS: dict[str, dict[str, Any]] = {
    "conv": {"image_size": 16, "conv": {"channels": "4,8"}},
    "torchvision/resnet18": {"image_size": 32, "torchvision": {"weights": "none"}},
    "torchvision/mobilenet_v3_small": {"image_size": 32, "torchvision": {"weights": "none"}},
    "timm/resnet10t": {"image_size": 32, "timm": {"weights": "none"}},
}


def new_run(folder: Path, model: str, **values: Any) -> Run:
    if model.startswith("timm"):
        pytest.importorskip("timm", reason="the trunk is timm's")
    return Run(RunConfig.create(**{**COMMON, "model": model, **TRUNKS[model], **values}), RunFolder(folder))


def step(run: Run) -> tuple[float, list[torch.Tensor]]:
    torch.manual_seed(1)
    record = take_step(run, *next(run.batches()))
    return record.total, [value.clone() for value in run.model.state_dict().values()]


@pytest.mark.parametrize("model, more", [(model, {}) for model in TRUNKS] + [("conv", {"accumulate": 2, "average": 0.9})])
def test_a_step_is_the_same_with_checkpoints(tmp_path: Path, model: str, more: dict[str, Any]) -> None:
    plain, saving = (new_run(tmp_path, model, gradient_checkpointing=on, **more) for on in (False, True))
    assert list(plain.model.state_dict()) == list(saving.model.state_dict())
    (total, weights), (again, others) = step(plain), step(saving)
    assert total == again
    for one, other in zip(weights, others, strict=True):  # also the statistics, which are updated once
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert bytes_needed(saving, 64) < bytes_needed(plain, 64)


def test_copies_of_a_network_with_checkpoints_are_their_own(tmp_path: Path) -> None:
    run = new_run(tmp_path, "torchvision/resnet18", gradient_checkpointing=True)
    other = copy.deepcopy(run.model).eval()
    images = torch.rand(2, *run.splits.sample_shape)
    before = other(images)
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.zero_()
    assert torch.equal(other(images), before)


@pytest.mark.parametrize("model", ["conv", "torchvision/resnet18"])
def test_channels_last_changes_the_layout_only(tmp_path: Path, model: str) -> None:
    plain, last = new_run(tmp_path, model), new_run(tmp_path, model, channels_last=True)
    convolution = next(m for m in last.model.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size != (1, 1))
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
    (total, weights), (again, others) = step(plain), step(last)
    assert again == pytest.approx(total, rel=1e-4)
    for one, other in zip(weights, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    assert next(last.batches())[0].is_contiguous(memory_format=torch.channels_last)


def test_trunks_without_checkpoints_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="no gradient checkpointing"):
        settings = {**COMMON, "image_size": 16, "model": "identity", "gradient_checkpointing": True}
        Run(RunConfig.create(**settings), RunFolder(tmp_path))
    words = ["train", "--data", "glyphs", "--image-size", "16", "--plugins", "ms", "--steps", "2", "--conv.channels", "4,8"]
    out = str(tmp_path / "run")
    assert main([*words, "--gradient-checkpointing", "--channels-last", "--model", "conv", "--out", out]) == 0
    assert RunConfig.read(tmp_path / "run" / "config.toml").settings.model.gradient_checkpointing
    assert main(["eval", out]) == 0 and "MAP@R" in capsys.readouterr().out
