"""Derivatives of what crosses between two ranks, by differences, and steps of ranks that end badly: `operator_ranks.py` is the
program of each rank."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from launched import outcomes_of_ranks

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return outcomes_of_ranks(2, tmp_path_factory.mktemp("operators"), "operator_ranks.py")


def test_derivatives_are_those_of_differences(two: list[dict[str, Any]]) -> None:
    for rank, outcome in enumerate(two):
        for sizes, (by_backward, by_differences) in outcome["derivatives"].items():
            assert len(by_backward) == sizes[rank]
            torch.testing.assert_close(by_backward, by_differences, rtol=1e-6, atol=1e-6)
            assert not by_backward.numel() or by_backward.abs().min() > 1e-4


def test_a_rank_that_breaks_ends_the_step_of_all(two: list[dict[str, Any]]) -> None:
    (first, told), (second, own) = (outcome["broken"] for outcome in two)
    assert own == "MemoryError: no room" and "another process" in told, told
    assert max(first, second) < 20  # where nobody tells, they wait for a minute


def test_backward_after_the_group_has_ended_breaks_nothing(two: list[dict[str, Any]]) -> None:
    for outcome in two:
        assert outcome["same"] and (outcome["destroyed"] == "" or "process" in outcome["destroyed"]), outcome["destroyed"]
