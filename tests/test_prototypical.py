"""The prototypical loss against hand-computed numbers and nested loops, with and without a support set."""

from __future__ import annotations

import math

import pytest
import torch
from cases import BATCHES, assert_close, value_and_gradients
from torch import Tensor

from dmlcore.errors import ConfigError
from dmlcore.losses import create
from dmlcore.losses.streaming import stream_budget

LOSS = create("prototypical")


def by_loops(x: Tensor, y: Tensor, support: Tensor, support_y: Tensor, own: list[int]) -> Tensor:
    """The definition, a query and a class at a time; `own` is each query's place in the support, or -1."""
    values = []
    for a in range(len(y)):
        squares = {}
        for c in sorted(set(support_y.tolist())):
            members = [i for i in range(len(support_y)) if support_y[i] == c and i != own[a]]
            if members:
                mean = sum((support[i] for i in members), torch.zeros_like(x[0])) / len(members)
                squares[c] = (x[a] - mean).pow(2).sum()
        if int(y[a]) in squares:
            values.append(squares[int(y[a])] + torch.logsumexp(-torch.stack(list(squares.values())), 0))
    return torch.stack(values).mean()


def test_by_hand() -> None:
    support = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 3.0]], dtype=torch.float64)  # prototypes (1, 0) and (0, 3)
    queries = torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)  # squares 1 and 5; 2 and 4
    first = math.log(math.exp(-1) + math.exp(-5)) + 1
    second = math.log(math.exp(-2) + math.exp(-4)) + 4
    value = LOSS(queries, torch.tensor([7, 9]), references=support, reference_labels=torch.tensor([7, 7, 9]))
    assert value.item() == pytest.approx((first + second) / 2, abs=1e-12)


def test_leave_one_out_by_hand() -> None:
    batch = torch.tensor([[0.0], [2.0], [5.0]], dtype=torch.float64)  # the third is alone: a prototype, but no query
    rows = [(4, 25), (4, 9)]  # squares to the other of the class, and to the third
    expected = sum(math.log(math.exp(-own) + math.exp(-other)) + own for own, other in rows) / 2
    assert LOSS(batch, torch.tensor([1, 1, 0])).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("batch", ["odd", "unbalanced"])
def test_equals_nested_loops(batch: str) -> None:
    x, y = BATCHES[batch]
    result = value_and_gradients(LOSS, x, y, LOSS)
    assert_close(result, value_and_gradients(LOSS, x, y, lambda a, b: by_loops(a, b, a, b, list(range(len(b))))), 1e-9)
    leaf, support = x[:20].clone().requires_grad_(), x[20:35].clone().requires_grad_()
    own = torch.full((20,), -1)
    fused = LOSS(leaf, y[:20], references=support, reference_labels=y[20:35], own=own)
    loops = by_loops(leaf, y[:20], support, y[20:35], [-1] * 20)
    gradients = [torch.autograd.grad(value, (leaf, support)) for value in (fused, loops)]
    torch.testing.assert_close(fused, loops, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-8, atol=1e-10)


def test_own_takes_the_query_out_of_its_prototype() -> None:
    x, y = BATCHES["odd"]
    own = torch.arange(10, 20)
    value = LOSS(x[10:20], y[10:20], references=x, reference_labels=y, own=own)
    assert value.item() == pytest.approx(by_loops(x[10:20], y[10:20], x, y, own.tolist()).item(), abs=1e-9)


def test_parts_of_the_queries_give_the_same() -> None:
    x, y = BATCHES["odd"]
    whole = value_and_gradients(LOSS, x, y, LOSS)
    with stream_budget(4000):  # a few queries at a time
        assert_close(value_and_gradients(LOSS, x, y, LOSS), whole, 1e-10)


def test_queries_without_a_prototype_do_not_count() -> None:
    x, y = BATCHES["odd"]
    has_prototype = y != 0
    some = LOSS(x, y, references=x[has_prototype], reference_labels=y[has_prototype])
    only = LOSS(x[has_prototype], y[has_prototype], references=x[has_prototype], reference_labels=y[has_prototype])
    assert some.item() == pytest.approx(only.item(), abs=1e-12)
    nobody = LOSS(
        x[~has_prototype].requires_grad_(), y[~has_prototype], references=x[has_prototype], reference_labels=y[has_prototype]
    )
    assert nobody.item() == 0
    assert LOSS(x, y, references=x[:0], reference_labels=y[:0]).item() == 0


def test_a_label_matrix_is_refused() -> None:
    with pytest.raises(ConfigError, match="one label per sample"):
        LOSS(torch.ones(2, 3), torch.ones(2, 2, dtype=torch.int64))


def test_it_says_why_it_is_not_fused() -> None:
    assert not LOSS.is_fused and "means of classes" in LOSS.why_not_fused
