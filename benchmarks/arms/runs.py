"""Trains every cell of the plan: resumable, in one or more processes, a line of results per run."""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks import rows as kept_rows
from benchmarks.arms import plan
from benchmarks.arms.data import prepare
from benchmarks.arms.plan import ARMS, DATA, RANKED, SINGLES, Cell
from benchmarks.defaults.sets import SETS, DataSet

Key = tuple[str, str, str, int]  # data set, arm, system, seed
Rows = dict[Key, dict[str, Any]]


def read(file: Path) -> Rows:
    """The results so far; a line that a crash cut is left out."""
    return {(row["data"], row["arm"], row["system"], row["seed"]): row for row in kept_rows.read(file)}


def train_cell(cell: Cell, file: str) -> dict[str, Any]:
    """In a child: train, and keep what the tables need. The CPU time is that of training and evaluating the run alone."""
    import torch

    from benchmarks.arms import after
    from dmlcore.training import train

    torch.set_num_threads(1)
    began = time.process_time()
    with tempfile.TemporaryDirectory(prefix="arms-") as out:
        if cell.members:
            figures = {"served": after.soup(cell, file, Path(out))}
            taken, step, names = time.process_time() - began, None, list(cell.members)
        else:
            result = train(
                out=Path(out) / "run",
                data=file,
                plugins=cell.losses,
                seed=cell.seed,
                device="cpu",
                report=False,
                **cell.settings,
            )
            taken, step, names = time.process_time() - began, result["chosen_step"], list(result["losses"])
            figures = {"served": {part: after.points(result["metrics"][part]) for part in ("validation", "test")}}
            raw = next(values for name, values in result["baselines"].items() if name.startswith("raw"))
            figures["raw"] = {part: after.points(raw[part]) for part in ("validation", "test")}
            if cell.arm == "plain":
                figures |= after.after_training(Path(out) / "run")
    return {**asdict(cell), "trained": names, "figures": figures, "chosen_step": step, "cpu_seconds": round(taken, 2)}


def best_single(rows: Rows, data: str) -> str | None:
    """The single loss of best validation MAP@R over the seeds that rank; None: not all of them are there."""
    keys = {name: [(data, "single", name, seed) for seed in RANKED] for name in SINGLES}
    if any(key not in rows for own in keys.values() for key in own):
        return None
    value = {n: statistics.fmean(rows[k]["figures"]["served"]["validation"]["MAP@R"] for k in own) for n, own in keys.items()}
    return max(value, key=lambda name: value[name])


def ranking_cells(sets: Iterable[DataSet]) -> Iterator[Cell]:
    """The single losses that say which is the best."""
    for data in sets:
        for seed in RANKED:
            for name in SINGLES:
                yield plan.single(data.name, data.kind, name, seed)


def cells(rows: Rows, sets: list[DataSet]) -> Iterator[Cell]:
    """All others, in the order of the plan. Arm by arm, so that those that are run are complete."""
    best = {data.name: best_single(rows, data.name) for data in sets}
    for seed, late in plan.ORDER:
        for arm in (arm for arm in ARMS.values() if arm.late == late):
            for data in (data for data in sets if plan.applies(arm, data.kind)):
                loss = best[data.name]
                assert loss is not None  # the ranking was run before
                for system in arm.systems:
                    yield plan.cell(data.name, data.kind, arm, system, loss, seed)


class Pool:
    """Runs cells that are not in the file yet, a line each.

    Args:
        file: of JSON lines, appended to.
        folder: of the data sets, or None.
        work: where splits are kept.
        processes: at a time.
        minutes: no cell starts after that.
    """

    def __init__(self, file: Path, folder: Path | None, work: Path, processes: int, minutes: float | None) -> None:
        self.file, self.folder, self.work, self.processes = file, folder, work, processes
        self.ends = time.monotonic() + 60 * minutes if minutes else float("inf")
        self.rows = read(file)

    def run(self, wanted: Iterable[Cell]) -> bool:
        """False: the time was up before the end."""
        waiting = [cell for cell in wanted if cell.key not in self.rows]
        os.environ["OMP_NUM_THREADS"] = "1"
        root = str(Path(__file__).parents[2])  # children take over the path, and must find this module
        if root not in sys.path:
            sys.path.append(root)
        queue, running, done = iter(waiting), set[Future[dict[str, Any]]](), 0
        processes = ProcessPoolExecutor(self.processes, mp_context=get_context("spawn"))
        with processes as pool, kept_rows.appending(self.file) as append:
            while True:
                while len(running) < self.processes and time.monotonic() < self.ends and (cell := next(queue, None)):
                    data = str(prepare(cell.data, cell.seed, self.folder, self.work))
                    running.add(pool.submit(train_cell, cell, data))
                if not running:
                    return all(cell.key in self.rows for cell in waiting)
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    row = future.result()
                    self.rows[row["data"], row["arm"], row["system"], row["seed"]] = row
                    append(row)
                    done += 1
                    print(f"{row['data']:15} {row['arm']:14} {row['system']:18} seed {row['seed']}  validation"
                          f" {row['figures']['served']['validation']['MAP@R']:5.1f}  {row['cpu_seconds']:5.1f} s"
                          f"  ({done} of {len(waiting)})", flush=True)  # fmt: skip


def run(file: Path, folder: Path | None, work: Path, processes: int, minutes: float | None) -> Rows:
    """Run what the file lacks, of the data sets that are there."""
    sets = [SETS[name] for name in DATA if not SETS[name].file or (folder and (folder / SETS[name].file).exists())]
    pool = Pool(file, folder, work, processes, minutes)
    if not (pool.run(ranking_cells(sets)) and pool.run(cells(pool.rows, sets))):
        print("the time is up; the same command goes on from here")
    return pool.rows
