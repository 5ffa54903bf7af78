"""Plain definitions over some anchors at a time: the same numbers, in little memory."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from cases import BATCHES, LOSSES, PAIRS, Case, embeddings_of, value_and_gradients

from dmlcore.errors import ConfigError
from dmlcore.losses import PairLoss, Rows
from dmlcore.losses.streaming import stream_budget


class Unfused(PairLoss):
    """Mean of squared similarities of negatives minus those of positives."""

    name = "unfused"

    def __init__(self, options=None, **options_by_name) -> None:
        super().__init__(options, **options_by_name)
        self.scale = torch.nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def row_values(self, similarities, positive, negative) -> Rows:
        squares = self.scale * similarities.square()
        values = (squares * negative).sum(1) - (squares * positive).sum(1)
        return Rows(values[None], torch.ones_like(values)[None])


@pytest.mark.parametrize("case", LOSSES, ids=lambda case: case.id)
@pytest.mark.parametrize("budget", [0, 60_000])
def test_parts_give_what_the_whole_gives(case: Case, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DML_FUSED", "0")
    loss, (x, y) = case.create(), BATCHES["odd"]
    dense = value_and_gradients(loss, x, y, loss.reference)
    with stream_budget(budget):
        parts = value_and_gradients(loss, x, y, loss)
    torch.testing.assert_close(parts[0], dense[0], rtol=1e-12, atol=1e-12)
    for tensor, other in zip(parts[1], dense[1], strict=True):
        torch.testing.assert_close(tensor, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", PAIRS, ids=lambda case: case.id)
def test_parts_against_references(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DML_FUSED", "0")
    loss, (x, y) = case.create(), BATCHES["odd"]
    labels = torch.tensor([0, 1, 1, 1, 9, 3, 0, 0, 5, 5, 6, 8] * 3 + [0])
    own = torch.where(y == labels, torch.arange(37), -1)
    results = []
    for budget in (10**9, 30_000):
        leaf, other = x.clone().requires_grad_(), embeddings_of(labels, seed=8).requires_grad_()
        with stream_budget(budget):
            value = loss(leaf, y, references=other, reference_labels=labels, own=own)
            results.append([value.detach(), *torch.autograd.grad(value, [leaf, other])])
    for tensor, whole in zip(*results, strict=True):
        torch.testing.assert_close(tensor, whole, rtol=1e-10, atol=1e-12)


def test_parameters_take_their_gradient() -> None:
    loss, (x, y) = Unfused(), BATCHES["odd"]
    results = []
    for budget in (10**9, 20_000):
        with stream_budget(budget):
            leaf = x.clone().requires_grad_()
            value = loss(leaf, y)
            only = torch.autograd.grad(loss(x, y), loss.scale)[0]  # of the parameter alone
            results.append([value, only, *torch.autograd.grad(value, [leaf, loss.scale])])
    for tensor, whole in zip(*results, strict=True):
        torch.testing.assert_close(tensor, whole, rtol=1e-10, atol=1e-11)


def test_second_derivatives_are_refused_in_parts_only() -> None:
    loss, (x, y) = Unfused(), BATCHES["odd"]
    leaf = x.clone().requires_grad_()
    assert torch.autograd.grad(loss(leaf, y), leaf, create_graph=True)[0].requires_grad
    with stream_budget(0), pytest.raises(ConfigError, match="differentiable once"):
        torch.autograd.grad(loss(leaf, y), leaf, create_graph=True)


def test_what_changes_before_backward_is_noticed() -> None:
    loss, (x, y) = Unfused(), BATCHES["odd"]
    entries = x.clone()
    with stream_budget(20_000):
        value = loss(x.clone().requires_grad_(), y, references=entries, reference_labels=y)
    entries[0] = 0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_a_loss_that_needs_all_anchors_gets_them() -> None:
    class Coupled(Unfused):
        """Rows that know of each other."""

        streams = False

        def row_values(self, similarities, positive, negative) -> Rows:
            values, counts = super().row_values(similarities, positive, negative)
            return Rows(values - values.mean(), counts)

    class Overriding(Unfused):
        """Its own dense_rows, which wants all anchors."""

        streams = False

        def dense_rows(self, comparison) -> Rows:
            assert comparison.references is None and len(comparison.anchors) == 37
            return super().dense_rows(comparison)

    x, y = BATCHES["odd"]
    with stream_budget(0):
        assert abs(Coupled()(x, y).item()) < 1e-12
        torch.testing.assert_close(Overriding()(x, y), Unfused()(x, y))


@pytest.mark.slow
@pytest.mark.parametrize("name, fused", [("ms", "0"), ("unfused", "1")])
def test_memory_does_not_grow_with_the_square(name: str, fused: str) -> None:
    code = """
import resource, sys, torch, dmlcore
sys.path.insert(0, {tests!r})
from test_streaming import Unfused
loss = Unfused().float() if {name!r} == "unfused" else dmlcore.losses.create({name!r})
def step(n):
    x = torch.randn(n, 16, requires_grad=True)
    loss(x, torch.arange(n) // 4).backward()
step(64)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
step(8192)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    code = code.format(tests=os.path.dirname(__file__), name=name)
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "DML_FUSED": fused}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 100, f"{done.stdout} MB; one matrix of all similarities is 256 MB"
