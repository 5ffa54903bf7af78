"""How the ranks of one machine exchange tensors through memory that they share.

gloo sends everything through sockets and by threads of its own, which takes more processor time than a step's work on what is
sent. `csrc/cpu/board.h` has what happens in the memory. Here is how the ranks of a process group come to share it.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import secrets
import socket
import struct
import weakref
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

native: Any = None
"""The class of the extension, or None. `dmlcore.kernels` loads it, and stands above this room."""
_HELLO = struct.Struct("<q")
_START = 60.0  # seconds that the ranks may take to meet


class Board:
    """What one rank has of the memory of all ranks of a group. All ranks call the same of it in the same order.

    Args:
        rank: this one.
        lines: to every other rank. The end of a process closes its lines.
        memories: of every rank.
        seconds: how long it waits for another rank.
    """

    def __init__(self, rank: int, lines: dict[int, socket.socket], memories: Sequence[Tensor], seconds: float) -> None:
        self.alive = lines, memories
        _alive.add(self)
        numbers = [lines[other].fileno() if other in lines else -1 for other in range(len(memories))]
        self.native = native(rank, [memory.data_ptr() for memory in memories], numbers, seconds)

    def gather(self, tensors: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """The rows of all ranks, `[N, ...]` each, of contiguous `[B, ...]` each, where `sizes` are the B of every rank."""
        everything, taken = _room(tensors, sizes)
        self.native.trade([[(tensor.data_ptr(), tensor.nbytes) for tensor in tensors]], taken, 0)
        return everything

    def meet(self, words: Sequence[int], tensors: Sequence[Tensor]) -> list[list[int]]:
        """A few words of every rank, and 0 behind them. Contiguous tensors come with them, of other lengths on each rank: until
        the next exchange `met` gives them where `has_met` says so."""
        told = self.native.meet(words, [(tensor.data_ptr(), tensor.nbytes) for tensor in tensors])
        return [told[first : first + native.words] for first in range(0, len(told), native.words)]

    @staticmethod
    def has_met(tensors: Sequence[Tensor], sizes: Sequence[int]) -> bool:
        """Whether all rows came with `meet`."""
        return max(sizes) * sum(_widths(tensors)) <= native.half

    def met(self, tensors: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """The rows of all ranks that came with `meet`, as `gather` gives them."""
        everything, taken = _room(tensors, sizes)
        self.native.copy_met(taken)
        return everything

    def reduce_scatter(self, rows: Tensor, own: Tensor) -> None:
        """Fill contiguous `[B, ...]` by sums over the ranks of this one's part of contiguous `[W B, ...]`, float32 or 64."""
        length, at, size = own.nbytes, rows.data_ptr(), len(self.alive[1])
        blocks = [[(at + rank * length, length)] for rank in range(size)]
        self.native.trade(blocks, [[(own.data_ptr(), length)]] * size, own.element_size())

    def all_to_all(self, blocks: Sequence[Tensor], pieces: Sequence[Tensor]) -> None:
        """Fill a contiguous piece from each rank by the contiguous block that it has for this one."""
        self.native.trade(*([[(t.data_ptr(), t.nbytes)] for t in tensors] for tensors in (blocks, pieces)), 0)


def _widths(tensors: Sequence[Tensor]) -> list[int]:
    """Bytes of a row of each."""
    return [tensor.element_size() * math.prod(tensor.shape[1:]) for tensor in tensors]


def _room(tensors: Sequence[Tensor], sizes: Sequence[int]) -> tuple[list[Tensor], list[list[tuple[int, int]]]]:
    """Tensors for the rows of all ranks, and where those of each rank go."""
    everything = [tensor.new_empty(sum(sizes), *tensor.shape[1:]) for tensor in tensors]
    taken, first = [], 0
    for size in sizes:
        places = zip(everything, _widths(tensors), strict=True)
        taken.append([(whole.data_ptr() + first * width, size * width) for whole, width in places])
        first += size
    return everything, taken


