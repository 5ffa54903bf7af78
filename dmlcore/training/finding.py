"""A learning rate and a size of batch for a run, found by steps that leave no trace in it."""

from __future__ import annotations

import contextlib
import copy
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from dmlcore import progress
from dmlcore.config import check_range
from dmlcore.errors import ConfigError, TrainingError
from dmlcore.training import requirements
from dmlcore.training.memory_needed import bytes_needed
from dmlcore.training.run import Run
from dmlcore.training.step import take_step

STEPS = 100
LOWEST, HIGHEST = 1e-6, 1.0  # of the trunk's rate
_WIDTH = 3.0  # standard deviation of the smoothing, in steps
_TOO_HIGH = 2.0  # times the lowest loss so far, from which on higher rates tell nothing more
_BELOW_LOWEST = 3.0  # the rate stays so far below that of the lowest loss, where training is about to become unstable
_CLEAR = 2.0  # times the noise: noise alone, smoothed, falls by about once
_MEMORY = 0.7  # of what is free on the CPU, since the estimate is one
_BYTES_OF_A_PAIR = 24  # similarities, masks and gradients of a loss that is not fused


@dataclass(frozen=True)
class RateCurve:
    """What a range test saw.

    Attributes:
        rates: of the trunk, rising, one per step.
        by_role: rates of every group by role.
        losses: mean over the losses of their values, each relative to its first one.
        smoothed: the same, smoothed.
        present: the rate that the settings have.
        rate: the suggestion, or None where no rate lowers the loss clearly.
        reason: why, in a sentence.
    """

    rates: list[float]
    by_role: dict[str, list[float]]
    losses: list[float]
    smoothed: list[float]
    present: float
    rate: float | None
    reason: str


@dataclass(frozen=True)
class BatchSize:
    """The largest batch that fits.

    Attributes:
        classes: of a batch.
        samples: of each class.
        memory: bytes that a step needs.
        limit: bytes that there are.
        reason: why, in a sentence.
    """

    classes: int
    samples: int
    memory: int
    limit: int
    reason: str


@contextlib.contextmanager
def unchanged(run: Run) -> Iterator[None]:
    """Steps within leave no trace in the run: neither in its weights nor in its random numbers."""
    before, modes = copy.deepcopy(run.state()), [module.training for module in run.model.modules()]
    try:
        yield
    finally:
        run.end_batches()
        run.load_state(before)
        run.freeze_trunk(False)
        run.optimiser.zero_grad(set_to_none=True)
        for module, was_training in zip(run.model.modules(), modes, strict=True):
            module.training = was_training


def find_learning_rate(run: Run, steps: int = STEPS, lowest: float = LOWEST, highest: float = HIGHEST) -> RateCurve:
    """Train with a rate that rises in every step, and see where the loss falls fastest (Smith, "Cyclical Learning Rates for
    Training Neural Networks", WACV 2017). All groups keep their relation to the trunk's rate.

    Args:
        run: it is left as it was.
        steps: of the test, >= 10; fewer where the run has fewer left.
        lowest, highest: rates of the trunk.

    Raises:
        ConfigError: too few steps, or a range that does not rise.
    """
    steps = min(steps, run.steps - run.step)
    check_range("steps", steps, least=10)
    if not 0 < lowest < highest:
        raise ConfigError(f"rates go from {lowest} to {highest}, but must rise from above 0")
    present = run.config.settings.optimiser.learning_rate
    assert present is not None
    rates: list[float] = []
    by_role: dict[str, list[float]] = {}
    losses: list[float] = []
    first: dict[str, float] = {}
    end = "the highest rate was reached"
    with unchanged(run), progress.task("steps of the range test", steps) as advance:
        stream = run.batches()
        for step in range(steps):
            rate = lowest * (highest / lowest) ** (step / (steps - 1))
            try:
                record = take_step(run, *next(stream), factor=rate / present)
            except TrainingError as error:
                if _is_out_of_memory(error):
                    raise
                end = "a loss or gradient was not finite"
                break
            first = first or record.terms
            value = sum(term / (abs(first[name]) or 1.0) for name, term in record.terms.items()) / len(first)
            if not math.isfinite(value):
                end = "a loss was not finite"
                break
            rates.append(rate)
            losses.append(value)
            for role, number in record.learning_rates.items():
                by_role.setdefault(role, []).append(number)
            advance(step + 1)
            if step >= steps // 5 and np.mean(losses[-3:]) > _TOO_HIGH * smooth(losses).min():
                end = f"the loss was {_TOO_HIGH:g} times its lowest"
                break
    smoothed = smooth(losses)
    rate, reason = pick(np.array(rates), np.array(losses), smoothed)
    return RateCurve(rates, by_role, losses, smoothed.tolist(), present, rate, f"{reason} The test ended where {end}.")


def smooth(values: list[float] | np.ndarray) -> np.ndarray:
    """Values averaged with their neighbours by a Gaussian; at the ends by what there is of it."""
    values = np.asarray(values, dtype=np.float64)
    places = np.arange(len(values))
    weights = np.exp(-0.5 * ((places[:, None] - places[None]) / _WIDTH) ** 2)  # [n, n]
    return (weights @ values) / weights.sum(1)


