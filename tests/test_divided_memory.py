"""A memory whose entries several ranks divide: values, gradients and entries are those of one process. `memory_cases.py` holds
the cases, and is the program of each rank."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from launched import check_refusals
from memory_cases import CASES, COMPARED
from rank_cases import Numbers, Part
from test_distributed import check_results, run_ranks

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")

PROGRAM = "memory_cases.py"


@cache
def in_one_process(name: str) -> Numbers:
    return CASES[name](Part(0, 1))


def limit_of(case: str) -> float:
    return 2e-6 if case == "float32" else 1e-9  # sums of other orders, over four steps


def check(ranks: list[dict[str, Any]]) -> None:
    assert {key.rpartition(", ")[0] for key in ranks[0]["results"]} == set(CASES)
    check_results(ranks, in_one_process, limit_of)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[dict[str, Any]]:
    return run_ranks(2, tmp_path_factory.mktemp("two"), "uneven,empty", PROGRAM)


def test_two_ranks_are_one_process(two) -> None:
    assert {"ms", "circle", "binomial_deviance", "sup_con", "triplet", "nt_xent"} <= {case.name for case in COMPARED}
    check(two)


def test_what_cannot_be_divided_is_refused_in_a_line(two) -> None:
    words = {
        "no memory": "there is none",
        "third party": "not defined by rows",
        "batch": "its rows depend on one another",
        "vectors": "beyond their similarities",
        "pairs": "beyond their similarities",
        "miner": "its miner 'angular'",
    }
    check_refusals(two, words)


@pytest.mark.slow
def test_four_ranks_are_one_process(tmp_path) -> None:
    check(run_ranks(4, tmp_path, "uneven,empty", PROGRAM))
