"""`python -m benchmarks whole_run`: what part of the CPU time of a default run lies outside its steps, and where. It begins
with the process, so loading PyTorch counts. About a minute of one core.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.measuring import Row, environment, write

RESULTS = Path(__file__).parent / "results" / "whole-run-cpu.csv"
STEPS = 700
PARTS = {"step": "steps", "_measure": "evaluations", "_finish": "end"}  # methods of the training loop


@contextlib.contextmanager
def _timed(owner: type, parts: dict[str, str]) -> Iterator[dict[str, float]]:
    """The CPU seconds of methods while they are watched, by what they are called here."""
    seconds = dict.fromkeys(parts.values(), 0.0)
    originals = {name: getattr(owner, name) for name in parts}

    def watched(name: str) -> Any:
        @functools.wraps(originals[name])
        def method(*arguments: Any) -> Any:
            began = time.process_time()
            try:
                return originals[name](*arguments)
            finally:
                seconds[parts[name]] += time.process_time() - began

        return method

    for name in parts:
        setattr(owner, name, watched(name))
    try:
        yield seconds
    finally:
        for name, original in originals.items():
            setattr(owner, name, original)


def main(options: argparse.Namespace) -> list[Row]:
    """Train on the embedded glyphs with all defaults, on one thread, and print the shares."""
    import torch

    from dmlcore.training import RunConfig, train
    from dmlcore.training.loop import Training

    torch.set_num_threads(1)
    began = time.process_time()
    with _timed(Training, PARTS) as seconds, tempfile.TemporaryDirectory() as folder:
        train(RunConfig.create(steps=20 if options.quick else STEPS, device="cpu"), out=Path(folder) / "run")
    total = time.process_time()
    seconds = {"loading": began, **seconds, "rest": total - began - sum(seconds.values())}
    told = ", ".join(f"{name} {part:.1f}" for name, part in seconds.items())
    share = 1 - seconds["steps"] / total
    print(f"{total:.1f} CPU s: {told}. {100 * share:.1f} % outside the steps")
    rows = [
        {
            "benchmark": "whole_run",
            "cpu_seconds": total,
            **{f"{name}_seconds": part for name, part in seconds.items()},
            "share_outside": share,
            **environment(),
        }
    ]
    if options.csv or not options.quick:
        write(rows, options.csv or RESULTS)
    return rows
