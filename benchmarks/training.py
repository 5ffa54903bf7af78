"""`python -m benchmarks training`: images per second of whole training steps, an ensemble beside one loss, interleaved."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measuring import Row, interleaved

ARMS: dict[str, dict[str, Any]] = {
    "one loss": {"plugins": "ms"},
    "five losses": {"plugins": "ms,contrastive,sup_con,circle,triplet", "triplet": {"mining": "hard"}},
    "five losses, equal gradient norms": {
        "plugins": "ms,contrastive,sup_con,circle,triplet",
        "triplet": {"mining": "hard"},
        "weighting": "equal_gradient_norms",
    },
    "one loss, bf16": {"plugins": "ms", "precision": "bf16"},
    "three heads": {"plugins": "ms,sup_con,proxy_anchor", "ensemble": "heads"},
}
STEPS = 5  # of each arm at a time


def run(seconds: float = 20.0, least: int = 3) -> list[Row]:
    """Rows with images per second of CPU time on one thread, on the small network and the embedded glyphs.

    Args:
        seconds: for all arms together.
        least: repeats of `STEPS` steps.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            arms = {name: _steps(settings, Path(folder) / str(index)) for index, (name, settings) in enumerate(ARMS.items())}
            for step in arms.values():
                step()
            times = interleaved(arms, budget=seconds, least=least)
    finally:
        torch.set_num_threads(threads)
    one_loss = statistics.median(times["one loss"])
    return [
        {
            "case": name,
            "model": "conv",
            "data": "glyphs",
            "images_per_second": STEPS * 128 / statistics.median(seconds_of_arm),
            "ratio_to_one_loss": one_loss / statistics.median(seconds_of_arm),
            "repeats": len(seconds_of_arm),
        }
        for name, seconds_of_arm in times.items()
    ]


def _steps(settings: dict[str, Any], folder: Path) -> Callable[[], None]:
    """A function that trains `STEPS` steps as the training loop does, data and logging included."""
    from dmlcore.training import RunConfig
    from dmlcore.training.folder import RunFolder
    from dmlcore.training.loop import Training
    from dmlcore.training.run import Run

    config = RunConfig.create(steps=10**6, device="cpu", data="glyphs", **settings)
    training = Training(Run(config, RunFolder(folder)), [], None)
    batches = training.run.batches()

    def steps() -> None:
        for _ in range(STEPS):
            training.step(batches)

    return steps
