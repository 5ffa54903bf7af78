"""The Fréchet distance against its textbook formula, and what must hold of it."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from dmlcore.errors import DataError
from dmlcore.protocols.shift import frechet
from dmlcore.protocols.shift.frechet import frechet_distance


def textbook(a: np.ndarray, b: np.ndarray) -> float:
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T))
    shift = a.mean(0) - b.mean(0)
    return float(shift @ shift + np.trace(np.cov(a.T) + np.cov(b.T)) - 2 * np.real(np.trace(root)))


def spread(a: np.ndarray, b: np.ndarray) -> float:
    """The size of the terms of the sum, which rounding is measured by."""
    return float(1 + a.var(0).sum() + b.var(0).sum() + ((a.mean(0) - b.mean(0)) ** 2).sum())


def pair(seed: int, rows: tuple[int, int], columns: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    a = draw.normal(size=(rows[0], columns)) @ draw.normal(size=(columns, columns))
    b = draw.normal(size=(rows[1], columns)) @ draw.normal(size=(columns, columns)) + draw.normal(size=columns)
    return a, b


@pytest.mark.parametrize("columns", [2, 3, 8, 20])
@pytest.mark.parametrize("rows", [(30, 50), (200, 23), (100, 100)])
def test_it_is_the_textbook_formula(rows: tuple[int, int], columns: int) -> None:
    a, b = pair(columns, rows, columns)
    assert frechet_distance(a, b) == pytest.approx(textbook(a, b), abs=1e-6 * spread(a, b))


def test_by_hand_in_one_dimension() -> None:
    # means 1 and 5, standard deviations sqrt(2) and 3 sqrt(2): 16 + (3 sqrt(2) - sqrt(2))^2
    assert frechet_distance(np.array([[0.0], [2.0]]), np.array([[2.0], [8.0]])) == pytest.approx(24.0)


def test_fewer_rows_than_columns_is_the_formula_in_their_span() -> None:
    a, b = pair(1, (4, 6), 30)
    basis = np.linalg.qr(np.concatenate([a, b]).T)[0]  # [30, 10]
    few_a, few_b = a @ basis, b @ basis
    ridge = 1e-12 * np.eye(10)
    root = scipy.linalg.sqrtm((np.cov(few_a.T) + ridge) @ (np.cov(few_b.T) + ridge))
    shift = few_a.mean(0) - few_b.mean(0)
    expected = shift @ shift + np.trace(np.cov(few_a.T) + np.cov(few_b.T)) - 2 * np.real(np.trace(root))
    assert frechet_distance(a, b) == pytest.approx(expected, abs=1e-4 * spread(a, b))  # the ridge's root is 1e-6 of a variance


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = pair(2, (101, 77), 5)
    whole = frechet_distance(a, b)
    monkeypatch.setattr(frechet, "_BLOCK", 7)
    assert frechet_distance(a, b) == pytest.approx(whole, rel=1e-12)


sizes = st.tuples(st.integers(2, 12), st.integers(2, 12))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**20), sizes, st.integers(1, 9))
def test_properties(seed: int, rows: tuple[int, int], columns: int) -> None:
    a, b = pair(seed, rows, columns)
    within = 1e-9 * spread(a, b)
    distance = frechet_distance(a, b)
    assert distance >= 0
    assert frechet_distance(a, a[::-1]) <= 1e-9 * spread(a, a)
    assert frechet_distance(b, a) == pytest.approx(distance, abs=within)
    turn = np.linalg.qr(np.random.default_rng(seed + 1).normal(size=(columns, columns)))[0]
    shift = np.random.default_rng(seed + 2).normal(size=columns)
    assert frechet_distance(a @ turn + shift, b @ turn + shift) == pytest.approx(distance, abs=10 * within)
    assert frechet_distance(3 * a, 3 * b) == pytest.approx(9 * distance, abs=10 * within)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros((1, 3)), np.zeros((4, 3)), "first set has 1 row"),
        (np.zeros((4, 3)), np.zeros((0, 3)), "second set has 0 row"),
        (np.zeros((4, 3)), np.zeros((4, 2)), "3 columns and the second 2"),
        (np.zeros(4), np.zeros((4, 2)), "must be rows of numbers"),
        (np.zeros((4, 0)), np.zeros((4, 0)), "must be rows of numbers"),
        (np.full((4, 2), np.nan), np.zeros((4, 2)), "NaN or infinite"),
    ],
)
def test_what_is_no_set_is_refused(a: np.ndarray, b: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        frechet_distance(a, b)
