"""Losses whose classes several ranks divide: values and gradients are those of one process. `shard_cases.py` holds the cases,
and is the program of each rank."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from launched import check_refusals
from rank_cases import Numbers, Part
from shard_cases import CASES, OF_CLASSES
from test_distributed import check_results, run_ranks

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")

PROGRAM = "shard_cases.py"


@cache
def in_one_process(name: str) -> Numbers:
    return CASES[name](Part(0, 1))


def limit_of(case: str) -> float:
    # logits of 150 have no digits below 1e-5 in float32
    of_float32 = 4e-6 if "scale=150" in case or "alpha=150" in case else 2e-6
    return 0.0 if case.startswith("start") else of_float32 if case.startswith("float32") else 1e-9


def check(ranks: list[dict[str, Any]]) -> None:
    assert {key.rpartition(", ")[0] for key in ranks[0]["results"]} == set(CASES)
    check_results(ranks, in_one_process, limit_of)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[dict[str, Any]]:
    return run_ranks(2, tmp_path_factory.mktemp("two"), "uneven,empty", PROGRAM)


def test_two_ranks_are_one_process(two) -> None:
    assert len({case.create().name for case in OF_CLASSES}) == 9  # every loss of the catalogue with proxies
    check(two)


def test_what_cannot_be_divided_is_refused_in_a_line(two) -> None:
    words = {
        "alone": "call what dmlcore.distributed returned",
        "no proxies": "there is none",
        "hidden": "with hidden units",
        "other values": "'halved' does not say how",
        "third party": "'sideways' does not say how",
        "ahead": "looks ahead",
        "engine": "loss.losses.0.proxies'",
    }
    check_refusals(two, words)


@pytest.mark.slow
def test_four_ranks_are_one_process(tmp_path) -> None:
    check(run_ranks(4, tmp_path, "classes,uneven,empty", PROGRAM))
