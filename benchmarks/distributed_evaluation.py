"""Exact evaluation on several processes: processor time and memory of each, and whether the numbers are those of one process.
Each process makes its own part of the vectors, so none ever has all. The table is kept as distributed_evaluation.csv.
"""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path

import torch
from torch import distributed

from benchmarks.measuring import Row, environment, read, write
from benchmarks.starting import told_by_ranks

RESULTS = Path(__file__).parent / "results" / "distributed_evaluation.csv"
CASES = ((1, 100_000), (2, 100_000), (2, 300_000))
"""Processes and vectors. A larger set is not ranked by one process here, which would take the square of the time."""
WIDTH, OF_A_CLASS, PIECE = 128, 10, 10_000


def vectors(rows: range) -> tuple[torch.Tensor, torch.Tensor]:
    """Some rows of a set of vectors, ten of each class, in no order of classes: the same whoever asks."""
    parts, labels = [], []
    for start in range(rows.start, rows.stop, PIECE):
        generator = torch.Generator().manual_seed(start)
        numbers = torch.arange(start, start + PIECE)
        label = numbers * 7919 % (PIECE // OF_A_CLASS) + start // PIECE * (PIECE // OF_A_CLASS)
        noise = torch.randn(PIECE, WIDTH, generator=generator)
        parts.append(torch.nn.functional.normalize(_centres(label) + noise))
        labels.append(label)
    return torch.cat(parts), torch.cat(labels)


def _centres(labels: torch.Tensor) -> torch.Tensor:
    """A direction for each class, from its number alone."""
    columns = torch.arange(1, WIDTH + 1, dtype=torch.float64)
    return torch.sin(labels.double()[:, None] * columns * 12.9898).float()


def rank(number: int, size: int, count: int, folder: Path) -> None:
    """What each process runs. The first writes the row."""
    from dmlcore.evaluation import retrieval_metrics

    torch.set_num_threads(1)
    if size > 1:
        distributed.init_process_group("gloo", f"file://{folder}/store", rank=number, world_size=size)
    pieces = count // PIECE
    x, y = vectors(range(pieces * number // size * PIECE, pieces * (number + 1) // size * PIECE))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, used = time.perf_counter(), time.process_time()
    measures = retrieval_metrics(x, y, process_group="world" if size > 1 else None)
    cpu, seconds = time.process_time() - used, time.perf_counter() - began
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    costs = [(cpu, seconds, (most - before) / 1024)]
    if size > 1:
        table: list[tuple[float, float, float]] = [(0.0, 0.0, 0.0)] * size
        distributed.all_gather_object(table, costs[0])
        costs = table
        distributed.destroy_process_group()
    if number == 0:
        row = {"processes": size, "vectors": count, "width": WIDTH, "MB of vectors a process": x.numel() * 4 / 2**20}
        row |= {"cpu s a process": max(c for c, _, _ in costs), "s": max(s for _, s, _ in costs)}
        row |= {"MB more a process": max(m for _, _, m in costs), "map@r": measures["map@r"], "recall@1": measures["recall@1"]}
        (folder / "0.json").write_text(json.dumps(row))


def main(cases: tuple[tuple[int, int], ...] = CASES) -> list[Row]:
    """Measure, print and keep the table. Rows of other cases stay in it."""
    rows: list[Row] = []
    for size, count in cases:
        rows += told_by_ranks("distributed_evaluation", size, count)
        print("  ".join(f"{key} {value:.6g}" for key, value in rows[-1].items()), flush=True)
    for row in rows:
        alone = next((other for other in rows if other["vectors"] == row["vectors"] and other["processes"] == 1), None)
        if alone is not None and any(alone[key] != row[key] for key in ("map@r", "recall@1")):
            raise SystemExit(f"{row['processes']} processes say {row['map@r']}, but one says {alone['map@r']}")
    kept = environment()
    measured = [{"benchmark": "distributed evaluation", **row, **kept} for row in rows]
    earlier: list[Row] = [row for row in read(RESULTS) if (int(row["processes"]), int(row["vectors"])) not in cases]
    write(earlier + measured, RESULTS)
    return rows