def pick(rates: np.ndarray, losses: np.ndarray, smoothed: np.ndarray) -> tuple[float | None, str]:
    """The suggested rate, or None, and why.

    Args:
        rates: rising, [n].
        losses: [n].
        smoothed: of the losses, [n].
    """
    if len(rates) < 5:
        return None, "The loss was not finite almost at once, so even the lowest rates are too high."
    lowest = int(smoothed.argmin())
    until = slice(lowest + 1)
    fall, noise = float(smoothed[until].max() - smoothed[lowest]), float(np.std((losses - smoothed)[until]))
    if lowest < 2 or fall < _CLEAR * noise:
        return None, f"No rate lowers the loss clearly: it falls by {fall:.2g}, and its noise is {noise:.2g}."
    slopes = np.gradient(smoothed[: lowest + 1], np.log10(rates[: lowest + 1]))
    steepest = float(rates[int(slopes.argmin())])
    highest = float(rates[lowest]) / _BELOW_LOWEST
    rate = float(f"{min(steepest, highest):.2g}")
    where = f"The loss falls fastest at {steepest:.2g} and is lowest at {rates[lowest]:.2g}."
    if highest < steepest:
        return rate, f"{where} {rate:g} is a third of the latter, since training becomes unstable beyond."
    return rate, where


def find_batch_size(run: Run) -> BatchSize:
    """The most classes of a batch that fit into memory: tried on CUDA, estimated elsewhere.

    Args:
        run: it is left as it was.

    Raises:
        TrainingError: not even two classes fit.
    """
    if run.device.type == "cuda":
        return tried_batch_size(run)
    fixed = bytes_needed(run, 0)
    per_sample = (bytes_needed(run, 1000) - fixed) / 1000
    plain = sum(not loss["fused"] for loss in run.ensemble.describe())
    free = free_memory()
    samples = run.config.settings.data.samples_per_class

    def needed(classes: int) -> int:
        batch = classes * samples
        return int(fixed + per_sample * batch + _BYTES_OF_A_PAIR * plain * batch**2)

    return _sized(
        run,
        lambda classes: needed(classes) <= _MEMORY * free,
        needed,
        free,
        f"{100 * _MEMORY:.0f} % of what is free may be used",
    )


def tried_batch_size(run: Run) -> BatchSize:
    """As `find_batch_size`, by steps with batches of random numbers of every size that comes into question."""
    peaks: dict[int, int] = {}
    is_cuda = run.device.type == "cuda"

    def fits(classes: int) -> bool:
        if is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(run.device)
        try:
            take_step(run, *_random_batch(run, classes), factor=0.0)
        except TrainingError as error:
            if not _is_out_of_memory(error):
                raise
            return False
        finally:
            run.optimiser.zero_grad(set_to_none=True)
        peaks[classes] = torch.cuda.max_memory_reserved(run.device) if is_cuda else 0
        return True

    total = torch.cuda.get_device_properties(run.device).total_memory if is_cuda else 0
    with unchanged(run):
        size = _sized(run, fits, lambda classes: peaks[classes], total, "each size was tried by a step")
    if is_cuda:
        torch.cuda.empty_cache()
    return size


def largest(fits: Callable[[int], bool], least: int, most: int) -> int:
    """The largest number that fits, or `least - 1` where none does. What is larger than a number that does not fit is not
    tried."""
    if not fits(least):
        return least - 1
    low, high = least, most + 1
    while low < most:  # doubled first, so that what is far too large is never tried
        size = min(2 * low, most)
        if not fits(size):
            high = size
            break
        low = size
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def free_memory() -> int:
    """Bytes of the computer's memory that are free, with what it may give up at once."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _sized(run: Run, fits: Callable[[int], bool], needed: Callable[[int], int], limit: int, how: str) -> BatchSize:
    most, samples = run.splits.train.num_labels, run.config.settings.data.samples_per_class
    if run.memory is not None:  # of earlier batches, which holds a whole one
        most = min(most, run.memory.size // samples)
    classes = largest(fits, min(2, most), most)
    if classes < 2:
        raise TrainingError(
            f"not even a batch of two classes x {samples} samples fits on {run.device}. Use a smaller --image-size or --model,"
            f" or --accumulate"
        )
    of_memory = "--memory holds no larger batch" if most < run.splits.train.num_labels else "these are all training classes"
    end = of_memory if classes == most else "one class more does not fit"
    return BatchSize(classes, samples, needed(classes), limit, f"{end}; {how}")


def _random_batch(run: Run, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    samples = run.config.settings.data.samples_per_class
    labels = torch.arange(classes, device=run.device).repeat_interleave(samples)
    views = 1 if run.keys is None else 2
    shape = (views * len(labels), *run.splits.sample_shape)
    if run.splits.kind == "texts":
        return torch.zeros(shape, dtype=torch.uint8, device=run.device), labels
    generator = torch.Generator(run.device).manual_seed(0)
    return torch.rand(shape, generator=generator, device=run.device), labels


def _is_out_of_memory(error: TrainingError) -> bool:
    return isinstance(error.__cause__, torch.OutOfMemoryError)


def told(size: BatchSize) -> str:
    """Memory of a batch in words."""
    return f"{requirements.told(size.memory)} of {requirements.told(size.limit)}"
