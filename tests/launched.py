"""The processes that a launcher or a test has started."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

TESTS = Path(__file__).parent
SECONDS = 240  # that ranks may take


def processes_of(parent: int) -> list[int]:
    """The processes that a launcher has started, by their rank."""
    children: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        try:
            text, env = (entry / "stat").read_text(), (entry / "environ").read_bytes()
        except (OSError, ValueError):
            continue
        if entry.name.isdigit() and int(text.rpartition(")")[2].split()[1]) == parent and b"LOCAL_RANK=" in env:
            children[int(env.split(b"LOCAL_RANK=")[1].split(b"\0")[0])] = int(entry.name)
    return [children[rank] for rank in sorted(children)]


def check_refusals(outcomes: list[dict[str, Any]], words: dict[str, str] | dict[str, tuple[str, ...]]) -> None:
    """Every rank refused what it should, in a line that has the words for it: by case, for all ranks or one for each."""
    for rank, outcome in enumerate(outcomes):
        assert set(outcome["refusals"]) == set(words)
        for name, text in outcome["refusals"].items():
            expected = words[name]
            assert (expected if isinstance(expected, str) else expected[rank]) in text and "\n" not in text, (name, text)


@contextlib.contextmanager
def as_rank(rank: int, size: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Be a rank in the block, which fills what `outcomes_of_ranks` returns of it."""
    torch.set_num_threads(1)
    seconds = timedelta(seconds=60)
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=size, timeout=seconds)
    outcome: dict[str, Any] = {}
    yield outcome
    torch.save(outcome, folder / f"{rank}.pt")
    distributed.destroy_process_group()


def outcomes_of_ranks(size: int, folder: Path, program: str, *words: str, weights_only: bool = True) -> list[dict[str, Any]]:
    """Start the ranks of a program of this folder and wait for what they write."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
    command = [sys.executable, "-P", str(TESTS / program)]
    ranks = [
        subprocess.Popen([*command, str(rank), str(size), str(folder), *words], env=environment, stderr=subprocess.PIPE)
        for rank in range(size)
    ]
    try:
        texts = [rank.communicate(timeout=SECONDS)[1].decode() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert not any(rank.returncode for rank in ranks), "\n".join(texts)[-3000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=weights_only) for rank in range(size)]
