"""`python -m benchmarks whole_run`: what part of the CPU time of a default run lies outside its steps. It begins with the
process, so loading PyTorch counts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measuring import Row, environment

STEPS = 700


def main(options: argparse.Namespace) -> list[Row]:
    """Train on the embedded glyphs with all defaults, on one thread, and print the share."""
    import torch

    from dmlcore.training import RunConfig, train
    from dmlcore.training.loop import Training

    torch.set_num_threads(1)
    seconds, step = 0.0, Training.step

    def timed(training: Training, batches: Any) -> None:
        nonlocal seconds
        began = time.process_time()
        step(training, batches)
        seconds += time.process_time() - began

    Training.step = timed
    try:
        with tempfile.TemporaryDirectory() as folder:
            train(RunConfig.create(steps=20 if options.quick else STEPS, device="cpu"), out=Path(folder) / "run")
    finally:
        Training.step = step
    total = time.process_time()
    print(f"{total:.1f} CPU s, {seconds:.1f} of them in steps: {1 - seconds / total:.3f} outside")
    return [{"benchmark": "whole_run", "cpu_seconds": total, "step_seconds": seconds, **environment()}]
