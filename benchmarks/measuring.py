"""How things are measured: interleaved arms in one process, one thread, process CPU time, medians; peak memory in a child."""

from __future__ import annotations

import csv
import gc
import json
import multiprocessing
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]


def interleaved(
    arms: dict[str, Callable[[], object]], *, budget: float, least: int = 3, most: int = 40
) -> dict[str, list[float]]:
    """CPU seconds of every arm, measured in turn.

    Args:
        arms: what to run, by name; each has been run once before.
        budget: CPU seconds for all arms and repeats together, beyond `least` repeats.
        least, most: repeats.

    Returns:
        Seconds of process CPU time per repeat.
    """
    times: dict[str, list[float]] = {name: [] for name in arms}
    start = time.process_time()
    for repeat in range(most):
        if repeat >= least and time.process_time() - start > budget:
            break
        for name, run in arms.items():
            before = time.process_time()
            run()
            times[name].append(time.process_time() - before)
    return times


def quantiles(seconds: list[float]) -> tuple[float, float, float]:
    """Median, 20 % and 80 % quantiles."""
    ordered = sorted(seconds)
    return statistics.median(ordered), ordered[int(0.2 * (len(ordered) - 1))], ordered[int(0.8 * (len(ordered) - 1) + 0.999)]


def _high_water(status: str = "/proc/self/status") -> float:
    for line in Path(status).read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return float("nan")


def _child(prepare: Callable[[], Callable[[], object]], pipe: Any) -> None:
    torch.set_num_threads(1)
    run = prepare()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again at what is resident now
    before = _high_water()
    try:
        run()
        pipe.send(_high_water() - before)
    except (MemoryError, RuntimeError):
        pipe.send(float("nan"))


def peak_megabytes(prepare: Callable[[], Callable[[], object]]) -> float:
    """MB by which a step raises the resident memory, in a child process of its own; NaN where it cannot be read.

    Args:
        prepare: makes the data and returns the step; what it allocates is not counted, nor is what was touched before.
    """
    try:
        here, there = multiprocessing.Pipe(False)
        process = multiprocessing.get_context("fork").Process(target=_child, args=(prepare, there))
        process.start()
        found = here.recv() if here.poll(600) else float("nan")
        process.join()
        return found
    except (OSError, EOFError):
        return float("nan")


def environment() -> Row:
    """Device, versions and commit, for every row."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    dirty = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    model = (
        next(
            (
                line.split(":")[1].strip()
                for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")
            ),
            platform.processor(),
        )
        if Path("/proc/cpuinfo").exists()
        else platform.processor()
    )
    from dmlcore.kernels import info

    torch.set_num_threads(1)
    return {
        "device": model,
        "level": info()["cpu"]["level"],
        "blas": info()["cpu"]["blas"],
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "commit": commit.stdout.strip() + ("+changes" if dirty.stdout.strip() else ""),
    }


def write(rows: list[Row], csv_file: Path | None, json_file: Path | None) -> None:
    """Rows as CSV and JSON; columns in the order they first appear."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if csv_file:
        csv_file.parent.mkdir(parents=True, exist_ok=True)
        with csv_file.open("w", newline="") as out:
            writer = csv.DictWriter(out, columns)
            writer.writeheader()
            writer.writerows(
                {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()} for row in rows
            )
    if json_file:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(rows, indent=1) + "\n")
