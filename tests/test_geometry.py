"""Distances as a layer: against nested loops, exact derivatives, finite gradients at coincident points."""

from __future__ import annotations

import pytest
import torch
from cases import BATCHES, assert_close, value_and_gradients

from dmlcore.errors import ConfigError
from dmlcore.losses import (
    cosine_similarities,
    create,
    distances,
    dot_products,
    euclidean_distances,
    squared_euclidean_distances,
)

KINDS = {
    "cosine": cosine_similarities,
    "dot": dot_products,
    "euclidean of unit vectors": euclidean_distances,
    "euclidean": lambda a, b: euclidean_distances(a, b, normalise=False),
    "squared euclidean of unit vectors": squared_euclidean_distances,
    "squared euclidean": lambda a, b: squared_euclidean_distances(a, b, normalise=False),
}


def by_loops(kind: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    if "unit" in kind or kind == "cosine":
        a, b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
    if "euclidean" not in kind:
        return torch.stack([torch.stack([(x * y).sum() for y in b]) for x in a])
    squares = torch.stack([torch.stack([(x - y).square().sum() for y in b]) for x in a])
    return squares if kind.startswith("squared") else squares.sqrt()


@pytest.mark.parametrize("kind", KINDS)
def test_distances_by_loops(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, 5, generator=generator, dtype=torch.float64) * 3 for n in (4, 6))
    values, gradients = [], []
    for compute in (KINDS[kind], lambda x, y: by_loops(kind, x, y)):
        x, y = a.clone().requires_grad_(), b.clone().requires_grad_()
        out = compute(x, y)
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
        values.append(out.detach())
        gradients.append(torch.autograd.grad((out * weights).sum(), [x, y]))
    torch.testing.assert_close(*values, rtol=1e-12, atol=1e-12)
    for result, other in zip(*gradients, strict=True):
        torch.testing.assert_close(result, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_coincident_points_have_finite_gradients(kind: str, dtype: torch.dtype) -> None:
    points = torch.randn(5, 7, generator=torch.Generator().manual_seed(3), dtype=dtype) * 100
    x = torch.cat([points, points, torch.zeros(2, 7, dtype=dtype)]).requires_grad_()
    d = KINDS[kind](x, x)
    gradient = torch.autograd.grad(d.sum(), x)[0]
    assert torch.isfinite(d).all()
    assert torch.isfinite(gradient).all()
    if kind.startswith("euclidean"):
        twins = d[torch.arange(5), torch.arange(5) + 5]
        assert bool((twins == 0).all())
        pair = KINDS[kind](x[:1], x[5:6])
        assert bool((torch.autograd.grad(pair.sum(), x)[0] == 0).all())
    assert bool((d.diagonal() >= 0).all()) or kind in ("cosine", "dot")


def test_a_common_offset_costs_no_digits() -> None:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    exact = euclidean_distances(x.double(), x.double(), normalise=False)
    # 1024 shifts float32 by 10 bits; without the centring the squares would lose 20
    torch.testing.assert_close(euclidean_distances(x + 1024, x + 1024, normalise=False).double(), exact, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("kind", ["euclidean", "squared_euclidean", "cosine", "dot"])
@pytest.mark.parametrize("batch", ["odd", "duplicates", "collapsed", "zero vectors", "one sample", "one class"])
def test_contrastive_with_every_distance(kind: str, batch: str) -> None:
    x, y = BATCHES[batch]
    pos_margin, neg_margin = (-2.0, 1.5) if kind == "dot" else (0.1, 0.9)
    loss = create("contrastive", distance=kind, pos_margin=pos_margin, neg_margin=neg_margin)
    assert loss.is_fused
    result = value_and_gradients(loss, x, y, loss)

    def by_pairs(e: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        unit = e if kind == "dot" else e / e.norm(dim=1, keepdim=True).clamp_min(1e-12)
        d = distances(unit @ unit.T, kind)
        pull, push = [], []
        for i in range(len(labels)):
            for j in range(len(labels)):
                if i != j and labels[i] == labels[j] and d[i, j] > pos_margin:
                    pull.append(d[i, j] - pos_margin)
                elif labels[i] != labels[j] and d[i, j] < neg_margin:
                    push.append(neg_margin - d[i, j])
        return sum((torch.stack(side).mean() for side in (pull, push) if side), start=0 * e.sum())

    if batch == "zero vectors" and kind != "dot":  # the norm has no derivative there: compare the others
        result[1][0][-3:] = 0
        other = value_and_gradients(loss, x, y, loss.reference)
        other[1][0][-3:] = 0
    else:
        other = value_and_gradients(loss, x, y, by_pairs)
    assert_close(result, other, 1e-9)


def test_margins_are_checked_against_the_distance() -> None:
    assert create("contrastive", distance="squared_euclidean", neg_margin=3.5).options.neg_margin == 3.5
    assert create("contrastive", distance="dot", pos_margin=-40.0).normalise == (False, False)
    with pytest.raises(ConfigError, match="neg_margin is 3.5, but must be >= 0 and <= 2"):
        create("contrastive", distance="cosine", neg_margin=3.5)
    with pytest.raises(ConfigError, match="Did you mean 'euclidean'"):
        create("contrastive", distance="euclidian")
