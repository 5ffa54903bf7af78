"""The memory that a process needs for a step of a run. How it is estimated is in `requirements.py`."""

from __future__ import annotations

from dmlcore.training import requirements
from dmlcore.training.run import Run


def bytes_needed(run: Run, batch_size: int) -> int:
    """Memory that a process needs for a step of a run with so many samples, about."""
    optimiser = run.config.settings.optimiser
    size = 1 if run.processes is None else run.processes.size
    samples, shape = -(-batch_size // (size * optimiser.accumulate)), tuple(run.splits.sample_shape)
    return requirements.bytes_of_a_step(run.model, shape, samples, optimiser.precision, size if run.divides_model else 1)


def memory_needed(run: Run) -> str:
    """Memory that a process needs for a step of a run, in words."""
    return requirements.told(bytes_needed(run, run.batch_size) if run.bytes_of_a_step is None else run.bytes_of_a_step)
