"""Exchanges through memory that ranks of one machine share. `board_ranks.py` is the program of each rank."""

from __future__ import annotations

import pytest
import torch
from launched import outcomes_of_ranks

from dmlcore.kernels import extension
from dmlcore.ranks import board

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed"),
    pytest.mark.skipif(extension.cpu() is None or not board.native.most, reason="the CPU extension or Linux is missing"),
]


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
