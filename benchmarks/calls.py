"""`python -m benchmarks calls`: microseconds of whole calls on a small batch, where Python and autograd are most of the time.

Another installation can be measured beside this one (`--against PYTHON`, its interpreter). Both run this file in fresh
processes in turn. It uses nothing but what every version of dmlcore offers.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SAMPLES, WIDTH, PER_CLASS = 128, 64, 4
REPEATS = 100  # of each case in a process; the fastest counts: others on the machine only ever add time
FIVE = ("ms", "contrastive", "sup_con", "circle", "triplet hard")
PRODUCTS = "products"  # of the embeddings with themselves, forward and backward: what no implementation can do without


def _cases(width: int) -> dict[str, tuple[Any, int]]:
    """Losses and the width of the embedding they see."""
    import dmlcore
    from dmlcore.losses import create

    def losses(*names: str) -> list[Any]:
        sizes = {"num_classes": SAMPLES // PER_CLASS, "embedding_dim": width}
        return [create("triplet", mining="hard") if name == "triplet hard" else create(name, **sizes) for name in names]

    def heads(*names: str) -> tuple[Any, int]:
        columns = [(width * k, width * (k + 1)) for k in range(len(names))]
        return dmlcore.LossEnsemble(losses(*names), columns=columns), width * len(names)

    return {
        "ms": (create("ms"), width),
        "five": (dmlcore.LossEnsemble(losses(*FIVE)), width),
        "eight": (dmlcore.LossEnsemble(losses(*FIVE, "nt_xent", "histogram", "triplet")), width),
        "pairs and proxies": (dmlcore.LossEnsemble(losses("ms", "triplet", "proxy_anchor", "norm_softmax")), width),
        "three heads": heads("ms", "sup_con", "circle"),
        "five heads": heads(*FIVE),
    }


def measure(width: int = WIDTH) -> dict[str, float]:
    """Microseconds of CPU time of forward and backward by case, one thread, the cases in turn: the fastest of each.

    Args:
        width: of the embedding, and of each head's.
    """
    import torch

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    labels = (torch.arange(SAMPLES) // PER_CLASS)[torch.randperm(SAMPLES, generator=generator)]
    steps: dict[str, Callable[[], object]] = {}
    for name, (loss, columns) in _cases(width).items():
        steps[name] = _step(loss, torch.randn(SAMPLES, columns, generator=generator).requires_grad_(), labels)
    x, similarities = torch.randn(SAMPLES, width, generator=generator), torch.empty(SAMPLES, SAMPLES)
    gradient = torch.empty(SAMPLES, width)

    def products() -> None:
        torch.mm(x, x.T, out=similarities)
        torch.mm(similarities, x, out=gradient)

    steps[PRODUCTS] = products
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(REPEATS + 5):
        for name, run in steps.items():
            began = time.process_time()
            run()
            if repeat >= 5:
                times[name].append(time.process_time() - began)
    return {name: 1e6 * min(seconds) for name, seconds in times.items()}


def _step(loss: Any, leaf: Any, labels: Any) -> Callable[[], None]:
    def run() -> None:
        loss(leaf, labels).backward()
        leaf.grad = None
        loss.zero_grad(set_to_none=True)

    return run


def run(against: str | None = None, rounds: int = 5, width: int = WIDTH) -> list[dict[str, Any]]:
    """A row per case: the fastest of the rounds, its ratio to the bare products, and both of the other installation if any.

    Args:
        against: another interpreter.
        rounds: processes of each installation, in turn.
        width: of the embedding.
    """
    arms = {"": sys.executable, **({"against_": against} if against else {})}
    rounds_of: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
    for _ in range(rounds):
        for arm, python in arms.items():
            done = subprocess.run(
                [python, __file__, str(width)], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
            )
            rounds_of[arm].append(json.loads(done.stdout.splitlines()[-1]))
    fastest = {
        arm: {case: min(times[case] for times in all_times) for case in all_times[0]} for arm, all_times in rounds_of.items()
    }
    rows = []
    for case in fastest[""]:
        row: dict[str, Any] = {"case": case, "n": SAMPLES, "d": width}
        for arm, times in fastest.items():
            row |= {f"{arm}microseconds": times[case], f"{arm}ratio_to_products": times[case] / times[PRODUCTS]}
        rows.append(row)
    return rows


def text(row: dict[str, Any]) -> str:
    """A row as a line."""
    line = f"{row['case']:20} {row['microseconds']:7.0f} us {row['ratio_to_products']:6.2f} x products"
    if "against_microseconds" in row:
        line += f"  against {row['against_microseconds']:7.0f} us {row['against_ratio_to_products']:6.2f} x products"
        line += f"  ratio {row['microseconds'] / row['against_microseconds']:.2f}"
    return line


if __name__ == "__main__":
    sys.path.pop(0)  # this folder: the package that is measured is the interpreter's own
    print(json.dumps(measure(int(sys.argv[1]))))
