"""Trains every cell of the plan, one after the other: resumable, a line of results per run."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import rows as kept_rows
from benchmarks.arms.data import prepare
from benchmarks.defaults.sets import SETS
from benchmarks.outside.order import stages
from benchmarks.outside.plan import DATA, PLAIN, Cell
from benchmarks.outside.stored import Rows, read

Append = Callable[[kept_rows.Row], None]


def train_cell(cell: Cell, file: str) -> dict[str, Any]:
    """Train, and keep what the tables need."""
    import torch

    from benchmarks.arms import after
    from benchmarks.outside.loop import train_plainly
    from dmlcore.training import train

    torch.set_num_threads(1)
    began = time.process_time()
    if cell.system in PLAIN:
        figures, step = train_plainly(cell, file)
    else:
        with tempfile.TemporaryDirectory(prefix="outside-") as out:
            result = train(out=Path(out) / "run", data=file, seed=cell.seed, device="cpu", report=False, **cell.settings)
        names = {"served": "compressed", "whole": "whole"}
        parts = ("validation", "test")
        figures = {key: {part: after.points(result["embeddings"][name][part]) for part in parts} for key, name in names.items()}
        step = result["chosen_step"]
    return {
        "cell": asdict(cell),
        "figures": figures,
        "chosen_step": step,
        "cpu_seconds": round(time.process_time() - began, 2),
    }


def run(file: Path, folder: Path | None, work: Path, minutes: float | None) -> Rows:
    """Run what the file lacks, of the data sets that are there."""
    rows = read(file)
    ends = time.monotonic() + 60 * minutes if minutes else float("inf")
    there = {name for name in DATA if not SETS[name].file or (folder and (folder / SETS[name].file).exists())}
    with kept_rows.appending(file) as append:
        for cells in stages(rows):
            _run_each((cell for cell in cells() if cell.data in there), rows, append, folder, work, ends)
    if time.monotonic() >= ends:
        print("the time is up; the same command goes on from here")
    return rows


def _run_each(cells: Iterable[Cell], rows: Rows, append: Append, folder: Path | None, work: Path, ends: float) -> None:
    for cell in list(cells):
        if cell in rows or time.monotonic() >= ends:
            continue
        row = train_cell(cell, str(prepare(cell.data, cell.seed, folder, work)))
        rows[cell] = row
        append(row)
        rate = " ".join(f"{value:g}" for value in (cell.rate, cell.share) if value is not None)
        reached = row["figures"]["served"]["validation"]["MAP@R"]
        print(f"{cell.part:8} {cell.data:15} {cell.system:20} {cell.classes:3} x {cell.samples:2} {rate:6} seed {cell.seed}"
              f"  validation {reached:5.1f}  {row['cpu_seconds']:5.1f} s", flush=True)  # fmt: skip
