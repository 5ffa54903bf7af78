"""Batches of samples and labels: directly from memory, or by worker processes from image files. The same seed gives the same
batches, with any number of workers.
"""

from __future__ import annotations

import contextlib
import math
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dmlcore.data.datasets import LabelledDataset
from dmlcore.data.samplers import BatchSampler
from dmlcore.data.stores import CroppingStore
from dmlcore.errors import TrainingError, first_line

_GRACE = 5  # seconds that a process which loads data goes on after it was told to end
_FEW = 2000  # samples that are loaded sooner than processes are started
_MOST_WORKERS = 8  # that start by themselves
_AHEAD = 2  # batches each worker prepares before they are asked for


class OrderedBatches:
    """Index lists that go through a data set once, in order: for evaluation.

    Args:
        count: samples.
        batch_size: samples of all batches but the last.
    """

    def __init__(self, count: int, batch_size: int) -> None:
        self.count = count
        self.batch_size = batch_size

    def __len__(self) -> int:
        return math.ceil(self.count / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, self.count, self.batch_size):
            yield list(range(start, min(start + self.batch_size, self.count)))


class Batches(Iterator[tuple[Tensor, Tensor]]):
    """Batches (samples [B, ...] float32, dense labels int64 [B]) of a data set, in the order of a sampler.

    Args:
        dataset: where samples come from.
        sampler: index lists.
        workers: processes that decode image files. Data in memory is fetched without any. None: as `default_workers` says.
        augment: change the samples at random, if the data has an augmentation.
        seed: of the augmentation. The n-th batch has a random stream of its own.
        pinned: give batches in memory from which a GPU copies while the program goes on.
        part: the places in a batch whose samples are given; None: all. Labels are those of the whole batch.
        views: how often each sample is drawn, with random changes of its own: samples are then [views B, ...], view by view.
    """

    def __init__(
        self,
        dataset: LabelledDataset,
        sampler: Iterable[list[int]],
        *,
        workers: int | None = 0,
        augment: bool = False,
        seed: int = 0,
        pinned: bool = False,
        part: slice | None = None,
        views: int = 1,
    ) -> None:
        self._sampler = sampler
        self._resumable = sampler if isinstance(sampler, BatchSampler) else None
        self._state = self._resumable.state_dict() if self._resumable else None
        self._asked: deque[dict[str, Any]] = deque()  # states after the batches that workers prepare
        self._pinned = pinned
        tasks = _Tasks(dataset, augment, seed, part, views)
        if workers is None:
            workers = default_workers(dataset, sampler)
        if workers and not dataset.in_memory:
            loader = DataLoader(
                tasks,
                sampler=_Steps(self),
                batch_size=None,
                num_workers=workers,
                prefetch_factor=_AHEAD,
                generator=torch.Generator(),
                worker_init_fn=_begin_worker,
            )  # of its own, so that the global random stream is left alone
            self._source: Iterator[tuple[Tensor, Tensor]] = iter(loader)
        else:
            self._source = (tasks[task] for task in self._numbered())

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        with naming_dead_workers():
            batch = next(self._source)
        if self._asked:
            self._state = self._asked.popleft()
        return (batch[0].pin_memory(), batch[1].pin_memory()) if self._pinned else batch

    def close(self) -> None:
        """End the processes that load data, as their parent would at its own end, but late and with a traceback."""
        self._source = iter(())

    def state_dict(self) -> dict[str, Any] | None:
        """The state of a sampler of batches after the batch that was returned last (workers may have asked it for more)."""
        return self._state

    def _numbered(self) -> Iterator[tuple[int, list[int]]]:
        first = self._resumable.step if self._resumable else 0
        for step, indices in enumerate(self._sampler, first):
            if self._resumable:
                self._asked.append(self._resumable.state_dict())
            yield step, indices