_boards: weakref.WeakKeyDictionary[Any, Board | None] = weakref.WeakKeyDictionary()
_alive: weakref.WeakSet[Board] = weakref.WeakSet()


def _close_lines() -> None:
    """In a process that this one has forked, such as a worker that loads data: it would keep the lines of a dead rank open."""
    for board in list(_alive):
        for line in board.alive[0].values():
            line.close()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_close_lines)


def board_of(process_group: Any) -> Board | None:
    """The board of a process group of several ranks that exchange tensors on the CPU by gloo, or None where its ranks are on
    several machines. All ranks call it; the first call makes it."""
    group = distributed.group.WORLD if process_group is None else process_group
    if group not in _boards:
        _boards[group] = _met(group) if "gloo" in distributed.get_backend_config(group) else None
    return _boards[group]


def _place() -> tuple[Any, ...] | None:
    """What processes have in common that can share memory. None: this one cannot."""
    if os.environ.get("DML_SHARED_MEMORY", "1") == "0" or native is None or not native.most:
        return None
    if not hasattr(os, "memfd_create"):  # Python was built with an old C library
        return None
    try:
        machine = Path("/proc/sys/kernel/random/boot_id").read_text()
        network = os.stat("/proc/self/ns/net").st_ino  # in which the names of lines are known
    except OSError:
        return None
    return machine, network, os.getuid()


def _met(group: Any) -> Board | None:
    """Let the ranks of a group meet. None, on all ranks: they cannot share memory."""
    rank, size = distributed.get_rank(group), distributed.get_world_size(group)
    with contextlib.ExitStack() as stack:
        place, name = _place(), f"\0dmlcore-{secrets.token_hex(16)}"
        listener = None
        if place is not None:
            with contextlib.suppress(OSError):
                listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
                listener.bind(name)
                listener.listen(size)
        told: list[Any] = [None] * size
        distributed.all_gather_object(told, (place, name) if listener is not None else None, group=group)
        if listener is None or size > native.most or any(other is None or other[0] != place for other in told):
            return None
        board = None
        with contextlib.suppress(OSError, ValueError, IndexError, struct.error):
            board = _joined(rank, listener, [other[1] for other in told], _seconds(group))
        have: list[Any] = [None] * size
        distributed.all_gather_object(have, board is not None, group=group)
        return board if all(have) else None


def _joined(rank: int, listener: socket.socket, names: Sequence[str], seconds: float) -> Board:
    """Connect this rank with all others, and share memory with them."""
    lines: dict[int, socket.socket] = {}
    for other in range(rank):
        lines[other] = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        lines[other].settimeout(_START)
        lines[other].connect(names[other])
        lines[other].send(_HELLO.pack(rank))
    listener.settimeout(_START)
    while len(lines) < len(names) - 1:
        line, _ = listener.accept()
        user = struct.unpack("iII", line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
        if user != os.getuid():  # names of lines are no secret on a machine
            line.close()
            continue
        line.settimeout(_START)
        (other,) = _HELLO.unpack(line.recv(_HELLO.size))
        lines[other] = line
    handle = os.memfd_create("dmlcore")
    try:
        os.ftruncate(handle, native.bytes)
        memories = {rank: _mapped(handle)}
        for other in sorted(lines):  # in pairs, as the system lets a user have few descriptors under way
            socket.send_fds(lines[other], [b"m"], [handle])
            _, handles, _, _ = socket.recv_fds(lines[other], 1, 1)
            try:
                memories[other] = _mapped(handles[0])
            finally:
                os.close(handles[0])
    finally:
        os.close(handle)
    return Board(rank, lines, [memories[other] for other in range(len(names))], seconds)


def _mapped(handle: int) -> Tensor:
    return torch.frombuffer(mmap.mmap(handle, native.bytes), dtype=torch.uint8)


def _seconds(group: Any) -> float:
    """How long the ranks of a group wait for one another."""
    options = getattr(group._get_backend(torch.device("cpu")), "options", None)
    timeout = getattr(options, "_timeout", None)
    return (timeout if isinstance(timeout, timedelta) else timedelta(minutes=30)).total_seconds()
