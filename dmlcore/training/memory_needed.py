"""The memory that a step of a run needs. How it is estimated is in `requirements.py`."""

from __future__ import annotations

from dmlcore.training import requirements
from dmlcore.training.run import Run


def bytes_needed(run: Run, batch_size: int) -> int:
    """Memory that a step of a run with so many samples needs, about."""
    optimiser = run.config.settings.optimiser
    samples, shape = -(-batch_size // optimiser.accumulate), tuple(run.splits.sample_shape)
    size = run.processes.size if run.processes is not None and run.divides_model else 1
    return requirements.bytes_of_a_step(run.model, shape, samples, optimiser.precision, size)


def memory_needed(run: Run) -> str:
    """Memory that a step of a run needs, in words."""
    return requirements.told(bytes_needed(run, run.batch_size) if run.bytes_of_a_step is None else run.bytes_of_a_step)
