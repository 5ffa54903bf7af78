"""Processes that other launchers than dmlcore's own have started: accelerate, and Slurm's `srun`, whose variables are made by
hand. Their records are those of one process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from test_distributed_training import check_same, command, environment, records, words
from test_shards_training import settings, table  # noqa: F401

from dmlcore import launch
from dmlcore.errors import ConfigError
from dmlcore.training import RunConfig, train

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
SECONDS = 240


def small(table: Path) -> dict[str, Any]:  # noqa: F811
    return {**settings(table), "plugins": "circle,sup_con", "shard_proxies": False, "steps": 12}


@pytest.fixture(scope="module")
def alone(table, tmp_path_factory) -> Path:  # noqa: F811
    folder = tmp_path_factory.mktemp("alone") / "run"
    train(RunConfig.create(**small(table)), out=folder)
    return folder


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return str(probe.getsockname()[1])


def by_slurm(size: int, *line: str) -> list[tuple[int, str]]:
    """Exit status and errors of the tasks that `srun` would start."""
    common = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "localhost", "MASTER_PORT": free_port()}
    common |= {"SLURM_STEP_NUM_TASKS": str(size)}
    tasks = [
        subprocess.Popen(
            command(*line),
            env=environment(**common, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        texts = [task.communicate(timeout=SECONDS)[1] for task in tasks]
    finally:
        for task in tasks:
            task.kill()
    return [(task.returncode, text) for task, text in zip(tasks, texts, strict=True)]


def test_tasks_of_slurm_train_together(table, alone, tmp_path) -> None:  # noqa: F811
    outcomes = by_slurm(2, "--out", str(tmp_path / "run"), *words(small(table)))
    assert [status for status, _ in outcomes] == [0, 0], outcomes
    check_same(tmp_path / "run", alone)


def test_outputs_are_sent_in_half(table, alone, tmp_path) -> None:  # noqa: F811
    """The run is near that of full numbers, and not the same."""
    outcomes = by_slurm(2, "--out", str(tmp_path / "run"), "--transport", "bf16", *words(small(table)))
    assert [status for status, _ in outcomes] == [0, 0], outcomes
    name = ".terms.sup_con"
    ours, theirs = ([record[name] for record in records(folder) if name in record] for folder in (tmp_path / "run", alone))
    assert ours and ours != theirs and ours[0] == pytest.approx(theirs[0], rel=1e-2), (ours, theirs)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("accelerate") is None, reason="accelerate is not installed")
def test_accelerate_launches_processes_that_train_together(table, alone, tmp_path) -> None:  # noqa: F811
    """Its flag for several processes is `--multi_gpu`, also where there is no GPU: `--cpu` starts one."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    line = ["-m", "dmlcore", "train", "--out", str(tmp_path / "run"), *words(small(table))]
    done = subprocess.run([*launcher, *line], env=environment(), capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    check_same(tmp_path / "run", alone)


@pytest.mark.parametrize(
    ("hosts", "first"),
    [("node7", "node7"), ("a1,b2", "a1"), ("node[03-05,09],other", "node03"), ("r[1,4]n[2-3]", "r1n2"), ("n[12]-ib", "n12-ib")],
)
def test_the_first_host_of_a_list(hosts: str, first: str) -> None:
    assert launch.first_host(hosts) == first


def test_whose_word_counts() -> None:
    step = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1"}
    outside = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    cases: list[tuple[dict[str, str], tuple[int, int, int]]] = [
        (step, (3, 8, 1)),
        ({**step, "SLURM_STEP_NUM_TASKS": "1"}, (0, 1, 0)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, (0, 1, 0)),  # the script of sbatch
        ({**step, "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, (1, 2, 1)),  # torchrun in a task
        ({**step, "WORLD_SIZE": "1"}, (0, 1, 0)),  # a task for itself
    ]
    for variables, place in cases:
        with mock.patch.dict(os.environ, {**outside, **variables}, clear=True):
            assert launch.place() == place
    with mock.patch.dict(os.environ, {**outside, **step, "SLURM_PROCID": "x"}, clear=True):
        with pytest.raises(ConfigError, match="SLURM_PROCID is 'x'.* as srun sets it"):
            launch.place()
