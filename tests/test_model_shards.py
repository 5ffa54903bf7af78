"""`--shard-model`: a model that ranks divide trains as it does in one process, and each rank holds its part of it.
`model_shard_ranks.py` is the program of each rank."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from launched import outcomes_of_ranks
from test_distributed_training import check_same, run
from test_shards_training import MORE, begin_by_two, table, train_alone  # noqa: F401
from test_shards_training import settings as settings_of_proxies

import dmlcore
from dmlcore.errors import ConfigError
from dmlcore.models import build_model
from dmlcore.training import RunConfig, checkpoints, train
from dmlcore.training.model_shards import ModelShards

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
LIMITS = {"float64": 1e-9, "float32": 1e-6}


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_ranks_train_as_one_process(size: int, tmp_path: Path) -> None:
    first, *others = ranks = outcomes_of_ranks(size, tmp_path, "model_shard_ranks.py")
    for case in ("sgd float64", "sgd float32", "adamw float64", "adamw float32"):
        alone, limit = first[f"{case} alone"], LIMITS[case.split()[1]]
        assert first[case]["weights"].keys() == alone["weights"].keys() and alone["has_state"]
        for name, weight in alone["weights"].items():
            assert float((first[case]["weights"][name] - weight).abs().max()) <= limit * float(weight.abs().max()), (case, name)
        for rank in ranks:
            torch.testing.assert_close(rank[case]["norms"], alone["norms"], rtol=limit, atol=0)
        assert not any(rank[case]["weights"] for rank in others)
        # no rank has more than its part: rows of each tensor rounded up, and what every rank has whole
        assert max(rank[case]["held"] for rank in ranks) < 1.4 * alone["held"] / size + 10
        numbers = sum(rank[case]["held"] for rank in ranks)
        assert alone["held"] <= numbers <= alone["held"] + 4 * (size - 1)


def settings(table: Path) -> dict[str, Any]:  # noqa: F811
    """Weights with a running average and a momentum beside them, in a model with hidden units and batch statistics."""
    return {
        **settings_of_proxies(table),
        "shard_proxies": False,
        "shard_model": True,
        "plugins": "norm_softmax,ms",
        "weighting": "fixed",
        "model": "mlp",
        "head_norm": "batch",
        "head": "mlp",
        "optimizer": "sgd",
        "average": 0.8,
        "compress": 8,
        "embedding_dim": 12,
        "gradient_checkpointing": False,
    }


@pytest.mark.slow
def test_two_processes_begin_and_others_go_on(table, tmp_path) -> None:  # noqa: F811
    alone, begun = train_alone(settings(table), tmp_path / "alone"), begin_by_two(settings(table), tmp_path / "begun")
    last, best = (checkpoints.load(begun / "checkpoints", name) for name in ("last", "best"))
    whole = checkpoints.load(alone / "checkpoints", "last")
    assert last["model"].keys() == best["model"].keys() == whole["model"].keys()
    assert {place[0] for place, *_ in last["shards"]["tables"]} == {"trained", "optimiser"}
    assert not any(name.endswith("weight") for name in last["trained"])
    for name in ("best", "last"):
        model = dmlcore.load(str(begun), checkpoint=name)
        assert model.encode(torch.randn(3, 16).numpy()).shape == (3, 8)
    shutil.copytree(begun, tmp_path / "run")
    train(resume=tmp_path / "run", steps=MORE)
    check_same(tmp_path / "run", alone)
    assert not checkpoints.load(tmp_path / "run" / "checkpoints", "last").get("shards")
    for before, flag in ((begun, "--no-shard-model"), (alone.parent / "begun", "--shard-model")):
        folder = tmp_path / f"three{flag}"
        shutil.copytree(before, folder)
        done = run("--resume", str(folder), "--processes", "3", flag, "--steps", str(MORE))
        assert done.returncode == 0, done.stderr
        check_same(folder, alone)


@pytest.mark.parametrize(
    "values, told",
    [
        ({"precision": "fp16"}, "shard_model does not go with precision fp16"),
        ({"compile": True}, "shard_model does not go with compile"),
        ({"channels_last": True}, "shard_model does not go with channels_last"),
        ({"optimizer": "sam"}, "shard_model does not go with the optimizer 'sam'"),
    ],
)
def test_what_does_not_go_together_is_refused(values, told, table, tmp_path) -> None:  # noqa: F811
    with pytest.raises(ConfigError, match=told):
        train(RunConfig.create(**{**settings(table), **values}), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "error, is_of_all", [(NotImplementedError("no such layer"), True), (torch.OutOfMemoryError("too large"), False)]
)
def test_a_model_that_cannot_be_divided(error, is_of_all, monkeypatch) -> None:
    def refuse(*_: Any) -> None:
        raise error

    monkeypatch.setattr(ModelShards, "_divide", refuse)
    model = build_model("mlp", sample_shape=(4,), kind="features", embedding_dim=3)
    with pytest.raises(ConfigError, match=rf"the model 'mlp' cannot be divided \({error}\)") as caught:
        ModelShards(model, cast(Any, SimpleNamespace(size=2)), torch.zeros(1, 4))
    assert caught.value.is_of_all == is_of_all
