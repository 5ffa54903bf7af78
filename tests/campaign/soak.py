"""Long training with flat memory, descriptors and threads."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from .bench import Bench, write_features
from .trials import Failure, Part

STEPS, SAMPLED_STEPS = 20_000, 2_000
GROWTH = 4.0  # MB that resident memory may grow between the second quarter and the end: what an allocator keeps
LEAST_SAMPLES = 8


def keys(bench: Bench) -> list[str]:
    """`soak/STEPS`."""
    return [f"soak/{SAMPLED_STEPS if bench.is_sampled else STEPS}"]


def train(steps: str, file: str) -> None:
    """Train in this process and write how much it holds, every so many steps.

    Args:
        steps: of the run.
        file: of the samples, JSON.
    """
    from dmlcore.training import Logger
    from dmlcore.training import train as train_run

    samples: list[dict[str, float]] = []

    class Watch(Logger):
        name = "watch"

        def step_ended(self, run: Any, record: dict[str, Any]) -> None:
            if record["step"] % max(1, int(steps) // 40) == 0:
                samples.append({"step": record["step"], **held()})

    train_run(**_settings(int(steps)), loggers=[Watch()])
    Path(file).write_text(json.dumps(samples))


def _settings(steps: int) -> dict[str, Any]:
    return {"plugins": "ms,triplet", "data": "x.npz", "steps": steps, "eval_every": steps // 20, "memory": 64} | {
        "embedding_dim": 8,
        "weighting": "equal_gradient_norms",
        "out": "run",
    }


def held() -> dict[str, float]:
    """What this process holds: resident memory in MB, descriptors, threads."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    memory = int(status["VmRSS"].split()[0]) / 1024
    return {"memory": memory, "descriptors": len(os.listdir("/proc/self/fd")), "threads": int(status["Threads"])}


def run(bench: Bench, key: str) -> Failure | None:
    """One long run."""
    steps = key.split("/")[1]
    place = bench.place()
    write_features(place / "x.npz")
    said = bench.warm.run([steps, "samples.json"], place, call="campaign.soak:train", seconds=3600)
    if said.status != 0:
        return Failure(f"training ended with status {said.status}: {said.err.strip()[-300:]}")
    return judge(json.loads((place / "samples.json").read_text()))


def judge(samples: list[dict[str, float]]) -> Failure | None:
    """Whether what a process holds stays the same from the second quarter on."""
    if len(samples) < LEAST_SAMPLES:
        return Failure(f"only {len(samples)} samples were taken")
    quarter = len(samples) // 4
    begin, end = samples[quarter : 2 * quarter], samples[-quarter:]
    for name, allowed in (("memory", GROWTH), ("descriptors", 0), ("threads", 0)):
        before, after = max(sample[name] for sample in begin), max(sample[name] for sample in end)
        if after > before + allowed:
            return Failure(f"{name} grows from {before:.1f} to {after:.1f} in {samples[-1]['step']} steps")
    return None


PART = Part("soak", keys, run, share=0.5)
