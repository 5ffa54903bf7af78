"""`python -m benchmarks calls`: microseconds of whole calls on a small batch, where Python and autograd are most of the time.

Another installation can be measured beside this one (`--against PYTHON`, its interpreter): both run this file in fresh
processes in turn, and it uses nothing but what every version of dmlcore offers.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SAMPLES, WIDTH, PER_CLASS = 128, 64, 4
REPEATS = 100  # of each case in a process; the fastest counts: others on the machine only ever add time


def _cases() -> dict[str, tuple[Any, int]]:
    """Losses and the width of the embedding they see."""
    import dmlcore
    from dmlcore.losses import create

    def made(*names: str) -> list[Any]:
        sizes = {"num_classes": SAMPLES // PER_CLASS, "embedding_dim": WIDTH}
        return [create("triplet", mining="hard") if name == "triplet hard" else create(name, **sizes) for name in names]

    def heads(*names: str) -> tuple[Any, int]:
        columns = [(WIDTH * k, WIDTH * (k + 1)) for k in range(len(names))]
        return dmlcore.LossEnsemble(made(*names), columns=columns), WIDTH * len(names)

    five = ("ms", "contrastive", "sup_con", "circle", "triplet hard")
    return {
        "ms": (create("ms"), WIDTH),
        "five": (dmlcore.LossEnsemble(made(*five)), WIDTH),
        "eight": (dmlcore.LossEnsemble(made(*five, "nt_xent", "histogram", "triplet")), WIDTH),
        "pairs and proxies": (dmlcore.LossEnsemble(made("ms", "triplet", "proxy_anchor", "norm_softmax")), WIDTH),
        "three heads": heads("ms", "sup_con", "circle"),
        "five heads": heads(*five),
    }


def measure() -> dict[str, float]:
    """Microseconds of CPU time of forward and backward by case, one thread, the cases in turn: the fastest of each."""
    import torch

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    labels = (torch.arange(SAMPLES) // PER_CLASS)[torch.randperm(SAMPLES, generator=generator)]
    cases = _cases()
    leaves = {name: torch.randn(SAMPLES, width, generator=generator).requires_grad_() for name, (_, width) in cases.items()}
    times: dict[str, list[float]] = {name: [] for name in cases}
    for repeat in range(REPEATS + 5):
        for name, (loss, _) in cases.items():
            began = time.process_time()
            loss(leaves[name], labels).backward()
            leaves[name].grad = None
            loss.zero_grad(set_to_none=True)
            if repeat >= 5:
                times[name].append(time.process_time() - began)
    return {name: 1e6 * min(found) for name, found in times.items()}


def run(against: str | None = None, rounds: int = 5) -> list[dict[str, Any]]:
    """A row per case: the fastest of the rounds, and that of the other installation where there is one.

    Args:
        against: another interpreter.
        rounds: processes of each installation, in turn.
    """
    arms = {"microseconds": sys.executable, **({"against_microseconds": against} if against else {})}
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
    for _ in range(rounds):
        for arm, python in arms.items():
            done = subprocess.run([python, __file__], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
            found[arm].append(json.loads(done.stdout.splitlines()[-1]))
    return [
        {"case": case, **{arm: min(each[case] for each in rows) for arm, rows in found.items()}}
        for case in found["microseconds"][0]
    ]


if __name__ == "__main__":
    sys.path.pop(0)  # this folder: the package that is measured is the interpreter's own
    print(json.dumps(measure()))
