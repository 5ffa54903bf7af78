"""How things are measured: interleaved arms, medians, peaks of resident memory; and the rows they are kept in."""

from __future__ import annotations

import csv
import json
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]
MALLOC = {"default": {}, "keep": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "1099511627776"}}
"""Environments of a child by the name of their setting: as glibc comes, or never giving memory back to the system."""


def interleaved(
    arms: dict[str, Callable[[], object]],
    *,
    budget: float,
    least: int = 3,
    most: int = 40,
    clock: Callable[[], float] = time.process_time,
    prepare: Callable[[str], object] = lambda name: None,
) -> dict[str, list[float]]:
    """Seconds of every arm, measured in turn.

    Args:
        arms: what to run, by name; each has been run once before.
        budget: seconds for all arms and repeats together, beyond `least` repeats.
        least, most: repeats.
        clock: process CPU time, or a wall clock where several threads work.
        prepare: what is done before an arm runs, and is not measured.

    Returns:
        Seconds per repeat.
    """
    times: dict[str, list[float]] = {name: [] for name in arms}
    start = clock()
    for repeat in range(most):
        if repeat >= least and clock() - start > budget:
            break
        for name, run in arms.items():
            prepare(name)
            before = clock()
            run()
            times[name].append(clock() - before)
    return times


def quantiles(seconds: list[float]) -> tuple[float, float, float]:
    """Median, 20 % and 80 % quantiles."""
    ordered = sorted(seconds)
    return statistics.median(ordered), ordered[int(0.2 * (len(ordered) - 1))], ordered[int(0.8 * (len(ordered) - 1) + 0.999)]


def _resident(what: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) / 1024
    return float("nan")


def peak_of(run: Callable[[], object]) -> float:
    """MB by which a call raises the resident memory above what it is before; NaN where the system does not say.

    Meaningful in a fresh process only: what was freed earlier and kept by the allocator is used again unseen.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again at what is resident now
        before = _resident("VmRSS")
    except OSError:
        before = float("nan")
    run()
    return _resident("VmHWM") - before if before == before else before


def malloc_settings() -> str:
    """The settings that change how memory is taken from the system, from the environment."""
    names = [name for name in sorted(os.environ) if name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD")]
    return " ".join(f"{name}={os.environ[name]}" for name in names) or "defaults"


def commit() -> str:
    """The commit of the sources, marked where they differ from it."""
    folder = Path(__file__).parent
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=folder)
    command = ["git", "status", "--porcelain", "--untracked-files=no", "--", ":!results", ":!../docs"]
    dirty = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    return head.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")


def environment() -> Row:
    """Device, versions and commit, for every row."""
    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    from dmlcore.kernels import info

    return {
        "device": model,
        "level": info()["cpu"]["level"],
        "blas": info()["cpu"]["blas"],
        "torch": torch.__version__,
        "commit": commit(),
    }


def read(file: Path) -> list[Row]:
    """The rows of a CSV file, as text; none where there is no such file."""
    if not file.exists():
        return []
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def write(rows: list[Row], csv_file: Path | None, json_file: Path | None = None) -> None:
    """Rows as CSV and JSON; columns in the order they first appear."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if csv_file:
        csv_file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = csv_file.with_name(csv_file.name + ".new")  # an interruption leaves the old file
        with unfinished.open("w", newline="") as out:
            writer = csv.DictWriter(out, columns)
            writer.writeheader()
            writer.writerows(
                {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()} for row in rows
            )
        unfinished.replace(csv_file)
    if json_file:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = json_file.with_name(json_file.name + ".new")
        unfinished.write_text(json.dumps(rows, indent=1) + "\n")
        unfinished.replace(json_file)


def rounded(value: Any) -> Any:
    """Nested results with five digits behind the point, for files that are kept."""
    if isinstance(value, dict):
        return {key: rounded(element) for key, element in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(element) for element in value]
    return round(value, 5) if isinstance(value, float) else value


def slug(name: str) -> str:
    """A name as part of a file's name."""
    return re.sub(r"\W+", "-", name)
