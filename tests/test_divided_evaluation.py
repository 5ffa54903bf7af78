"""Evaluation on several ranks has the bits of one process. `evaluation_ranks.py` holds the cases, and is the program of each
rank. Processes start once for all tests of a number of ranks."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import evaluation_ranks
import numpy as np
import pytest
import torch
from launched import check_refusals, outcomes_of_ranks

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")


def run_ranks(size: int, folder: Path) -> list[dict[str, Any]]:
    return outcomes_of_ranks(size, folder, "evaluation_ranks.py", weights_only=False)


@cache
def in_one_process() -> dict[str, Any]:
    return evaluation_ranks.of_ranks(None, "even") | evaluation_ranks.of_data(None, "even")


def check(ranks: list[dict[str, Any]]) -> None:
    """Every case of every rank has the bits of one process."""
    expected, python = in_one_process(), evaluation_ranks.of_python(None)
    assert len(expected) > 20 and len(python) == 4
    for rank, outcome in enumerate(ranks):
        assert set(outcome["results"]) == {"even", "uneven", "empty"}
        for split, results in outcome["results"].items():
            assert results.keys() == expected.keys()
            for name, numbers in expected.items():
                assert np.array_equal(results[name], numbers, equal_nan=True), (name, split, rank)
        for name, numbers in python.items():
            assert np.array_equal(outcome["python"][name], numbers), (name, rank)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[dict[str, Any]]:
    return run_ranks(2, tmp_path_factory.mktemp("two"))


def test_two_ranks_have_the_bits_of_one_process(two) -> None:
    check(two)


def test_the_cases_differ() -> None:
    """A case that gave the same as another would test nothing of its own."""
    expected = in_one_process()
    assert not np.array_equal(expected["cosine"], expected["dot"])
    assert not np.array_equal(expected["euclidean"], expected["cosine"])
    assert np.array_equal(expected["runs"], expected["cosine"])
    assert expected["two classes"][0].min() > 64


def test_mistakes_are_told_by_all_ranks(two) -> None:
    words = {
        "nan": ("embeddings hold NaN or infinite values in 1 of 20 rows, the first is row 13",) * 2,
        "widths": ("rank 0 has vectors of 9",) * 2,
        "labels": ("rank 1 refused its batch", "labels must have one row for each of the 10 embeddings"),
        "every rank": ("all: a mistake",) * 2,
        "one rank": ("all: process 1 of 2 could not go on", "a mistake"),
        "the first": ("all: a mistake of the first",) * 2,
        "no rank": ("nothing was refused",) * 2,
    }
    check_refusals(two, words)


def test_rows_come_together(two) -> None:
    expected = evaluation_ranks.draw(10, 3)[0]
    for rank, outcome in enumerate(two):
        whole, first = outcome["whole"]
        assert torch.equal(whole, expected)
        assert (first is None) == (rank > 0)
    assert torch.equal(two[0]["whole"][1], expected)


@pytest.mark.slow
def test_four_ranks_have_the_bits_of_one_process(tmp_path) -> None:
    check(run_ranks(4, tmp_path))
