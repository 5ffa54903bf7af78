"""Swapping and removal, the choice of splits, and episodes: by hand on small cases and by what must hold on any."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmlcore.errors import ConfigError, DataError
from dmlcore.protocols.shift.episodes import draw_supports, usable_shots
from dmlcore.protocols.shift.frechet import frechet_distance
from dmlcore.protocols.shift.split_choice import by_spacing, by_targets, evenly_spaced, identities
from dmlcore.protocols.shift.swapping import (
    LEAST_SIDE,
    ByGroups,
    ByMeans,
    Division,
    default_division,
    halved,
    isometric,
    remove,
    swap,
)

EVERYTHING: dict[str, Any] = {"history": 5, "patience": 4, "iterations": 60}


def classes(seed: int, count: int = 60, columns: int = 6) -> tuple[np.ndarray, Division]:
    draw = np.random.default_rng(seed)
    vectors = draw.normal(size=(count, columns)) + 2 * draw.normal(size=(2, columns))[draw.integers(0, 2, count)]
    order = draw.permutation(count)
    return vectors, default_division(vectors, order[: count // 2], order[count // 2 :])


def test_the_first_swap_by_hand() -> None:
    # means 1.5 and 8.5 - the class at 6 looks most like the test side, the one at 4 like the training side
    vectors = np.array([0.0, 0.0, 0.0, 6.0, 10.0, 10.0, 10.0, 4.0])[:, None]
    start = default_division(vectors, np.array([0, 1, 2, 3]), np.array([4, 5, 6, 7]))
    (first, *_) = swap(vectors, start, ByMeans(vectors), pairs=1, history=5, patience=1, iterations=1)
    assert first.train.tolist() == [0, 1, 2, 7] and first.test.tolist() == [4, 5, 6, 3]
    assert first.swapped == 1 and first.fid == frechet_distance(vectors[first.train], vectors[first.test]) > start.fid


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**20), st.integers(1, 4))
def test_swapping_is_monotone_until_the_plateau_and_removal_keeps_sides_equal(seed: int, pairs: int) -> None:
    vectors, start = classes(seed)
    everyone = set(range(len(vectors)))
    driver = ByMeans(vectors)
    harder = swap(vectors, start, driver, pairs=pairs, **EVERYTHING)
    easier = swap(vectors, start, driver, pairs=pairs, **{**EVERYTHING, "history": 30}, easier=True)
    fids = [division.fid for division in (*reversed(easier), start, *harder)]
    assert all(low < high for low, high in pairwise(fids)) and harder
    for division in (*easier, *harder):
        assert {*division.train} | {*division.test} == everyone and not {*division.train} & {*division.test}
        assert abs(division.swapped) == len({*division.train} & {*start.test})
    hardest = harder[-1]
    removals = remove(vectors, hardest, driver, count=2, most=12, patience=4)
    previous = hardest
    for division in removals:
        assert division.fid > previous.fid and len(division.train) == len(division.test) == 30 - division.removed
        assert {*division.train} < {*previous.train} and {*division.test} < {*previous.test}
        previous = division
    assert previous.removed <= 12


def test_a_swap_that_does_not_help_is_undone_and_not_tried_again() -> None:
    vectors = np.array([0.0, 0.1, 0.2, 9.8, 9.9, 10.0])[:, None]  # as far apart as they can be
    start = default_division(vectors, np.array([0, 1, 2]), np.array([3, 4, 5]))
    seen = []

    class Watched(ByMeans):
        def swaps(self, train: np.ndarray, test: np.ndarray, easier: bool) -> tuple[np.ndarray, np.ndarray]:
            seen.append((train.tolist(), test.tolist()))
            return super().swaps(train, test, easier)

    assert swap(vectors, start, Watched(vectors), pairs=1, history=1, patience=3, iterations=9) == []
    assert seen == [([0, 1, 2], [3, 4, 5])] * 3


def test_removal_leaves_enough_classes() -> None:
    vectors, start = classes(3, count=16)
    for division in remove(vectors, start, ByMeans(vectors), count=3, most=99, patience=9):
        assert min(len(division.train), len(division.test)) >= LEAST_SIDE


def test_groups_part_and_the_rest_is_removed() -> None:
    draw = np.random.default_rng(0)
    groups = np.repeat([0, 1, 2], [20, 8, 12])
    vectors = draw.normal(size=(40, 4)) + 3 * groups[:, None]
    train, test = halved([np.flatnonzero(groups == group) for group in range(3)], 0.5, seed=1)
    assert [int((groups[test] == group).sum()) for group in range(3)] == [10, 4, 6]
    start, driver = default_division(vectors, train, test), ByGroups(groups == 2, seed=1)
    divisions = swap(vectors, start, driver, pairs=2, **EVERYTHING)
    assert [division.swapped for division in divisions] == [2, 4, 6] and not (groups[divisions[-1].train] == 2).any()
    removals = remove(vectors, divisions[-1], driver, count=2, most=99, patience=1)
    assert removals and all(len(division.train) == len(division.test) == 20 - division.removed for division in removals)
    assert removals[-1].removed == 8 and (groups[removals[-1].test] == 2).all()
    again = swap(vectors, start, ByGroups(groups == 2, seed=1), pairs=2, **EVERYTHING)
    assert all((first.train == second.train).all() for first, second in zip(divisions, again, strict=True))


def test_fewer_columns_and_the_same_distances() -> None:
    vectors = np.random.default_rng(0).normal(size=(12, 300)) + 5
    small = isometric(vectors)
    assert small.shape == (12, 12)
    assert frechet_distance(small[:5], small[5:]) == pytest.approx(frechet_distance(vectors[:5], vectors[5:]), rel=1e-9)


def divisions_at(*fids: float, default: int = 0) -> list[Division]:
    nobody = np.arange(0)
    return [
        Division("default" if place == default else "swap", fid, 0 if place == default else place, 0, nobody, nobody)
        for place, fid in enumerate(fids)
    ]


def test_splits_are_nearest_to_their_targets_and_the_default_is_among_them() -> None:
    divisions = divisions_at(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, default=3)
    assert evenly_spaced(divisions, 3) == ([0, 3, 10], [])  # 3 stands for the target 5
    assert evenly_spaced(divisions, 1) == ([3], [])
    assert by_targets(divisions, [6.2, 8.6])[0] == [3, 6, 9]
    assert by_spacing(divisions, 4)[0] == [3, 7]
    assert by_spacing(divisions, 3)[0] == [0, 3, 6, 9]


def test_gaps_are_filled_and_what_was_not_reached_is_said() -> None:
    divisions = divisions_at(0, 0.1, 0.2, 10)
    assert evenly_spaced(divisions, 4) == ([0, 1, 2, 3], [])
    assert evenly_spaced(divisions, 6)[1] == ["6 splits were asked for, but only 4 divisions were found"]
    assert by_targets(divisions, [11]) == ([0, 3], ["FID 11 was asked for, but 0 to 10 was reached"])
    with pytest.raises(ConfigError, match="more than 1000 splits"):
        by_spacing(divisions, 0.001)


def test_identities_differ() -> None:
    nobody = np.arange(0)
    divisions = [
        Division(stage, 1.0, swapped, removed, nobody, nobody)
        for stage, swapped, removed in [("easier", -4, 0), ("default", 0, 0), ("swap", 6, 0), ("swap", 6, 0), ("removal", 6, 3)]
    ]
    assert identities(divisions) == ["easier4", "default", "swap6", "swap6_2", "swap6-remove3"]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 8), st.integers(0, 99))
def test_supports_leave_two_queries(sizes: list[int], shots: int, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    support = draw_supports(labels, shots, 3, seed)
    lent = np.bincount(labels[support], minlength=len(sizes))
    assert lent.tolist() == [min(shots, max(0, size - 2)) for size in sizes]
    assert len(set(support.tolist())) == len(support)
    assert (support == draw_supports(labels, shots, 3, seed)).all()


def test_episodes_differ_from_one_another() -> None:
    labels = np.repeat(np.arange(5), 20)
    drawn = {tuple(draw_supports(labels, k, episode, 0)) for k in (2, 5) for episode in range(10)}
    assert len(drawn) == 20
    counts = np.bincount(np.concatenate([draw_supports(labels, 5, episode, 0) for episode in range(400)]), minlength=100)
    assert abs(counts - 100).max() < 45  # 5 standard deviations of a fair draw


def test_shots_that_no_class_can_give() -> None:
    labels, names = np.repeat([0, 1, 2], [4, 6, 3]), ["a", "b", "c"]
    everyone = np.arange(3)
    assert usable_shots(labels, names, everyone, None)[0] == [2]
    assert usable_shots(labels, names, everyone, None)[1] == [
        "1 of 3 test classes have fewer than 4 samples and lend fewer than 2 to an episode",
        "episodes of 5 shots are left out: 5 shots need a test class of 7 samples or more, but the largest, 'b', has 6: at most"
        " 4 shots work",
        "episodes of 10 shots are left out: 10 shots need a test class of 12 samples or more, but the largest, 'b', has 6: at"
        " most 4 shots work",
    ]
    with pytest.raises(ConfigError, match="the largest, 'b', has 6: at most 4 shots work"):
        usable_shots(labels, names, everyone, [5])
    with pytest.raises(DataError, match="class .c. has 3 samples, but episodes of 2 shots take 2 and leave 2; 1 of 3"):
        usable_shots(labels, names, everyone, [2], "refuse")
    assert usable_shots(labels, names, everyone, [1], "refuse") == ([1], [])
    for bad in ([0], [2, 2]):
        with pytest.raises(ConfigError, match="different whole numbers"):
            usable_shots(labels, names, everyone, bad)
