"""The command `arms`: trains what the stored results lack, unless only the page is asked for."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from benchmarks.arms import runs

RESULTS = Path(__file__).parents[1] / "results" / "arms.jsonl"


def main(file: Path | None, folder: Path | None, processes: int, minutes: float | None, plots: bool, page: Path | None) -> None:
    """Run the cells that the file lacks.

    Args:
        file: of results; None: the stored ones.
        folder: of the data sets; None: the embedded characters only.
        processes: at a time.
        minutes: no cell starts after that.
        plots: only fill the page.
        page: instead of docs/reports/arms.md.
    """
    file = file or RESULTS
    if not plots:
        work = Path(tempfile.gettempdir()) / f"dmlcore-arms-{os.getuid()}"
        runs.run(file, folder, work, processes, minutes)
