"""Training of every candidate on every data set: resumable, in several processes, a line of results per run."""

from __future__ import annotations

import os
import tempfile
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks import rows as kept_rows
from benchmarks.defaults.candidates import EXPLAINED, SEEDS, Candidate, candidates, explaining, tricked
from benchmarks.defaults.outside import Outside, plain_loops
from benchmarks.defaults.sets import DataSet, prepare

MEASURES = {"R@1": "recall@1", "MAP@R": "map@r"}
Key = tuple[str, str, int]  # data set, candidate, seed


def _train(data: DataSet, candidate: Candidate | Outside, seed: int, file: str) -> dict[str, Any]:
    """In a child: train, and keep what the tables need."""
    import torch

    from dmlcore.training import train

    torch.set_num_threads(1)
    began = time.process_time()
    result: dict[str, Any]
    if isinstance(candidate, Outside):
        result = {"metrics": candidate.figures(file, seed), "baselines": {}}
    else:
        with tempfile.TemporaryDirectory(prefix="defaults-") as out:
            settings = candidate.settings(data.kind)
            result = train(out=Path(out) / "run", data=file, seed=seed, device="cpu", report=False, **settings)
    raw = next((values for name, values in result["baselines"].items() if name.startswith("raw")), None)
    return {
        "data": data.name,
        "candidate": candidate.name,
        "seed": seed,
        **{part: _figures(result["metrics"][part]) for part in ("validation", "test")},
        "raw": None if raw is None else _figures(raw["test"]),
        "chosen_step": result.get("chosen_step"),
        "cpu_seconds": round(time.process_time() - began, 1),
    }


def _figures(metrics: dict[str, float]) -> dict[str, float]:
    return {name: round(100 * metrics[key], 3) for name, key in MEASURES.items()}


def read(file: Path) -> dict[Key, dict[str, Any]]:
    """The results so far."""
    return {(row["data"], row["candidate"], row["seed"]): row for row in kept_rows.read(file)}


def jobs(sets: list[DataSet], picture_rate: float | None) -> list[tuple[DataSet, Candidate | Outside, int]]:
    """What there is to run, the first seed of everything before the second.

    Args:
        sets: that are there.
        picture_rate: that was chosen for pictures: with the tricks and explanations; None: not yet.
    """
    every = []
    for seed in range(max(SEEDS.values())):
        for data in sets:
            own: list[Candidate | Outside] = [*candidates(data.kind)]
            if data.kind == "images":
                own += plain_loops()
            if data.kind == "images" and picture_rate is not None:
                own += [c for c in tricked(picture_rate) if c not in own]
            if picture_rate is not None and data.name in EXPLAINED and seed == 0:
                own += explaining()
            every += [(data, candidate, seed) for candidate in own if seed < SEEDS[data.kind]]
    return every


def run(sets: list[DataSet], picture_rate: float | None, file: Path, folder: Path | None, work: Path, processes: int) -> None:
    """Train what the file of results lacks."""
    complete = read(file)
    waiting = [job for job in jobs(sets, picture_rate) if (job[0].name, job[1].name, job[2]) not in complete]
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    # a fresh interpreter for each process, so that a run does not depend on those before it
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool, kept_rows.appending(file) as append:
        queue, running, done = iter(waiting), set[Future[dict[str, Any]]](), 0
        while True:
            while len(running) < processes and (job := next(queue, None)) is not None:
                data, candidate, seed = job
                running.add(pool.submit(_train, data, candidate, seed, str(prepare(data, seed, folder, work))))
            if not running:
                return
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                row = future.result()
                append(row)
                done += 1
                figures = f"validation {row['validation']['MAP@R']:5.1f}  test {row['test']['MAP@R']:5.1f}"
                print(f"{row['data']:15} {row['candidate']:70} seed {row['seed']}  {figures}"
                      f"  {row['cpu_seconds']:5.1f} s  ({done} of {len(waiting)})", flush=True)  # fmt: skip
