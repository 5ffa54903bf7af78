"""`python -m benchmarks distributed --classes 1000000`: a loss with so many proxies on one process and on several that divide
its classes. For each number of processes the memory and the processor time of a step on one of them. The processes share this
machine, so times of clocks say little. The table is kept as many-classes.csv.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

import torch
from torch import distributed

import dmlcore
from benchmarks.measuring import Row, environment, read, write
from benchmarks.starting import told_by_ranks
from dmlcore.losses import ProxyLoss
from dmlcore.ranks import Group, sharding

RESULTS = Path(__file__).parent / "results" / "many-classes.csv"
LOSS, SAMPLES, WIDTH, STEPS, RANKS = "arcface", 128, 128, 3, (1, 2, 4)
SHARES = (1.0, 0.1)


def rank(number: int, size: int, classes: int, share: float, folder: Path) -> None:
    """What each process runs: steps of the loss and of its optimiser. It writes its row."""
    torch.set_num_threads(1)
    before = peak()
    if size > 1:
        distributed.init_process_group("gloo", f"file://{folder}/store", rank=number, world_size=size)
    torch.manual_seed(0)
    with sharding(Group() if size > 1 else None):
        member = dmlcore.losses.create(LOSS, num_classes=classes, embedding_dim=WIDTH)
    assert isinstance(member, ProxyLoss)
    member.sample_classes(share)
    loss = dmlcore.distributed(member, shard_proxies=True) if size > 1 else dmlcore.LossEnsemble([member])
    optimiser = torch.optim.AdamW(loss.parameters(), lr=0.01)
    cpu, seconds, value = [], [], torch.zeros(())
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        labels = torch.randint(classes, (SAMPLES,), generator=generator)
        own = slice(SAMPLES * number // size, SAMPLES * (number + 1) // size)
        x = torch.randn(SAMPLES, WIDTH, generator=generator)[own].requires_grad_()
        if size > 1:
            distributed.barrier()
        began, used = time.perf_counter(), time.process_time()
        optimiser.zero_grad()
        value = loss(x, labels[own])
        value.backward()
        optimiser.step()
        cpu.append(time.process_time() - used)
        seconds.append(time.perf_counter() - began)
    row = {"loss": LOSS, "classes": classes, "width": WIDTH, "samples": SAMPLES, "processes": size, "sampled": share}
    row |= {"value": value.item(), "cpu s": statistics.median(cpu[1:]), "s": statistics.median(seconds[1:])}
    (folder / f"{number}.json").write_text(json.dumps(row | {"GB": (peak() - before) / 1e9}))
    if size > 1:
        distributed.destroy_process_group()


def peak() -> int:
    """The largest memory of this process so far, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def main(classes: int, sizes: tuple[int, ...] = RANKS) -> list[Row]:
    """Measure, print and keep the table. Rows of other cases stay in it."""
    rows: list[Row] = []
    earlier = [row for row in read(RESULTS) if int(row["classes"]) != classes or int(row["processes"]) not in sizes]
    for size in sizes:
        for share in SHARES:
            parts = told_by_ranks("many_classes", size, classes, share)
            row = parts[0] | {key: max(part[key] for part in parts) for key in ("cpu s", "s", "GB")}
            print(
                "  ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items())
            )
            rows.append({"benchmark": "distributed", **row, **environment()})
            write(earlier + rows, RESULTS)
    return rows
