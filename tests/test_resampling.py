"""Intervals and tests over classes, against loops in float64 and scipy."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from scipy import stats

from dmlcore.evaluation.resampling import ClassSums, differences, holm, intervals


def seeded() -> Any:
    """As all versions of scipy take it; newer ones call it `rng`."""
    return {"random_state": np.random.default_rng(0)}


def drawn(classes: int, seed: int = 0, lift: float = 0.0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Measures of the queries of classes of different sizes, which differ in how hard they are; a few have no answer."""
    generator = np.random.default_rng(3)  # the classes are the same for every seed
    labels = np.repeat(np.arange(classes) * 2, generator.integers(1, 9, classes))
    hardness = generator.random(classes)[labels // 2]
    noise = np.random.default_rng(seed)
    values = np.clip(hardness + noise.normal(lift, 0.1, len(labels)), 0, 1)
    values[::17] = np.nan
    return {"recall@1": np.where(np.isnan(values), np.nan, values > 0.5), "map@r": values}, labels


def by_loops(values: dict[str, np.ndarray], labels: np.ndarray) -> tuple[np.ndarray, list[tuple[float, int]]]:
    members = [values["map@r"][(labels == label) & ~np.isnan(values["map@r"])] for label in np.unique(labels)]
    return np.array([rows.mean() for rows in members if len(rows)]), [
        (float(rows.sum()), len(rows)) for rows in members if len(rows)
    ]


def test_sums_over_classes_leave_out_queries_without_an_answer() -> None:
    values, labels = drawn(40)
    sums = ClassSums.of(values, labels)
    means, pairs = by_loops(values, labels)
    assert sums.measures == ("recall@1", "map@r")
    assert sums.means()[:, 1] == pytest.approx(means, abs=1e-12)
    assert sums.counts.tolist() == [count for _, count in pairs]
    assert set(sums.classes) <= set(labels)


def test_the_interval_is_that_of_scipy_over_classes() -> None:
    values, labels = drawn(60)
    _, pairs = by_loops(values, labels)
    total, count = np.array(pairs).T
    expected = stats.bootstrap(
        (total, count),
        lambda s, n, axis=-1: s.sum(axis) / n.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=20_000,
        **seeded(),
    ).confidence_interval
    low, high = intervals(ClassSums.of(values, labels), 20_000)["map@r"]
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.1 * (expected.high - expected.low))
    queries = values["map@r"][~np.isnan(values["map@r"])]
    naive = 2 * 1.96 * queries.std() / np.sqrt(len(queries))
    assert high - low > 1.5 * naive  # what an interval over queries would claim


def test_intervals_repeat_with_their_seed_and_hold_the_mean() -> None:
    values, labels = drawn(50)
    sums = ClassSums.of(values, labels)
    first = intervals(sums, 500, 1)
    assert first == intervals(sums, 500, 1) != intervals(sums, 500, 2)
    for name, rows in values.items():
        assert first[name][0] < np.nanmean(rows) < first[name][1]


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    generator, inside, trials = np.random.default_rng(0), 0, 200
    for trial in range(trials):
        hardness = generator.uniform(0, 1, 80)  # of classes whose mean is 0.5
        labels = np.repeat(np.arange(80), 5)
        low, high = intervals(ClassSums.of({"map@r": hardness[labels] + generator.normal(0, 0.1, 400)}, labels), 300, trial)[
            "map@r"
        ]
        inside += low <= 0.5 <= high
    assert 0.89 <= inside / trials <= 0.99  # 0.95 less a little for 80 classes, give or take 3 standard errors


@pytest.mark.parametrize("classes", [9, 60])
def test_the_paired_test_is_that_of_scipy(classes: int) -> None:
    (a, labels), (b, _) = drawn(classes, 1), drawn(classes, 2, 0.03)
    first, second = ClassSums.of(a, labels), ClassSums.of(b, labels)
    found = differences(first, second, 5_000)["map@r"]
    change = (second.sums - first.sums)[:, 1]
    expected = stats.permutation_test((change,), np.sum, permutation_type="samples", n_resamples=20_000, **seeded())
    assert found.value == pytest.approx(np.nanmean(b["map@r"]) - np.nanmean(a["map@r"]), abs=1e-12)
    assert found.p_flips == pytest.approx(expected.pvalue, abs=1e-9 if classes == 9 else 0.02)
    assert found.low is not None and found.high is not None and found.low < found.value < found.high
    back = differences(second, first, 5_000)["map@r"]
    assert back.value == -found.value and back.p_flips == found.p_flips and back.p_bootstrap == found.p_bootstrap
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))


def test_a_model_does_not_differ_from_itself_and_does_from_a_better_one() -> None:
    values, labels = drawn(50)
    sums = ClassSums.of(values, labels)
    same = differences(sums, sums)["map@r"]
    assert (same.value, same.low, same.high, same.p_bootstrap, same.p_flips) == (0, 0, 0, 1, 1)
    better = ClassSums.of({name: rows + 0.2 for name, rows in values.items()}, labels)
    found = differences(sums, better)["map@r"]
    assert found.p_flips < 0.001 and found.p_bootstrap is not None and found.p_bootstrap < 0.01
    none = differences(sums, better, replicates=0)["map@r"]
    assert none.low is none.high is none.p_bootstrap is None and none.p_flips == found.p_flips


def test_the_paired_test_rejects_about_as_often_as_it_says() -> None:
    generator, rejected, trials = np.random.default_rng(1), 0, 200
    labels = np.repeat(np.arange(30), 4)
    for trial in range(trials):
        hardness = generator.random(30)[labels]
        one, other = ({"map@r": hardness + generator.normal(0, 0.1, 30)[labels]} for _ in range(2))
        found = differences(ClassSums.of(one, labels), ClassSums.of(other, labels), 0, trial)["map@r"]
        rejected += found.p_flips <= 0.05
    assert 0.005 <= rejected / trials <= 0.1  # 0.05, give or take 3 standard errors


def test_holm_by_hand() -> None:
    assert holm(np.array([0.01, 0.04, 0.03])) == pytest.approx([0.03, 0.06, 0.06])
    assert holm(np.array([0.6, 0.7])) == pytest.approx([1.0, 1.0])
    assert holm(np.array([0.02])) == pytest.approx([0.02])


@pytest.mark.slow
def test_a_hundred_thousand_classes_take_seconds() -> None:
    labels = np.repeat(np.arange(100_000), 3)
    values = {f"m{number}": np.random.default_rng(number).random(300_000) for number in range(7)}
    sums = ClassSums.of(values, labels)
    start = time.perf_counter()
    intervals(sums)
    assert time.perf_counter() - start < 30  # 2 s on a slow core
