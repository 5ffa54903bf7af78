"""`dmlcore train --shard-proxies`: the records are those of one process, and checkpoints go on with any number of processes."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_distributed_training import check_same, run, words

import dmlcore
from dmlcore.errors import TrainingError
from dmlcore.training import RunConfig, checkpoints, train

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
STEPS, MORE = 6, 12


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """Features of 27 classes, so that the classes of 2 and 4 processes are of different numbers."""
    draws = np.random.default_rng(0)
    labels = np.repeat(np.arange(27), 8)
    x = draws.normal(size=(27, 16))[labels] + draws.normal(size=(216, 16)) * 0.5
    path = tmp_path_factory.mktemp("data") / "table.npz"
    np.savez(path, x=x.astype(np.float32), y=labels)
    return path


class Planted:
    """Makes a folder where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def settings(table: Path) -> dict[str, Any]:
    return {
        "data": str(table),
        "plugins": "norm_softmax,proxy_anchor,ms",
        "shard_proxies": True,
        "schedule": "constant",
        "clip": 0.5,
        "classes_per_batch": 5,
        "samples_per_class": 3,
        "learning_rate": 0.01,
        "steps": STEPS,
        "eval_every": 3,
        "log_every": 2,
        "report": False,
        "device": "cpu",
    }


def train_alone(values: dict[str, Any], place: Path) -> Path:
    """All steps by one process in `run`; `begun` has the first ones."""
    folder = place / "run"
    train(RunConfig.create(**values), out=folder)
    shutil.copytree(folder, place / "begun")
    train(resume=folder, steps=MORE)
    return folder


def begin_by_two(values: dict[str, Any], place: Path) -> Path:
    """The first steps by two processes."""
    done = run("--out", str(place / "run"), "--processes", "2", *words(values))
    assert done.returncode == 0, done.stderr
    return place / "run"


@pytest.fixture(scope="module")
def alone(table, tmp_path_factory) -> Path:
    return train_alone(settings(table), tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def begun(table, tmp_path_factory) -> Path:
    return begin_by_two(settings(table), tmp_path_factory.mktemp("begun"))


def test_two_processes_begin_and_one_goes_on(begun, alone, tmp_path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(begun, folder)
    last, best = (checkpoints.load(folder / "checkpoints", name) for name in ("last", "best"))
    assert last["shards"]["tables"] and not any("proxies" in name for name in (*last["ensemble"], *best["ensemble"]))
    assert len(list((folder / "checkpoints").glob("shards-*"))) == 2  # of `last`, and of the one before
    assert dmlcore.load(str(folder)).step == best["step"]  # which needs none of them
    for shards in (folder / "checkpoints").glob("shards-*"):  # where PyTorch's own reader would open it, and run what it says
        (shards / ".metadata").write_bytes(pickle.dumps(Planted(tmp_path / "planted")))
    train(resume=folder, steps=MORE)
    check_same(folder, alone)
    assert not (tmp_path / "planted").exists()
    assert not checkpoints.load(folder / "checkpoints", "last").get("shards")


def test_a_damaged_shard_is_told(begun, tmp_path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(begun, folder)
    shards = folder / "checkpoints" / checkpoints.load(folder / "checkpoints", "last")["shards"]["folder"]
    file = sorted(shards.iterdir())[1]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(TrainingError, match=rf"{file.name} is damaged or missing. .*--checkpoint previous"):
        train(resume=folder, steps=MORE)
    shutil.rmtree(shards)  # then the one before it is the newest that is whole
    assert checkpoints.load_newest(folder / "checkpoints", lambda text: None)["step"] == STEPS - 3  # type: ignore[index]


@pytest.mark.slow
def test_four_processes_go_on_with_what_two_or_one_began(begun, alone, tmp_path) -> None:
    for before in (begun, alone.parent / "begun"):
        folder = tmp_path / before.name
        shutil.copytree(before, folder)
        done = run("--resume", str(folder), "--processes", "4", "--steps", str(MORE))
        assert done.returncode == 0, done.stderr
        check_same(folder, alone)


@pytest.mark.slow
def test_losses_without_proxies_are_refused(table, tmp_path) -> None:
    done = run("--out", str(tmp_path / "run"), "--processes", "2", *words({**settings(table), "plugins": "ms"}))
    assert done.returncode == 2 and "there is none; leave it out" in done.stderr
