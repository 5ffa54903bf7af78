"""A training of several processes: each takes its slice of every batch through the model, and computes the rest of the step
from the outputs of all. So a step is that of one process, whatever the losses are. Only the first process writes and speaks.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import signal
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from dmlcore import launch
from dmlcore.config import seconds_of
from dmlcore.errors import AnotherFailed, ConfigError, DmlcoreError, TrainingError, exit_status_of, of_all
from dmlcore.ranks import Group, Layout, Transport, gathered, gathered_embeddings, is_one_of_several, whole
from dmlcore.ranks.dividing import share_of
from dmlcore.ranks.faults import naming_dead
from dmlcore.training.building import choose_device
from dmlcore.training.folder import RunFolder
from dmlcore.training.setting_groups.run import RunSettings
from dmlcore.training.silent_folder import SilentFolder


class Processes:
    """The processes of a training.

    Args:
        device: type of the device of the model.
        timeout: how long one waits for the others in a step, as in `10m`.
        transport: how outputs of the model are sent, as `Group` says.
    """

    def __init__(self, device: str, timeout: str, transport: Transport = "full") -> None:
        launch.join(device)
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        self.local_rank = launch.place().local_rank
        seconds = datetime.timedelta(seconds=seconds_of(timeout, "timeout"))
        self._start = Group()
        self._numbers: list[Any] = [None] * self.size  # of the processes, by their machines
        distributed.all_gather_object(self._numbers, (socket.gethostname(), os.getpid()))
        self.group = Group(distributed.new_group(timeout=seconds), gradients="sum", transport=transport)
        self.device = torch.device(device, self.local_rank) if device == "cuda" else torch.device(device)
        if device == "cuda":
            torch.cuda.set_device(self.device)  # where PyTorch puts the parts of a divided model

    def wake(self) -> None:
        """Let stopped processes of this machine go on, so that the signal reaches them by which their launcher ends them."""
        for host, number in self._numbers:
            if host == socket.gethostname() and number != os.getpid():
                with contextlib.suppress(OSError, AttributeError):  # it has ended; Windows has no such signal
                    os.kill(number, signal.SIGCONT)

    @property
    def is_first(self) -> bool:
        """Whether this one writes and speaks."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """The rows of a batch of `count` samples that are this process's."""
        rows = share_of(count, self.rank, self.size)
        return slice(rows.start, rows.stop)

    def layout(self, count: int) -> Layout:
        """Whose the rows of a batch of `count` samples are."""
        return Layout(self.group, self.rank, tuple(len(share_of(count, rank, self.size)) for rank in range(self.size)))

    def whole(self, outputs: Tensor, count: int) -> Tensor:
        """The outputs for a batch of `count` samples, from those for this process's rows. Its gradient comes back to them."""
        layout = self.layout(count)
        (everything,) = gathered_embeddings(outputs, layout)
        return whole(outputs, everything, layout)

    def whole_of_parts(self, outputs: Tensor) -> Tensor:
        """The same without history, where this process does not know how many samples the batch has."""
        sizes: list[Any] = [None] * self.size
        distributed.all_gather_object(sizes, len(outputs), group=self.group.process_group)
        return gathered([outputs], Layout(self.group, self.rank, tuple(sizes)))[0]

    @torch.no_grad()
    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up the gradients of the model over all processes, by one all-reduce for each dtype."""
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for parameter in parameters:
            if parameter.grad is not None:
                by_dtype.setdefault(parameter.grad.dtype, []).append(parameter.grad)
        for gradients in by_dtype.values():
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            distributed.all_reduce(flat, group=self.group.process_group)
            for gradient, total in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(total.view_as(gradient))

    def highest(self, *numbers: int) -> list[int]:
        """The highest of all processes of each number."""
        values = torch.tensor(numbers, dtype=torch.int64, device=self.device)
        distributed.all_reduce(values, distributed.ReduceOp.MAX, group=self.group.process_group)
        return values.tolist()

    def same(self, value: Any) -> Any:
        """What the first process has."""
        box = [value]
        distributed.broadcast_object_list(box, 0, device=self.device)
        return box[0]

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first process of each machine goes through the block before the others, which find what it has written."""
        if self.local_rank:
            self._told(None)  # the first ones are through
        try:
            yield
        except Exception as error:
            self._told(error)
            raise
        if not self.local_rank:
            self._told(None)
        self._told(None)  # all are through

    def _told(self, error: BaseException | None) -> None:
        """Wait until every process is here. Raise where another has failed."""
        statuses: list[int | None] = [None] * self.size
        distributed.all_gather_object(statuses, None if error is None else exit_status_of(error))
        if error is not None:
            return
        for rank, status in enumerate(statuses):
            if status is not None:
                text = f"process {rank} of {self.size} could not start; its own message says why"
                raise AnotherFailed(text, exit_status=status)

    def check_same(self, facts: dict[str, str]) -> None:
        """Raise ConfigError where processes have different settings, versions or data.

        Args:
            facts: texts or checksums by what they are of.
        """
        tables: list[Any] = [None] * self.size
        distributed.all_gather_object(tables, facts)
        for rank, other in enumerate(tables):
            for name, text in tables[0].items():
                if other[name] != text:
                    difference = _difference(text, other[name])
                    raise of_all(ConfigError(f"process {rank} has other {name} than process 0: {difference}"))

    def check_together(self, tensors: Sequence[Tensor], step: int) -> None:
        """Raise TrainingError where the processes have come apart: they are at another step, or have other weights."""
        total = hashlib.sha256()
        for tensor in tensors:
            total.update(tensor.detach().double().sum().cpu().numpy().tobytes())
        states: list[Any] = [None] * self.size
        distributed.all_gather_object(states, (step, total.hexdigest()), group=self.group.process_group)
        for rank, (other_step, weights) in enumerate(states):
            if other_step != states[0][0]:
                raise of_all(TrainingError(f"process {rank} is at step {other_step}, but process 0 at step {states[0][0]}"))
            if weights != states[0][1]:
                text = f"step {step}: process {rank} has other weights than process 0; are their processors alike?"
                raise of_all(TrainingError(text))

    def close(self) -> None:
        """Leave the group."""
        if distributed.is_initialized():
            distributed.destroy_process_group()


