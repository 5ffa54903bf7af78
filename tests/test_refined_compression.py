"""A compressor that chooses its map at the end of a run: by which data, what is written, and what a run that goes on does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dmlcore.evaluation import evaluating
from dmlcore.plugins import registry
from dmlcore.serving import TrainedRun
from dmlcore.training import checkpoints, train

SETTINGS: dict[str, Any] = {"plugins": "ms", "model": "mlp", "head_start": "random", "embedding_dim": 16, "compress": 4}
SETTINGS |= {"compressor": "pca_or_wccn", "steps": 6, "eval_every": 3, "device": "cpu", "report": False}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Classes differ in few numbers, and samples of a class in many with a larger variance, which whitening within classes
    finds."""
    file, draws = tmp_path_factory.mktemp("data") / "x.npz", np.random.default_rng(0)
    labels = np.repeat(np.arange(40), 8)
    noise = draws.normal(size=(320, 12)) * np.linspace(0.2, 3, 12)
    np.savez(file, x=(draws.normal(size=(40, 12))[labels] + noise).astype("f"), y=labels)
    return str(file)


def map_of(model: Any) -> torch.Tensor:
    return torch.cat([model.compressor.mean[None], model.compressor.axes])


@pytest.mark.parametrize("is_repeated", [False, True], ids=["once", "ended twice"])
def test_validation_chooses_and_the_best_checkpoint_has_the_choice(is_repeated: bool, data: str, tmp_path: Path) -> None:
    result = train(out=tmp_path / "run", data=data, **SETTINGS)
    if is_repeated:  # as when it is killed after the checkpoint was written
        (tmp_path / "run" / "result.json").unlink()
        again = train(resume=tmp_path / "run")
        assert again["compression"] == result["compression"] and again["metrics"] == result["metrics"]
    run = TrainedRun(tmp_path / "run", device="cpu")
    splits, scores = run.open(), {}
    train_rows, rows = (
        evaluating.embed_named(run.model, part, only="whole")["whole"] for part in (splits.train, splits.validation)
    )
    maps = {}
    for name, options in (("pca", {}), ("wccn", {"shrinkage": 0.3})):
        own = registry("compressor")[name].component(16, 4, **options)
        own.fit(run.model.compressible(train_rows), torch.from_numpy(splits.train.labels))
        narrow = torch.nn.functional.normalize(own(run.model.compressible(rows)))
        scores[name], maps[name] = (
            evaluating.evaluate(narrow, splits.validation)["map@r"],
            torch.cat([own.mean[None], own.axes]),
        )
    chosen = max(scores, key=lambda name: scores[name])
    assert chosen == "wccn" and result["compression"] == pytest.approx(scores) and next(iter(result["compression"])) == chosen
    torch.testing.assert_close(map_of(run.model), maps[chosen])
    assert result["metrics"]["validation"]["map@r"] == pytest.approx(scores[chosen])
    measured = evaluating.evaluate_model(run.model, splits.test)
    assert measured["map@r"] == pytest.approx(result["metrics"]["test"]["map@r"])
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["best.pt", "last.pt", "previous.pt"]


def test_a_run_that_goes_on_trains_as_if_it_had_not_ended(data: str, tmp_path: Path) -> None:
    train(out=tmp_path / "whole", data=data, **SETTINGS)
    train(out=tmp_path / "parts", data=data, **{**SETTINGS, "steps": 3, "schedule": "constant"})
    train(resume=tmp_path / "parts", steps=6)
    train(out=tmp_path / "constant", data=data, **{**SETTINGS, "schedule": "constant"})
    for name in ("best", "last"):
        one, two = (checkpoints.load(tmp_path / run / "checkpoints", name)["model"] for run in ("constant", "parts"))
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_without_validation_it_is_pca(data: str, tmp_path: Path) -> None:
    result = train(out=tmp_path / "run", data=data, **{**SETTINGS, "validation": "none"})
    plain = train(out=tmp_path / "plain", data=data, **{**SETTINGS, "validation": "none", "compressor": "pca"})
    assert "compression" not in result and result["metrics"]["test"] == plain["metrics"]["test"]
