"""A group of ranks: the processes whose batches together are one batch."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch

from dmlcore.errors import ConfigError
from dmlcore.ranks.board import Board, board_of

GradientRule = Literal["mean", "sum"]
Work = Literal["auto", "divided", "whole"]
Transport = Literal["full", "bf16", "fp16"]
_HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
LOCAL = "local"
"""What a group is called where every rank's batch stands for itself on purpose."""

_depth = threading.local()


class Group:
    """The ranks over which an engine such as `DistributedDataParallel` reduces gradients.

    Args:
        ranks: `"world"` or None for all, a `ProcessGroup`, or a `DeviceMesh` of one dimension. `"local"`: this rank alone.
        gradients: whether the engine takes the `mean` of the ranks' gradients, as DDP and FSDP do, or the `sum`.
        work: whether losses that can be are `divided` among the ranks, or computed `whole` by each. `auto` divides large
            batches.
        transport: how embeddings are sent: `full` as they are, `bf16` or `fp16` rounded to it. All ranks then compute from the
            rounded ones. Gradients are sent in full.

    Attributes:
        step: of a training loop that counts its steps, so that ranks at different steps are noticed; or None.

    Raises:
        ConfigError: ranks or a rule of another kind.
    """

    def __init__(
        self, ranks: Any = None, gradients: GradientRule = "mean", work: Work = "auto", transport: Transport = "full"
    ) -> None:
        if transport != "full" and transport not in _HALVES:
            raise ConfigError(f"transport is '{transport}', but must be full, bf16 or fp16")
        if work not in ("auto", "divided", "whole"):
            raise ConfigError(f"work is '{work}', but must be auto, divided or whole")
        if gradients not in ("mean", "sum"):
            raise ConfigError(f"gradients is '{gradients}', but an engine takes their mean or their sum")
        if isinstance(ranks, str) and ranks not in ("world", LOCAL):
            raise ConfigError(f"group is '{ranks}', but must be world, local, a ProcessGroup or a DeviceMesh")
        if not isinstance(ranks, str) and hasattr(ranks, "get_group"):  # a mesh
            if ranks.ndim != 1:
                raise ConfigError(f"group is a mesh of {ranks.ndim} dimensions; flatten those that gradients are reduced over")
            ranks = ranks.get_group()
        elif not (ranks is None or isinstance(ranks, str) or hasattr(ranks, "size")):
            raise ConfigError(f"group must be world, local, a ProcessGroup or a DeviceMesh, got {type(ranks).__name__}")
        self.is_local = ranks == LOCAL
        self.process_group = None if isinstance(ranks, str) else ranks
        self.gradients: GradientRule = gradients
        self.work: Work = work
        self.transport: Transport = transport
        self.step: int | None = None
        self._answer: tuple[Callable[[], Any], int, int] = (_nothing, 0, 0)

    @property
    def size(self) -> int:
        """How many ranks there are; 1 without a process group.

        Raises:
            ConfigError: several processes were started, but no process group joins them.
        """
        if self.is_local:
            return 1
        if (size := self._known()[0]) > 0:
            return size
        if not _is_initialized():
            if int(os.environ.get("WORLD_SIZE", "1") or 1) > 1:
                raise ConfigError(
                    "several processes were started, but no process group joins them; call"
                    " torch.distributed.init_process_group() before the loss"
                )
            return 1
        raise ConfigError("this process is no rank of the group its loss was given")

    @property
    def rank(self) -> int:
        """The number of this process among the ranks, from 0."""
        return 0 if self.size == 1 else self._known()[1]

    def _known(self) -> tuple[int, int]:
        """Size and rank, 0 without a process group: PyTorch takes longer to say them than a step has for all its questions."""
        if not torch.distributed.is_available():
            return 0, 0
        joined = torch.distributed.group.WORLD if self.process_group is None else self.process_group
        if joined is None or not _is_initialized():
            return 0, 0
        asked, size, rank = self._answer
        if joined is not asked():
            size, rank = torch.distributed.get_world_size(joined), torch.distributed.get_rank(joined)
            self._answer = weakref.ref(joined), size, rank  # it ends when PyTorch lets it go
        return size, rank

    def global_rank(self, rank: int) -> int:
        """The number among all processes of a rank of this group."""
        return rank if self.process_group is None else torch.distributed.get_global_rank(self.process_group, rank)

    @property
    def manner(self) -> str:
        """What all ranks must do alike, in words; nothing where they do as ever."""
        is_usual = (self.gradients, self.work, self.transport) == ("mean", "auto", "full")
        return "" if is_usual else f", the {self.gradients} of gradients, work {self.work}, transport {self.transport}"

    @property
    def factor(self) -> float:
        """What gradients of embeddings are multiplied by, so that what the engine makes of them is the whole gradient."""
        return float(self.size) if self.gradients == "mean" else 1.0

    def sent(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Embeddings as they are sent."""
        half = _HALVES.get(self.transport)
        return embeddings if half is None or embeddings.element_size() <= 2 else embeddings.to(half)

    def meet(self, words: Sequence[int], tensors: Sequence[torch.Tensor], device: torch.device) -> list[list[int]]:
        """A few words of every rank, with which its tensors may come. All ranks call it at the start of what they do together,
        before they know what the others bring.

        Args:
            words: of this rank, as many on each.
            tensors: contiguous rows, which `met` then gives.
            device: that the group's backend can send from.

        Returns:
            A list of each rank, with zeros behind the words where the ranks share memory.
        """
        if (board := self.board_for(device)) is not None:
            return board.meet(words, tensors)
        return self.all_gather(torch.tensor([words], dtype=torch.int64, device=device)).tolist()

    def met(self, tensors: Sequence[torch.Tensor], sizes: Sequence[int]) -> list[torch.Tensor]:
        """The rows of all ranks of the tensors that every rank has brought to `meet`, as `gather` gives them."""
        board = self.board_for(tensors[0].device)
        return self.gather(tensors, sizes) if board is None or not board.has_met(tensors, sizes) else board.met(tensors, sizes)

    def all_gather(self, own: torch.Tensor) -> torch.Tensor:
        """The tensors of all ranks, one behind the other: `[W B, ...]` of `[B, ...]`, which have one shape on all."""
        if (board := self.board_for(own.device)) is not None:
            return board.gather([own.contiguous()], [len(own)] * self.size)[0]
        everything = own.new_empty(self.size * len(own), *own.shape[1:])
        # torch 2.14 has given the function another name
        gather = getattr(torch.distributed, "all_gather_single", None) or torch.distributed.all_gather_into_tensor
        gather(everything, own.contiguous(), group=self.process_group)
        return everything

    def gather(self, tensors: Sequence[torch.Tensor], sizes: Sequence[int]) -> list[torch.Tensor]:
        """The rows of all ranks of several tensors, by one all-gather of bytes, so that every dtype takes the same way.

        Args:
            tensors: contiguous `[B, ...]` each. All but the first dimension are the same on all ranks.
            sizes: the B of every rank.

        Returns:
            `[N, ...]` each.
        """
        if (board := self.board_for(tensors[0].device)) is not None:
            return board.gather(tensors, sizes)
        flat = [tensor.flatten(1) if tensor.ndim > 1 else tensor[:, None] for tensor in tensors]
        parts = [tensor.view(torch.uint8) for tensor in flat]  # [B, bytes]
        rows, most = torch.cat(parts, 1), max(sizes)
        if len(rows) < most:
            rows = torch.cat([rows, rows.new_zeros(most - len(rows), rows.shape[1])])
        everything = self.all_gather(rows)
        if set(sizes) != {most}:
            pieces = everything.split(most)
            everything = torch.cat([piece[:size] for piece, size in zip(pieces, sizes, strict=True)])
        columns = everything.split([part.shape[1] for part in parts], 1)
        return [
            column.contiguous().view(tensor.dtype).reshape(-1, *tensor.shape[1:])
            for column, tensor in zip(columns, tensors, strict=True)
        ]

    def reduce_scatter(self, rows: torch.Tensor) -> torch.Tensor:
        """The sum over ranks of this rank's part of `[W B, ...]`, which has one shape on all: `[B, ...]`."""
        own, rows = rows.new_empty(len(rows) // self.size, *rows.shape[1:]), rows.contiguous()
        if rows.dtype in (torch.float32, torch.float64) and (board := self.board_for(rows.device)) is not None:
            board.reduce_scatter(rows, own)
            return own
        scatter = getattr(torch.distributed, "reduce_scatter_single", None) or torch.distributed.reduce_scatter_tensor
        scatter(own, rows, group=self.process_group)
        return own

    def all_to_all(self, blocks: Sequence[torch.Tensor], sizes: Sequence[int]) -> torch.Tensor:
        """A block of each rank, one behind the other and flat.

        Args:
            blocks: what each rank gets of this one.
            sizes: how many numbers each rank sends to this one.
        """
        everything = blocks[0].new_empty(sum(sizes))
        if (board := self.board_for(everything.device)) is not None:
            board.all_to_all([block.contiguous() for block in blocks], everything.split(list(sizes)))
            return everything
        own = torch.cat([block.flatten() for block in blocks])
        lengths = [block.numel() for block in blocks]
        torch.distributed.all_to_all_single(everything, own, list(sizes), lengths, group=self.process_group)
        return everything

    def add_up(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of a few numbers over all ranks, the same bits on each. May change and return `values`."""
        if (board := self.board_for(values.device)) is not None:
            return board.gather([values[None].contiguous()], [1] * self.size)[0].sum(0, dtype=values.dtype)
        torch.distributed.all_reduce(values, group=self.process_group)
        return values

    def board_for(self, device: torch.device) -> Board | None:
        """The memory through which the ranks can exchange tensors of a device, or None where there is none."""
        return None if device.type != "cpu" or self.size == 1 else board_of(self.process_group)

    def __deepcopy__(self, memo: dict[int, Any]) -> Group:
        return self  # processes are not copied

    def __reduce__(self) -> tuple[Any, ...]:
        if self.process_group is not None:
            raise ConfigError("a loss with a ProcessGroup of its own cannot be pickled; save its state_dict()")
        return Group, (LOCAL if self.is_local else None, self.gradients, self.work, self.transport)

    def __repr__(self) -> str:
        return f"Group({'local' if self.is_local else self.process_group or 'world'}, gradients={self.gradients!r})"


def is_one_of_several() -> bool:
    """Whether this process has joined others in a process group."""
    return _is_initialized() and torch.distributed.get_world_size() > 1


@contextlib.contextmanager
def inside() -> Iterator[None]:
    """Calls inside the block are part of a call that knows about the ranks."""
    _depth.number = getattr(_depth, "number", 0) + 1
    try:
        yield
    finally:
        _depth.number -= 1


def is_inside() -> bool:
    """Whether this is part of a call that all ranks take part in."""
    return getattr(_depth, "number", 0) > 0


def refuse_alone(noun: str) -> None:
    """Raise where a loss would train on the batch of this rank alone without a word: engines would average gradients that are
    not those of the whole batch.

    Args:
        noun: what is called.

    Raises:
        ConfigError: there are several ranks, and nobody said what they mean.
    """
    if torch.compiler.is_compiling() or not is_one_of_several() or is_inside():
        return
    size = torch.distributed.get_world_size()
    raise ConfigError(
        f"{noun} trains in one of {size} ranks, but sees the batch of this rank alone, so gradients would be wrong; use"
        " dmlcore.distributed(loss), or dmlcore.distributed(loss, 'local') where that is meant"
    )


def _nothing() -> None:
    return None


def _is_initialized() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
