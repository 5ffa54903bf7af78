"""`dmlcore train --shard-memory`: the records are those of one process, and checkpoints go on with any number of processes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from test_distributed_training import check_same, run, words
from test_shards_training import MORE, begin_by_two, settings, table, train_alone  # noqa: F401

from dmlcore.training import checkpoints, train

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")


def of_memory(table: Path) -> dict:  # noqa: F811
    """Entries that are replaced from the fourth batch on, divided beside proxies."""
    return {**settings(table), "plugins": "circle,sup_con,norm_softmax", "memory": 53, "memory_warmup": 1, "shard_memory": True}


@pytest.fixture(scope="module")
def alone(table, tmp_path_factory) -> Path:  # noqa: F811
    return train_alone(of_memory(table), tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def begun(table, tmp_path_factory) -> Path:  # noqa: F811
    return begin_by_two(of_memory(table), tmp_path_factory.mktemp("begun"))


def test_two_processes_begin_and_one_goes_on(begun, alone, tmp_path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(begun, folder)
    last = checkpoints.load(folder / "checkpoints", "last")
    assert "queue" not in last["memory"] and ["memory", "queue"] in [place for place, *_ in last["shards"]["tables"]]
    train(resume=folder, steps=MORE)
    check_same(folder, alone)
    assert len(checkpoints.load(folder / "checkpoints", "last")["memory"]["queue"]) == 53


@pytest.mark.slow
def test_three_processes_go_on_with_what_two_or_one_began(begun, alone, tmp_path) -> None:
    for before in (begun, alone.parent / "begun"):
        folder = tmp_path / before.parent.name
        shutil.copytree(before, folder)
        done = run("--resume", str(folder), "--processes", "3", "--steps", str(MORE))
        assert done.returncode == 0, done.stderr
        check_same(folder, alone)


def test_what_cannot_be_divided_is_refused(table, tmp_path) -> None:  # noqa: F811
    for changes, text in (
        ({"memory": 0, "memory_warmup": 0}, "memory is 0"),
        ({"plugins": "histogram"}, "leave shard_memory out"),
    ):
        done = run("--out", str(tmp_path / "run"), *words({**of_memory(table), "shard_proxies": False, **changes}))
        assert done.returncode == 2 and text in done.stderr, done.stderr
