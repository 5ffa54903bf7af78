"""A training on two hosts: two network namespaces that a cable of the kernel joins, with a launcher in each. A process of
one of them dies under way, and both launchers start theirs again."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

SECONDS = 400
ADDRESSES = ("10.77.0.1", "10.77.0.2")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed"),
]


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise PermissionError(done.stderr.strip())


@pytest.fixture
def hosts() -> Iterator[list[tuple[str, str]]]:
    """Two namespaces, and the name of the network device in each."""
    if shutil.which("ip") is None:
        pytest.skip("two hosts need the program `ip`")
    number = os.getpid() % 100000
    names = [(f"dml{number}{letter}", f"d{number}{letter}") for letter in "ab"]
    with contextlib.ExitStack() as stack:
        try:
            for namespace, _ in names:
                ip("netns", "add", namespace)
                stack.callback(ip, "netns", "del", namespace)
            (one, device), (two, other) = names
            ip("link", "add", device, "netns", one, "type", "veth", "peer", "name", other, "netns", two)
            for (namespace, device), address in zip(names, ADDRESSES, strict=True):
                ip("-n", namespace, "addr", "add", f"{address}/24", "dev", device)
                ip("-n", namespace, "link", "set", "lo", "up")
                ip("-n", namespace, "link", "set", device, "up")
        except (PermissionError, subprocess.TimeoutExpired) as error:
            pytest.skip(f"two hosts need the right to make network namespaces: {error}")
        yield names


def test_two_hosts_train_as_one_and_a_dead_process_is_started_again(hosts, tmp_path) -> None:
    draws = np.random.default_rng(0)
    labels = np.repeat(np.arange(24), 8)
    np.savez(tmp_path / "x.npz", x=(draws.normal(size=(24, 8))[labels] + draws.normal(size=(192, 8))).astype("f"), y=labels)
    train = ["dmlcore", "train", "--data", str(tmp_path / "x.npz"), "--steps", "60", "--eval-every", "20"]
    train += ["--classes-per-batch", "5", "--device", "cpu", "--no-report", "--out"]
    jobs = []
    for rank, ((namespace, device), address) in enumerate(zip(hosts, ADDRESSES, strict=True)):
        words = ["ip", "netns", "exec", namespace, sys.executable, "-P", "-m", "torch.distributed.run", "--nnodes", "2"]
        words += ["--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{ADDRESSES[0]}:29400"]
        words += ["--rdzv-conf", f"is_host={1 - rank}", "--rdzv-id", "two", "--local-addr", address]
        words += ["--max-restarts", "1", "-m"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": device}
        line = [*words, *train, str(tmp_path / "two")]
        jobs.append(subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
    try:
        records = tmp_path / "two" / "metrics.jsonl"
        while not (records.exists() and records.read_text().count("\n") > 2):
            assert [job.poll() for job in jobs] == [None, None]
            time.sleep(0.05)
        killed = children(jobs[1].pid)
        assert len(killed) == 1
        os.kill(killed[0], signal.SIGKILL)
        texts = [job.communicate(timeout=SECONDS)[1] for job in jobs]
    finally:
        for job in jobs:
            job.kill()
    assert [job.returncode for job in jobs] == [0, 0], "\n".join(texts)[-3000:]
    told = "".join(texts)
    assert told.count("exitcode: -9") == 1 and told.count("failed (exitcode") <= 2, told[-3000:]  # perhaps the other one
    alone = [sys.executable, "-P", "-m", *train, str(tmp_path / "one")]
    done = subprocess.run(alone, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    two, one = (totals(tmp_path / name) for name in ("two", "one"))
    assert len(one) == 60 and two == pytest.approx(one, rel=1e-5)


def children(process: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def totals(folder: Path) -> list[float]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record["total"] for record in records if record["kind"] == "step"]
