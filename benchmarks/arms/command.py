"""The command `arms`: trains what the stored results lack, and fills the page."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from benchmarks.arms import report, runs

RESULTS = Path(__file__).parents[1] / "results" / "arms.jsonl"


def main(options: argparse.Namespace) -> None:
    """Of `python -m benchmarks arms`: `csv`, `folder`, `processes`, `minutes`, `plot`, `page` and `picture` count."""
    file = options.csv or RESULTS
    if not options.plot:
        work = Path(tempfile.gettempdir()) / f"dmlcore-arms-{os.getuid()}"
        runs.run(file, options.folder, work, options.processes, options.minutes)
    rows = runs.read(file)
    report.write(rows, options.page or report.PAGE)
    print(f"drew {report.draw(rows, options.picture or file.with_suffix('.svg'))}")
