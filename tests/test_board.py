"""Exchanges through memory that ranks of one machine share. `board_ranks.py` is the program of each rank."""

from __future__ import annotations

import os
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from launched import outcomes_of_ranks

from dmlcore.errors import TrainingError
from dmlcore.kernels import extension
from dmlcore.ranks import board
from dmlcore.ranks.faults import naming_dead

pytestmark = [
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed"),
    pytest.mark.skipif(extension.cpu() is None or not board.native.most, reason="the CPU extension or Linux is missing"),
]


def two_boards(*seconds: float) -> list[board.Board]:
    """Of two ranks that are in this process."""
    memories = [torch.zeros(board.native.bytes, dtype=torch.uint8) for _ in range(2)]
    lines = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return [board.Board(rank, {1 - rank: lines[rank]}, memories, seconds[rank]) for rank in range(2)]


def exchange(own: board.Board, count: int = 1) -> list[float]:
    return own.gather([torch.ones(count)], [count, count])[0].tolist()


def test_a_rank_that_left_an_exchange_takes_part_in_none_any_more() -> None:
    hasty, patient = two_boards(0.1, 60)
    with pytest.raises(RuntimeError, match="timed out"):
        exchange(hasty)
    with pytest.raises(RuntimeError, match="an earlier exchange was broken off"):
        exchange(hasty)
    assert exchange(patient) == [1, 1]  # what the other one gave before it left
    for reason in ("another process has left an exchange", "an earlier exchange was broken off"):
        with pytest.raises(RuntimeError, match=f"Connection closed: {reason}"):
            exchange(patient)


def test_other_lengths_are_told_as_what_they_are() -> None:
    def outcome(own: board.Board, count: int) -> None:
        with pytest.raises(TrainingError, match="^the 2 processes exchange different things, so they have come apart. No step"):
            with naming_dead(2, lambda: "No step was taken"):
                exchange(own, count)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(outcome, two_boards(60, 60), (1, 2)))


def test_ranks_meet_with_as_many_rows_as_they_have() -> None:
    rows = [torch.arange(6.0).view(3, 2), torch.arange(14.0).view(7, 2)]
    large = [torch.ones(1, dtype=torch.float64), torch.ones(board.native.half // 8 + 1, dtype=torch.float64)]

    def meet(pair: tuple[board.Board, int]) -> None:
        own, rank = pair
        words = own.meet((rank, len(rows[rank])), (rows[rank],))
        assert [told[:3] for told in words] == [[0, 3, 0], [1, 7, 0]] and own.has_met(rows, (3, 7))
        assert torch.equal(own.met((rows[rank],), (3, 7))[0], torch.cat(rows))
        assert [told[0] for told in own.meet((5 + rank,), (large[rank],))] == [5, 6]
        assert not own.has_met((large[rank],), [len(part) for part in large])
        with pytest.raises(RuntimeError, match="another process exchanges something else"):
            own.meet((1,), ()) if rank else exchange(own)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(meet, zip(two_boards(60, 60), (0, 1), strict=True)))


def test_a_forked_process_keeps_no_line_open() -> None:
    boards = two_boards(60, 60)
    lines = boards[0].alive[0][1], boards[1].alive[0][0]
    until, end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(end)
        os.read(until, 1)
        os._exit(0)
    try:
        lines[0].close()
        lines[1].settimeout(10)
        assert lines[1].recv(1) == b""
    finally:
        os.close(end)
        os.waitpid(child, 0)
        os.close(until)


def test_an_old_python_shares_no_memory(monkeypatch) -> None:
    assert board._place() is not None
    monkeypatch.delattr(os, "memfd_create")
    assert board._place() is None


@pytest.mark.slow
def test_shared_memory_gives_what_sockets_give(tmp_path) -> None:
    outcomes = outcomes_of_ranks(3, tmp_path, "board_ranks.py")
    for rank, outcome in enumerate(outcomes):
        for shared, sockets in zip(outcome["shared"], outcome["sockets"], strict=True):
            assert shared.dtype == sockets.dtype
            torch.testing.assert_close(shared, sockets, rtol=1e-5, atol=1e-6)  # sums in another order
        assert torch.equal(outcome["shared"][-1], outcomes[0]["shared"][-1])  # a sum has the same bits everywhere
        seconds, text = outcome["late"]
        if rank:  # the others wait for the first one
            assert "timed out" in text and 0.9 < seconds < 20
        _, text = outcome["other"]
        assert "exchanges something else" in text
        if rank < 2:
            seconds, text = outcome["ended"]
            assert "Connection closed" in text and seconds < 20
