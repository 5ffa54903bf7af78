"""Starts the processes of a benchmark that needs several on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def told_by_ranks(module: str, size: int, *arguments: Any) -> list[Any]:
    """Run `rank(number, size, *arguments, folder)` of a module in as many processes, with one thread each.

    Args:
        module: of `benchmarks`, by its name there.
        size: how many processes.
        arguments: numbers, texts and truth values.

    Returns:
        What the ranks have left as `NUMBER.json` in the folder, in their order; a rank may leave nothing.

    Raises:
        SystemExit: a process has failed.
    """
    with tempfile.TemporaryDirectory() as name:
        words = ", ".join(map(repr, (size, *arguments)))
        program = f"from pathlib import Path\nfrom benchmarks import {module} as m\nm.rank({{}}, {words}, Path({name!r}))"
        environ = {**os.environ, "OMP_NUM_THREADS": "1"}
        ranks = [subprocess.Popen([sys.executable, "-c", program.format(number)], env=environ) for number in range(size)]
        if any([process.wait() for process in ranks]):
            raise SystemExit("a process has failed")
        files = [Path(name) / f"{number}.json" for number in range(size)]
        return [json.loads(file.read_text()) for file in files if file.exists()]