@contextlib.contextmanager
def together(settings: RunSettings) -> Iterator[Processes | None]:
    """The processes that this one was started with, or None where it is alone. A group that was made here is left at the end.

    Args:
        settings: of the run.
    """
    is_joined = is_one_of_several()
    if not is_joined and launch.place().size == 1:
        yield None
        return
    processes = Processes(choose_device(settings.device).type, settings.timeout, settings.transport)
    is_done = False
    try:
        yield processes
        is_done = True
    finally:
        # after an error NCCL might wait for the others, but gloo aborts the process at its end if its threads are left
        if not is_joined and (is_done or processes.device.type == "cpu"):
            processes.close()


def folder_for(processes: Processes | None, choose: Callable[[], RunFolder]) -> RunFolder:
    """The folder of a run, which one process chooses and writes.

    Args:
        processes: of the training.
        choose: gives the folder, or raises.
    """
    if processes is None:
        return choose()
    folder: RunFolder | None = None
    error: DmlcoreError | None = None
    if processes.is_first:
        try:
            folder = choose()
        except DmlcoreError as caught:  # the others would wait
            error = caught
    path = processes.same(None if folder is None else str(folder.path))
    if error is not None:
        raise error
    if path is None:
        raise AnotherFailed("process 0 cannot use the folder of the run; its own message says why")
    return folder or SilentFolder(Path(path))


def naming_dead_processes(processes: Processes | None, saved: Callable[[], str]) -> contextlib.AbstractContextManager[None]:
    """Say in a line that another process has ended, where PyTorch tells of a connection that is lost.

    Args:
        processes: of the training; None: there is one.
        saved: says what there is to continue from.
    """
    if processes is None:
        return naming_dead(1, saved)
    return naming_dead(processes.size, lambda: f"Training stops; {saved()}", processes.wake)


def _difference(text: str, other: str) -> str:
    pairs = zip(text.splitlines(), other.splitlines(), strict=False)
    return next((f"'{there}' instead of '{here}'" for here, there in pairs if here != there), "more or less of them")
