"""The command `outside`: trains what the stored results lack, and fills the page."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from benchmarks.outside import report, runs, stored

RESULTS = Path(__file__).parents[1] / "results" / "outside.jsonl"


def main(options: argparse.Namespace) -> None:
    """Of `python -m benchmarks outside`: `csv`, `folder`, `minutes`, `plot` and `page` count."""
    file = options.csv or RESULTS
    if not options.plot:
        work = Path(tempfile.gettempdir()) / f"dmlcore-outside-{os.getuid()}"
        runs.run(file, options.folder, work, options.minutes)
    report.write(stored.read(file), options.page or report.PAGE)