def _begin_worker(number: int) -> None:
    """Ctrl-C reaches all processes of a terminal, and a batch system ends all of a job. The one that trains decides what
    happens, and still needs a batch for the step that it finishes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, _leave)
        for told in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(told, _leave_soon)


def _leave_soon(number: int, frame: Any) -> None:
    signal.signal(number, _leave)  # a second one comes from the parent, which needs nothing more
    signal.alarm(_GRACE)


def _leave(number: int, frame: Any) -> None:
    raise SystemExit(0)  # an end by the signal itself would be told of as an error


@contextlib.contextmanager
def naming_dead_workers() -> Iterator[None]:
    """Say it in a line where a process that loads data was killed, mostly for want of memory. PyTorch's handler of signals
    raises that wherever the training is just then, also within a step.

    Raises:
        TrainingError: one was killed.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise TrainingError(
            f"a process that loads data has died ({first_line(error)}). Try fewer --workers, or 0 to load in this process."
        ) from None


class _Steps:
    """What a `DataLoader` takes for its sampler: numbered index lists."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        return self._batches._numbered()


class _Tasks(Dataset):
    """What a worker does: a whole batch from its number and its indices."""

    def __init__(self, dataset: LabelledDataset, augment: bool, seed: int, part: slice | None = None, views: int = 1) -> None:
        self._dataset = dataset
        self._views = views
        self._part = part
        self._augment = augment
        self._seed = seed

    def __getitem__(self, task: tuple[int, list[int]]) -> tuple[Tensor, Tensor]:
        step, indices = task
        views = [self._view(step, indices, view) for view in range(self._views)]
        samples = views[0] if self._views == 1 else torch.cat(views)
        return samples, torch.from_numpy(self._dataset.dense_labels[np.asarray(indices)])

    def _view(self, step: int, indices: list[int], view: int) -> Tensor:
        """The samples of a batch. Each view has a random stream of its own."""
        if not (self._augment and self._dataset.has_random_changes):
            return self._dataset.batch(indices if self._part is None else indices[self._part])
        stream = np.random.SeedSequence((self._seed, 5, step, *([view] if view else [])))
        generator = torch.Generator().manual_seed(int(stream.generate_state(1)[0]))
        if self._part is None:
            return self._dataset.batch(indices, augment=self._augment, generator=generator)
        return self._samples_of(self._part, indices, generator)

    def _samples_of(self, part: slice, indices: list[int], generator: torch.Generator) -> Tensor:
        """Some samples of a batch, changed as they would be in the whole of it."""
        augmentation = self._dataset.augmentation if self._augment else None
        if augmentation is None:
            return self._dataset.batch(indices[part])
        if not getattr(augmentation, "by_sample", False):  # it may mix samples
            return self._dataset.batch(indices, augment=True, generator=generator)[part]
        samples = self._dataset.batch(indices[part])
        everything = samples.new_zeros(len(indices), *samples.shape[1:])  # its random numbers are those of the whole batch
        everything[part] = samples
        return augmentation(everything, generator)[part]


def batches(
    dataset: LabelledDataset,
    sampler: Iterable[list[int]],
    *,
    workers: int | None = 0,
    augment: bool = False,
    seed: int = 0,
    pinned: bool = False,
    part: slice | None = None,
    views: int = 1,
) -> Batches:
    """An iterator of batches. See `Batches`."""
    return Batches(dataset, sampler, workers=workers, augment=augment, seed=seed, pinned=pinned, part=part, views=views)


def default_workers(dataset: LabelledDataset, sampler: Iterable[list[int]]) -> int:
    """Processes that decode pictures where nothing is said: one for each thread that this process computes with but one, at
    most 8. None for data in memory, for a data set of Python, which may not stand it, and for few samples once."""
    is_short = isinstance(sampler, OrderedBatches) and len(dataset) < _FEW
    if is_short or not isinstance(dataset.samples, CroppingStore):
        return 0
    return min(torch.get_num_threads() - 1, _MOST_WORKERS)
