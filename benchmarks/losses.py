"""Forward and backward of losses and ensembles: fused, the plain definition, the same compiled, pytorch-metric-learning, each
against the bare matrix products any implementation needs. Every measurement runs in a child process with limits of time and
memory, so that no rival ends the run. Rows are kept as they come, and a run that was interrupted goes on where it stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from benchmarks.cases import Measurement
from benchmarks.measuring import MALLOC, Row

ROOT = Path(__file__).parents[1]
FAILED = ("memory", "time", "killed", "skipped")


def memory_limit() -> int:
    """Three quarters of what the system could give now, in MB."""
    for line in Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else ():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) * 3 // 4096
    return 0


def _in_child(measurement: Measurement, seconds: float, cutoff: float, megabytes: int) -> Row:
    request = json.dumps({"measurement": asdict(measurement), "seconds": seconds, "megabytes": megabytes})
    variables = {
        **os.environ,
        **MALLOC[measurement.malloc],
        "OMP_NUM_THREADS": str(measurement.threads),
        # idle threads would be counted as work; a wall clock is for what users have
        **({"OMP_WAIT_POLICY": "passive"} if measurement.rival != "threads" else {}),
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.child", request],
            cwd=ROOT,
            env=variables,
            capture_output=True,
            text=True,
            timeout=cutoff,
        )
    except subprocess.TimeoutExpired:
        return {"status": "time", "detail": f"more than {cutoff:.0f} s"}
    if done.returncode < 0:
        return {"status": "killed", "detail": f"signal {-done.returncode}"}
    if done.returncode:
        return {"status": "error", "detail": (done.stderr.strip() or done.stdout.strip()).splitlines()[-1][:300]}
    return json.loads(done.stdout.splitlines()[-1])


def _too_large(measurement: Measurement, rows: list[Row]) -> Row | None:
    """A row that says why a larger size is not tried, where the same rival failed at a smaller one."""
    for row in rows:
        same = all(str(row.get(name)) == str(value) for name, value in asdict(measurement).items() if name != "n")
        if same and row["status"] in FAILED and int(row["n"]) < measurement.n and measurement.rival != "fused":
            return {"status": "skipped", "detail": f"{row['status']} at N = {row['n']}"}
    return None


def key_of(row: Row) -> tuple[str, ...]:
    """What `Measurement.key` is for a row."""
    return tuple(str(row[name]) for name in Measurement.__dataclass_fields__)


def is_complete(row: Row) -> bool:
    """Whether a measurement is done: not so rows of earlier forms of this benchmark, which lack columns."""
    return row["status"] != "ok" or bool(row.get("products_seconds"))


def run(
    measurements: list[Measurement],
    about: Row,
    rows: list[Row],
    keep: Callable[[list[Row]], None],
    *,
    seconds: float = 2.5,
    cutoff: float = 120.0,
    megabytes: int | None = None,
    minutes: float | None = None,
) -> list[Row]:
    """Do the measurements that have no row yet; prints a line for each.

    Args:
        measurements: what to measure, in this order.
        about: put into every row.
        rows: those of earlier runs.
        keep: gets all rows after every measurement.
        seconds: of repeats per measurement, beyond the least number of repeats.
        cutoff: wall seconds after which a measurement is given up.
        megabytes: memory a measurement may take beyond its code; None: three quarters of what is free.
        minutes: no measurement is begun after that.

    Returns:
        All rows.
    """
    rows, began = list(rows), time.monotonic()
    complete = {key_of(row) for row in rows if is_complete(row)}
    missing = [measurement for measurement in measurements if measurement.key not in complete]
    if len(missing) < len(measurements):
        done, total = len(measurements) - len(missing), len(measurements)
        print(f"{done} of {total} measurements are done already; --fresh measures them again")
    limit = memory_limit() if megabytes is None else megabytes
    for position, measurement in enumerate(missing):
        if minutes is not None and (left := 60 * minutes - (time.monotonic() - began)) < cutoff / 4:
            print(f"{len(missing) - position} measurements are left for another run: the time is up with {left:.0f} s to go")
            break
        given_up = cutoff if minutes is None else min(cutoff, max(left, 1.0))
        result = _too_large(measurement, rows) or _in_child(measurement, seconds, given_up, limit)
        rows = [row for row in rows if key_of(row) != measurement.key]
        rows.append({"benchmark": "losses", **asdict(measurement), **result, **about})
        keep(rows)
        print(_line(measurement, result), flush=True)
    return rows


def _line(measurement: Measurement, result: Row) -> str:
    """What is printed of a measurement."""
    classes = f" C={measurement.classes}" if measurement.classes else ""
    size = f"N={measurement.n:5} d={measurement.d:3}{classes:8}"
    line = f"{measurement.case:28} {measurement.rival:9} {size} {measurement.malloc:8}"
    if result["status"] != "ok":
        return line + f"{result['status']}: {result.get('detail', '')}"
    milliseconds, ratio = 1e3 * result["seconds"], result["ratio_to_products"]
    return line + f"{milliseconds:10.3f} ms {ratio:8.2f} x products {result['peak_mb']:8.1f} MB"
