"""`python -m benchmarks distributed`: losses on several processes beside one. For every loss the worst relative difference of
value and gradients, the bytes that cross in a step, and the time of one; and the processor time of an ensemble over the ideal
division of it. The processes share this machine, so times of clocks say little. The table is kept as distributed.csv.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

import dmlcore
from benchmarks.measuring import Row, environment, write

RESULTS = Path(__file__).parent / "results" / "distributed.csv"
SAMPLES, WIDTH, CLASSES = 256, 64, 32
LARGE = 2048, 128
MEMBERS = ("ms", "contrastive", "sup_con", "triplet", "circle", "n_pair")
RANKS = (2, 4)
HALVES = ("bf16", "fp16")


def _batch(samples: int, width: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (samples,), generator=generator)
    centres = torch.randn(CLASSES, width, generator=generator, dtype=torch.float64)
    noise = torch.randn(samples, width, generator=generator, dtype=torch.float64)
    return (centres[labels] + noise).to(dtype), labels


def _network(width: int, dtype: torch.dtype) -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(width, width, dtype=dtype)


class _Counted:
    """Counts the bytes that a rank receives or adds up, while losses are called."""

    def __init__(self) -> None:
        self.bytes = 0
        from dmlcore.ranks import Group

        for name in ("all_gather", "reduce_scatter"):
            setattr(Group, name, self._counting(getattr(Group, name)))

    def _counting(self, call: Any) -> Any:
        def counting(group: Any, tensor: torch.Tensor) -> torch.Tensor:
            result = call(group, tensor)
            self.bytes += max(result.numel(), tensor.numel()) * tensor.element_size()
            return result

        return counting


def _one(
    names: tuple[str, ...],
    rank: int,
    size: int,
    work: Any,
    samples: int,
    width: int,
    dtype: Any,
    steps: int,
    transport: Any = "full",
) -> Any:
    """Steps of losses on this rank's share of a batch: the numbers of the last, and the median times."""
    x, y = _batch(samples, width, dtype)
    own = slice(samples * rank // size, samples * (rank + 1) // size)
    net = _network(width, dtype)
    torch.manual_seed(2)
    loss: Any = dmlcore.LossEnsemble(list(names), num_classes=CLASSES, embedding_dim=width).to(dtype)
    if size > 1:
        loss = dmlcore.distributed(loss, work=work, transport=transport)
    seconds, cpu, value = [], [], torch.zeros(())
    for _ in range(steps):
        net.zero_grad()
        loss.zero_grad()
        embeddings = net(x[own]).detach().requires_grad_()
        if size > 1:
            distributed.barrier()
        began, used = time.perf_counter(), time.process_time()
        value = loss(embeddings, y[own])
        value.backward()
        seconds.append(time.perf_counter() - began)
        cpu.append(time.process_time() - used)
        net(x[own]).backward(embeddings.grad)
    gradients = [p.grad for p in net.parameters()]
    if size > 1:
        for gradient in gradients:
            distributed.all_reduce(gradient)
            gradient /= size
    numbers = [value.detach()[None], *gradients, *(p.grad for p in loss.parameters() if p.grad is not None)]
    return [n.double() for n in numbers], 1000 * statistics.median(seconds[1:]), 1000 * statistics.median(cpu[1:])


def _worst(numbers: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    largest = max(float(tensor.norm()) for tensor in expected[1:])
    return max(float((a - b).norm() / max(float(b.norm()), 1e-3 * largest)) for a, b in zip(numbers, expected, strict=True))


def rank(number: int, size: int, folder: Path) -> None:
    """What each process runs. The first writes the rows."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=number, world_size=size)
    counted, rows = _Counted(), []
    for name in dmlcore.losses.names():
        if name == "python_loss" or "/" in name:
            continue
        row: Row = {"loss": name, "processes": size, "samples": SAMPLES, "width": WIDTH}
        for column, dtype in (("float64", torch.float64), ("float32", torch.float32)):
            with _alone():
                expected, _, _ = _one((name,), 0, 1, None, SAMPLES, WIDTH, dtype, 2)
            for work in ("whole", "divided"):
                counted.bytes = 0
                numbers, seconds, _ = _one((name,), number, size, work, SAMPLES, WIDTH, dtype, 4)
                row[f"{column} {work}"] = _worst(numbers, expected)
                if column == "float32":
                    row[f"bytes {work}"], row[f"ms {work}"] = counted.bytes // 4, seconds
        for half in HALVES:  # beside the numbers in float32
            counted.bytes = 0
            numbers, _, _ = _one((name,), number, size, "whole", SAMPLES, WIDTH, torch.float32, 4, half)
            row[f"off by {half}"], row[f"bytes {half}"] = _worst(numbers, expected), counted.bytes // 4
        rows.append(row)
    with _alone():
        expected, seconds, cpu = _one(MEMBERS, 0, 1, None, *LARGE, torch.float32, 7)
    for work in ("whole", "divided"):
        counted.bytes = 0
        numbers, own_seconds, own_cpu = _one(MEMBERS, number, size, work, *LARGE, torch.float32, 7)
        costs: list[Any] = [None] * size
        distributed.all_gather_object(costs, (own_cpu, cpu))
        row = {"loss": "+".join(MEMBERS), "processes": size, "samples": LARGE[0], "width": LARGE[1]}
        row |= {f"float32 {work}": _worst(numbers, expected), f"bytes {work}": counted.bytes // 7, f"ms {work}": own_seconds}
        row |= {"cpu ms alone": statistics.mean(c for _, c in costs), "cpu ms": statistics.mean(c for c, _ in costs)}
        rows.append(row | {"over the ideal": row["cpu ms"] * size / row["cpu ms alone"]})
    if number == 0:
        (folder / "rows.json").write_text(json.dumps(rows))
    distributed.destroy_process_group()


def _alone() -> Any:
    from dmlcore.ranks import inside

    return inside()


def main(sizes: tuple[int, ...] = RANKS) -> list[Row]:
    """Measure, print and keep the table."""
    rows: list[Row] = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as name:
            program = f"from pathlib import Path\nfrom benchmarks import distributed as d\nd.rank({{}}, {size}, Path({name!r}))"
            environ = {**os.environ, "OMP_NUM_THREADS": "1"}
            ranks = [subprocess.Popen([sys.executable, "-c", program.format(number)], env=environ) for number in range(size)]
            if any([process.wait() for process in ranks]):
                raise SystemExit("a process has failed")
            rows += json.loads((Path(name) / "rows.json").read_text())
    for row in rows:
        worst = max(value for key, value in row.items() if key.startswith("float64")) if "float64 whole" in row else None
        text = f"{row['loss']:32s} {row['processes']} processes"
        text += f"  float64 {worst:.1e}" if worst is not None else ""
        text += "".join(f"  {key} {row[key]:.3g}" for key in row if key.startswith(("ms", "cpu", "over", "off")))
        print(text)
    kept = environment()
    write([{"benchmark": "distributed", **row, **kept} for row in rows], RESULTS)
    return rows
