"""The comparison of ensembles with single losses that have the same tricks: its cells, what it does after training, its rules."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[1]))  # last: an installed package stays what is compared

from benchmarks.arms import after, plan, rule, runs
from benchmarks.arms.data import prepare
from benchmarks.arms.plan import ARMS, SINGLES
from benchmarks.defaults.sets import SETS
from dmlcore.training import RunConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tables")
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(24), 8)
    x = (rng.normal(size=(24, 280))[y] + rng.normal(size=(192, 280))).astype(np.float16)
    np.savez(path / "banking77_minilm.npz", x=x, y=y)
    pictures = rng.integers(0, 256, (192, 64, 64, 3), dtype=np.uint8)
    np.savez(path / "emoji_64.npz", x=pictures, y=y)
    return path


def _file(name: str, folder: Path, work: Path) -> str:
    return str(prepare(name, 0, folder, work))


def test_data_are_small_and_disjoint_in_classes(folder: Path, tmp_path: Path) -> None:
    with np.load(_file("emoji pictures", folder, tmp_path)) as arrays:
        assert arrays["x"].shape == (192, 16, 16, 3)
        parts = [set(arrays["y"][arrays["split"] == part]) for part in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [12, 4, 8] and len(set.union(*parts)) == 24


@pytest.mark.parametrize("name", ["emoji pictures", "intents"])
def test_every_cell_is_a_configuration_that_can_be_run(name: str, folder: Path, tmp_path: Path) -> None:
    file, kind = _file(name, folder, tmp_path), SETS[name].kind
    cells = [plan.single(name, kind, loss, 0) for loss in SINGLES]
    for late in (False, True):
        cells += [
            plan.cell(name, kind, arm, system, best, 0)
            for arm in plan.arms_of(kind, late)
            for system in arm.systems
            for best in ("ms", "proxy_nca++")
        ]
    for cell in cells:
        settings = RunConfig.create(data=file, plugins=cell.losses, seed=0, **cell.settings).settings
        width = settings.model.embedding_dim * (len(cell.losses) if settings.ensemble.has_heads else 1)
        assert settings.model.compress == plan.LENGTH and width in (255, 256), cell
    assert {arm.name for late in (False, True) for arm in plan.arms_of("images", late)} == set(ARMS)


def test_a_run_has_what_the_tables_need(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plan.STEPS, "features", 4)
    file = _file("intents", folder, tmp_path)
    row = runs.train_cell(plan.cell("intents", "features", ARMS["plain"], "same", "sup_con", 0), file)
    assert set(row["figures"]) == {"served", "raw", *plan.AFTER} and row["losses"] == ("sup_con",) * 3
    assert 0 < row["figures"]["whitened"]["test"]["MAP@R"] <= 100 and row["cpu_seconds"] > 0
    averaged = runs.train_cell(plan.cell("intents", "features", ARMS["soup"], "default", "proxy_nca++", 0), file)
    assert averaged["trained"] == list(plan.TRIO) and 0 < averaged["figures"]["served"]["test"]["MAP@R"] <= 100


def test_whitening_makes_the_covariance_within_classes_a_multiple_of_the_identity() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(6).repeat_interleave(40)
    scales = torch.tensor([5.0, 1.0, 0.2])
    rows = torch.randn(6, 3, generator=generator)[labels] + torch.randn(240, 3, generator=generator) * scales
    whitening = after.whitener(rows, labels, shrinkage=1e-12)
    white = rows.double() @ whitening
    within = torch.stack([torch.cov(white[labels == c].T, correction=0) for c in range(6)]).mean(0)
    assert torch.allclose(within, torch.eye(3).double(), atol=1e-6)


def test_averaged_weights_are_the_mean() -> None:
    models: list[Any] = [torch.nn.Linear(2, 2) for _ in range(3)]
    mean = torch.stack([model.weight.detach().clone() for model in models]).mean(0)
    assert torch.allclose(after.averaged(models).weight, mean)
