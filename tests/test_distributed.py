"""Losses on several ranks: values and gradients are those of one process on all samples. `rank_cases.py` holds the cases, and
is the program of each rank. Processes start once for all tests of a number of ranks."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import rank_cases
import torch
from launched import check_refusals, outcomes_of_ranks
from rank_cases import CASES, FAULTS, SAMPLES, WIDTH, Numbers, Part

TOLERANCE = {"float32": 2e-6, "weighting": 1e-11, "weighting held_out": 1e-6}
"""Elsewhere 1e-12. Weightings are compared after eight steps, in which rounding grows. With `held_out` that of another library
for products grows to 2e-8, and such a library may round by where its matrices lie in memory. Float32 reaches 1.4e-6 on
processors whose library multiplies matrices of other shapes in another order."""

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")


def run_ranks(size: int, folder: Path, splits: str, program: str = "rank_cases.py") -> list[dict[str, Any]]:
    return outcomes_of_ranks(size, folder, program, splits)


@cache
def in_one_process(name: str) -> Numbers:
    run = CASES.get(name) or rank_cases.of_a_weighting(name.removeprefix("weighting "))
    return run(Part(0, 1))


def worst(numbers: Numbers, expected: Numbers) -> float:
    """The largest relative difference."""
    assert set(numbers) == set(expected)
    differences = [0.0]
    for name, tensor in expected.items():
        scale = max(tensor.double().norm().item(), 1e-2)  # some gradients are 0 but for rounding
        difference = (numbers[name].double() - tensor.double()).nan_to_num(0).norm().item()
        differences.append(difference / scale if torch.equal(numbers[name].isnan(), tensor.isnan()) else float("inf"))
    return max(differences)


def check_results(ranks: list[dict[str, Any]], expected: Callable[[str], Numbers], limit_of: Callable[[str], float]) -> None:
    """All cases of all ranks against one process: what it gives, and how far they may be apart, by the name of the case."""
    wrong = {}
    for rank, outcome in enumerate(ranks):
        for key, numbers in outcome["results"].items():
            case = key.rpartition(", ")[0]
            difference = worst(numbers, expected(case))
            if not difference <= limit_of(case):
                wrong[f"{key} on rank {rank}"] = difference
    assert not wrong, wrong


def check(ranks: list[dict[str, Any]]) -> None:
    check_results(ranks, in_one_process, lambda case: TOLERANCE.get(case, TOLERANCE.get(case.partition(" ")[0], 1e-12)))
    assert len(ranks[0]["results"]) > 180
    for outcome in ranks[1:]:  # numbers that steer are the same to the last bit
        for key, numbers in outcome["results"].items():
            for name, tensor in numbers.items():
                if name.startswith(("weight of", "norm of", "value")):
                    assert tensor.isfinite().all(), (key, name)
                    assert torch.equal(tensor, ranks[0]["results"][key][name]), (key, name)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[dict[str, Any]]:
    return run_ranks(2, tmp_path_factory.mktemp("two"), "uneven,empty")


def test_two_ranks_are_one_process(two) -> None:
    check(two)


def test_planted_faults_are_seen(two) -> None:
    expected = rank_cases.one_step(Part(0, 1), rank_cases.ensemble(), *rank_cases.batch(5))
    for name in FAULTS:
        assert max(worst(outcome["planted"][name], expected) for outcome in two) > 0.1, name


def test_what_cannot_be_right_is_refused_on_every_rank(two) -> None:
    words = {
        "ensemble alone": ("an ensemble trains in one of 2 ranks",) * 2,
        "loss alone": ("the loss 'ms' trains in one of 2 ranks",) * 2,
        "memory alone": ("a memory trains in one of 2 ranks",) * 2,
        "meant": ("nothing was refused",) * 2,
        "evaluation": ("nothing was refused",) * 2,
        "a bad batch": ("rank 1 refused its batch", "labels of embeddings must be whole numbers"),
        "other widths": ("rank 0 has vectors of 11 numbers",) * 2,
        "other losses": ("rank 1 has another loss than rank 0",) * 2,
        "other steps": ("the ranks are at different steps: [0, 1]; rank 0 left some out",) * 2,
        "other work": ("the ranks' batches do not fit together",) * 2,
        "other transport": ("transport bf16",) * 2,
        "other gradients": ("the sum of gradients",) * 2,
        "draws": ("'drawing' is",) * 2,
        "no reduction": ("reduction 'none'",) * 2,
    }
    check_refusals(two, words)


def test_what_crosses_in_a_step_is_the_same_on_every_rank(two) -> None:
    """Counts and data are told, and the terms; where work is divided there is a sum, and the sum of gradients. The second rank
    has no samples. Beside them there are three numbers of each loss that is divided, and its sum."""
    for outcome, samples in zip(two, (SAMPLES, 0), strict=True):
        met, terms = ("meet", samples * (8 + 8 * WIDTH)), ("all_gather", 8 * len(rank_cases.MEMBERS))
        assert outcome["traffic"]["whole"] == [met, terms]
        gradients = ("reduce_scatter", 8 * 2 * SAMPLES * WIDTH)  # as many rows for each rank
        assert outcome["traffic"]["divided"] == [met, ("add_up", 2 * 8 * 4), terms, gradients]


@pytest.mark.slow
def test_four_ranks_are_one_process(tmp_path) -> None:
    check(run_ranks(4, tmp_path, "classes,uneven,empty,even"))
