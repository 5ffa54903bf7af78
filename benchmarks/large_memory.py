"""`python -m benchmarks distributed --memory 100000`: a loss against a memory of so many entries, on one process and on several
that have all of its entries each, or divide them. For each the processor time of a step, the bytes that a process sends, and
its memory: of the entries, and its largest. The processes share this machine, so times of clocks say little. The table is kept
as large-memory.csv.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import distributed

import dmlcore
from benchmarks.many_classes import peak
from benchmarks.measuring import Row, environment, read, write
from benchmarks.starting import told_by_ranks
from dmlcore.losses import CrossBatchMemory
from dmlcore.ranks import Group

RESULTS = Path(__file__).parent / "results" / "large-memory.csv"
LOSS, SAMPLES, WIDTH, CLASSES, STEPS = "ms", 128, 128, 1000, 3
RANKS = (1, 2, 4)


class _Sent:
    """Counts the bytes that this process sends to others."""

    def __init__(self) -> None:
        self.bytes = 0
        for name in ("all_gather", "gather", "reduce_scatter", "all_to_all"):
            setattr(Group, name, self._counting(getattr(Group, name), name))
        meet = Group.meet

        def meeting(group: Any, words: Any, tensors: Any, device: Any) -> Any:
            if group.board_for(device) is not None:  # elsewhere it ends as an all-gather
                self.bytes += (8 * len(words) + sum(part.nbytes for part in tensors)) * (group.size - 1)
            return meet(group, words, tensors, device)

        Group.meet = meeting  # type: ignore[method-assign]

    def _counting(self, call: Any, name: str) -> Any:
        def counting(group: Any, tensors: Any, *more: Any) -> Any:
            if name == "gather" and group.board_for(tensors[0].device) is None:  # it ends as the next one
                return call(group, tensors, *more)
            if name in ("all_gather", "gather"):  # all of it, to each other process
                rows = tensors if name == "gather" else [tensors]
                self.bytes += sum(part.nbytes for part in rows) * (group.size - 1)
            else:  # a part to each
                parts = tensors.chunk(group.size) if name == "reduce_scatter" else tensors
                self.bytes += sum(p.numel() * p.element_size() for n, p in enumerate(parts) if n != group.rank)
            return call(group, tensors, *more)

        return counting


def rank(number: int, size: int, entries: int, is_divided: bool, folder: Path) -> None:
    """What each process runs: steps of the loss. It writes its row."""
    torch.set_num_threads(1)
    before = peak()
    if size > 1:
        distributed.init_process_group("gloo", f"file://{folder}/store", rank=number, world_size=size)
    memory: Any = CrossBatchMemory(dmlcore.LossEnsemble([LOSS]), entries, WIDTH)
    if size > 1:
        memory = dmlcore.distributed(memory, shard_memory=is_divided)
    generator = torch.Generator().manual_seed(0)
    for first in range(0, entries, SAMPLES * 8):  # in parts, so that no process has all
        rows = torch.randn(min(SAMPLES * 8, entries - first), WIDTH, generator=generator)
        own = 0 if memory.shard is None else memory.shard.first
        places = torch.arange(first, first + len(rows)) - own
        here = (places >= 0) & (places < len(memory.queue))
        memory.queue[places[here]] = rows[here]
    memory.labels.copy_(torch.randint(CLASSES, (entries,), generator=generator))
    memory.filled = entries
    sent, cpu, seconds, value = _Sent(), [], [], torch.zeros(())
    for _ in range(STEPS):
        labels = torch.randint(CLASSES, (SAMPLES,), generator=generator)
        own = slice(SAMPLES * number // size, SAMPLES * (number + 1) // size)
        x = torch.randn(SAMPLES, WIDTH, generator=generator)[own].requires_grad_()
        if size > 1:
            distributed.barrier()
        sent.bytes, began, used = 0, time.perf_counter(), time.process_time()
        value = memory(x, labels[own])
        value.backward()
        cpu.append(time.process_time() - used)
        seconds.append(time.perf_counter() - began)
    row = {"loss": LOSS, "entries": entries, "width": WIDTH, "samples": SAMPLES, "processes": size, "divided": is_divided}
    row |= {"value": value.item(), "cpu s": statistics.median(cpu[1:]), "s": statistics.median(seconds[1:])}
    row |= {"MB sent": sent.bytes / 1e6, "MB of entries": memory.queue.numel() * memory.queue.element_size() / 1e6}
    (folder / f"{number}.json").write_text(json.dumps(row | {"MB": (peak() - before) / 1e6}))
    if size > 1:
        distributed.destroy_process_group()


def main(entries: int, sizes: tuple[int, ...] = RANKS) -> list[Row]:
    """Measure, print and keep the table. Rows of other cases stay in it."""
    rows: list[Row] = []
    earlier = [row for row in read(RESULTS) if int(row["entries"]) != entries or int(row["processes"]) not in sizes]
    for size in sizes:
        for is_divided in (False, True) if size > 1 else (False,):
            parts = told_by_ranks("large_memory", size, entries, is_divided)
            highest = ("cpu s", "s", "MB sent", "MB of entries", "MB")
            row = parts[0] | {key: max(part[key] for part in parts) for key in highest}
            print(
                "  ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items())
            )
            rows.append({"benchmark": "distributed", **row, **environment()})
            write(earlier + rows, RESULTS)
    return rows
