"""Forward and backward of losses and ensembles: fused, the plain definition, the same compiled, pytorch-metric-learning, each
against the bare matrix products any implementation needs. Every cell runs in a child process with limits of time and memory, so
that no rival ends the run; rows are kept as they come, and a run that was interrupted goes on where it stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from benchmarks.measuring import MALLOC, Row
from benchmarks.table import Cell

ROOT = Path(__file__).parents[1]
FAILED = ("memory", "time", "killed", "skipped")


def memory_limit() -> int:
    """Three quarters of what the system could give now, in MB."""
    for line in Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else ():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) * 3 // 4096
    return 0


def _in_child(cell: Cell, seconds: float, cutoff: float, megabytes: int) -> Row:
    told = json.dumps({"cell": asdict(cell), "seconds": seconds, "megabytes": megabytes})
    variables = {**os.environ, **MALLOC[cell.malloc], "OMP_NUM_THREADS": str(cell.threads), "OMP_WAIT_POLICY": "passive"}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.cell", told],
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


def _too_large(cell: Cell, rows: list[Row]) -> Row | None:
    """A row that says why a larger size is not tried, where the same rival failed at a smaller one."""
    for row in rows:
        same = all(str(row.get(name)) == str(value) for name, value in asdict(cell).items() if name != "n")
        if same and row["status"] in FAILED and int(row["n"]) < cell.n and cell.rival != "fused":
            return {"status": "skipped", "detail": f"{row['status']} at N = {row['n']}"}
    return None


def key_of(row: Row) -> tuple[str, ...]:
    """What `Cell.key` is for a row."""
    return tuple(str(row[name]) for name in Cell.__dataclass_fields__)


def is_complete(row: Row) -> bool:
    """Whether a cell is measured: not so rows of earlier forms of this benchmark, which lack columns."""
    return row["status"] != "ok" or bool(row.get("products_seconds"))


def run(
    cells: list[Cell],
    about: Row,
    rows: list[Row],
    keep: Callable[[list[Row]], None],
    *,
    seconds: float = 2.5,
    cutoff: float = 120.0,
    megabytes: int | None = None,
    minutes: float | None = None,
) -> list[Row]:
    """Measure the cells that have no row yet; prints a line for each.

    Args:
        cells: what to measure, in this order.
        about: put into every row.
        rows: those of earlier runs.
        keep: gets all rows after every cell.
        seconds: of repeats per cell, beyond the least number of repeats.
        cutoff: wall seconds after which a cell is given up.
        megabytes: memory a cell may take beyond its code; None: three quarters of what is free.
        minutes: no cell is begun after that.

    Returns:
        All rows.
    """
    rows, began = list(rows), time.monotonic()
    known = {key_of(row) for row in rows if is_complete(row)}
    wanted = [cell for cell in cells if cell.key not in known]
    if len(wanted) < len(cells):
        print(f"{len(cells) - len(wanted)} of {len(cells)} cells are measured already; --fresh measures them again")
    for position, cell in enumerate(wanted):
        if minutes is not None and (left := 60 * minutes - (time.monotonic() - began)) < cutoff / 4:
            print(f"{len(wanted) - position} cells are left for another run: the time is up with {left:.0f} s to go")
            break
        given_up = cutoff if minutes is None else min(cutoff, max(left, 1.0))
        found = _too_large(cell, rows) or _in_child(cell, seconds, given_up, memory_limit() if megabytes is None else megabytes)
        rows = [row for row in rows if key_of(row) != cell.key]
        rows.append({"benchmark": "losses", **asdict(cell), **found, **about})
        keep(rows)
        classes = f" C={cell.classes}" if cell.classes else ""
        line = f"{cell.case:28} {cell.rival:9} N={cell.n:5} d={cell.d:3}{classes:8} {cell.malloc:8}"
        if found["status"] == "ok":
            line += f"{1e3 * found['seconds']:10.3f} ms {found['ratio_to_products']:8.2f} x products {found['peak_mb']:8.1f} MB"
        else:
            line += f"{found['status']}: {found.get('detail', '')}"
        print(line, flush=True)
    return rows
