"""The processes that a launcher or a test has started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

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


def check_refusals(outcomes: list[dict[str, Any]], words: dict[str, tuple[str, ...]]) -> None:
    """Every rank refused what it should, in a line that has the words for it: by case, one for each rank."""
    for rank, outcome in enumerate(outcomes):
        assert set(outcome["refusals"]) == set(words)
        for name, text in outcome["refusals"].items():
            assert words[name][rank] in text and "\n" not in text, (name, text)


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
