"""The command: the current device, eight minutes, results and report in files."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.gpu.devices import versions, why_not_measured
from benchmarks.gpu.first import page, plan, runner
from benchmarks.measuring import Row
from dmlcore.kernels import extension

FILE = plan.ROOT / "benchmarks" / "results" / "gpu-first.jsonl"
MINUTES = 8.0
COMMAND = "python -m benchmarks gpu --first"


def main(minutes: float | None, file: Path | None, fresh: bool) -> None:
    """Do what has no result yet, print and write the report.

    Args:
        minutes: for everything; None: eight.
        file: of the results, JSON lines; the report lies beside it, as `.md`.
        fresh: begin anew.

    Raises:
        SystemExit: 2 where there is no CUDA device, 1 where something went wrong.
    """
    reason = why_not_measured()
    if reason:
        print(reason, file=sys.stderr)
        raise SystemExit(2)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the running case is ended too
    results = runner.Results(file or FILE, identity(), fresh)
    if results.set_aside:
        print(f"earlier results are in {results.set_aside}")
    cases = plan.cases()
    seconds = 60 * (minutes or MINUTES)
    try:
        rows = runner.run(cases, results, seconds, plan.SHARES, plan.ROOT, lambda row: print(page.line(row), flush=True))
    except KeyboardInterrupt:
        print(f"stopped; {COMMAND} goes on with what is missing in {results.file}", file=sys.stderr)
        raise SystemExit(130) from None
    report = page.text(cases, rows, COMMAND)
    results.file.with_suffix(".md").write_text(report)
    print(f"\n{report}\nresults: {results.file}\nreport: {results.file.with_suffix('.md')}")
    raise SystemExit(1 if any(row["status"] in runner.WRONG for row in rows) else 0)


def identity() -> Row:
    """What results must have in common to go on with them. This process opens no device: one that hangs would end the run."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        device = "; ".join(subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.split("\n")).strip("; ")
    except (OSError, subprocess.TimeoutExpired):
        device = "unknown"
    kernels = getattr(extension.cuda(), "archs", "not built")
    installed = {name: version for name, version in versions().items() if name in ("torch", "commit")}
    return {"device": device, "kernels": kernels, "cuda": torch.version.cuda, **installed}
