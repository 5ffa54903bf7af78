"""Diversity of heads and matching of students: values by hand, invariances, gradients, coincident points."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from dmlcore.ensemble import AdversarialDiversity, distance_diversity, similarity_matching
from dmlcore.errors import ConfigError
from dmlcore.losses import unit


def heads(batch: int = 9, m: int = 3, width: int = 4, seed: int = 0) -> Tensor:
    x = torch.randn(batch, m, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x / x.norm(dim=2, keepdim=True)


def rotation(width: int = 4) -> Tensor:
    x = torch.randn(width, width, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    return torch.linalg.qr(x).Q


def turned(x: Tensor) -> Tensor:
    return torch.cat([x[:, :1] @ rotation(), x[:, 1:]], dim=1)


def test_published_diversity_by_hand() -> None:
    x = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    root = math.sqrt(2)
    pairs = [(root + 0) / 2, (2 + root) / 2, (root + root) / 2]  # means over the two samples of heads 12, 13, 23
    assert float(distance_diversity(x)) == pytest.approx(2 - 2 / (3 * 2) * sum(pairs))
    opposite = torch.stack([x[:, 0], -x[:, 0]], dim=1)
    assert float(distance_diversity(opposite)) == 0 and float(distance_diversity(x[:, :1].expand(2, 3, 2))) == 2


def test_published_diversity_by_loops() -> None:
    x = heads(7, 4, 5)
    mean = sum(float((x[:, i] - x[:, j]).norm(dim=1).mean()) for i, j in itertools.combinations(range(4), 2))
    assert float(distance_diversity(x)) == pytest.approx(2 - 2 / (4 * 3) * mean)


def test_turning_a_head_changes_distances() -> None:
    x = torch.stack([heads(20, 1)[:, 0]] * 2 + [heads(20, 1, seed=1)[:, 0]], dim=1)
    assert abs(float(distance_diversity(turned(x)) - distance_diversity(x))) > 0.1


@pytest.mark.parametrize("term", [distance_diversity])
def test_gradients(term) -> None:
    x = (heads(6) + 0.5 * heads(6, 1, seed=2)).requires_grad_()
    assert term(x).item() > 0.01
    assert torch.autograd.gradcheck(term, (x,))


@pytest.mark.parametrize("term", [distance_diversity])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_finite_at_coincident_points(term, dtype: torch.dtype) -> None:
    x = heads(10).to(dtype)
    same_samples, same_heads, one_flat = x[:1].repeat(10, 1, 1), x[:, :1].repeat(1, 3, 1), x.clone()
    one_flat[:, 1] = one_flat[0, 1]
    for case in (same_samples, same_heads, one_flat, torch.zeros_like(x), x[:1], x[:3], x[:0]):
        case.requires_grad_()
        value = term(case)
        assert 0 <= value.item() <= 2 and torch.isfinite(torch.autograd.grad(value, case)[0]).all()


def test_diversity_refuses_other_shapes() -> None:
    with pytest.raises(ConfigError, match="at least 2, got 1"):
        distance_diversity(heads(5, 1))
    with pytest.raises(ConfigError, match=r"\[B, m, d\], got \[5, 3\]"):
        distance_diversity(torch.zeros(5, 3))


def test_adversarial_diversity_by_loops() -> None:
    """Value and gradient: that of the maps as it is, that of the heads turned round."""
    torch.manual_seed(0)
    term = AdversarialDiversity(3, 4, hidden=5).double()
    leaf, other = heads(6, 3, 4).requires_grad_(), heads(6, 3, 4).requires_grad_()
    value = term(leaf)
    expected = torch.zeros((), dtype=torch.float64)
    for k, (first, _, second) in enumerate(term.maps, 1):
        for b in range(6):
            mapped = second.weight @ (first.weight @ other[b, k] + first.bias).clamp_min(0) + second.bias
            mapped = mapped / mapped.norm()
            for j in range(4):
                expected = expected - (other[b, 0, j] * mapped[j]) ** 2 / (6 * 4)
    torch.testing.assert_close(value, expected)
    ours, theirs = (torch.autograd.grad(v, [x, *term.parameters()]) for v, x in ((value, leaf), (expected, other)))
    torch.testing.assert_close(ours[0], -theirs[0])
    torch.testing.assert_close(ours[1:], theirs[1:])
    assert term(heads(6, 3, 4)[:0]).item() == 0
    with pytest.raises(ConfigError, match="at least 2, got 1"):
        term(heads(5, 1))


def test_heads_learn_to_hide_from_the_maps() -> None:
    """Two equal heads are told apart by the game: fresh maps find less of the first head in the second."""
    torch.manual_seed(0)
    x = torch.randn(64, 8)
    weights = [torch.eye(8).clone().requires_grad_(), torch.eye(8).clone().requires_grad_()]

    def embedded() -> torch.Tensor:
        return unit(torch.stack([x @ w for w in weights], 1))

    def likeness() -> float:
        return float((embedded()[:, 0] * embedded()[:, 1]).square().mean().detach())

    before, term = likeness(), AdversarialDiversity(2, 8, hidden=16)
    optimiser = torch.optim.Adam([*weights, *term.parameters()], lr=0.02)
    for _ in range(150):
        optimiser.zero_grad()
        (10 * term(embedded())).backward()
        optimiser.step()
    assert likeness() < 0.6 * before


def test_student_matching_by_loops() -> None:
    student, teacher, t = heads(5, 1)[:, 0], heads(5, 1, 7, seed=1)[:, 0], 0.3
    expected = 0.0
    for b in range(5):
        rest_of_batch = [k for k in range(5) if k != b]
        p, q = (torch.softmax((x[rest_of_batch] @ x[b]) / t, dim=0) for x in (teacher, student))
        expected += float((p * (p / q).log()).sum()) * t * t / 5
    assert float(similarity_matching(3 * student, 0.2 * teacher, temperature=t)) == pytest.approx(expected)


def test_student_with_the_teachers_similarities_is_done() -> None:
    teacher = heads(12, 1)[:, 0]
    wider = torch.cat([teacher @ rotation(), torch.zeros(12, 3, dtype=torch.float64)], dim=1)
    student = (2 * teacher).requires_grad_()
    value = similarity_matching(student, wider)
    assert abs(value.item()) < 1e-12 and torch.autograd.grad(value, student)[0].abs().max() < 1e-9
    assert float(similarity_matching(heads(12, 1, seed=1)[:, 0], wider)) > 1e-3


def test_student_gradients_reach_the_student_only() -> None:
    student, teacher = heads(6, 1)[:, 0].requires_grad_(), heads(6, 1, 8, seed=1)[:, 0].requires_grad_()
    similarity_matching(student, teacher).backward()
    assert teacher.grad is None and student.grad.abs().max() > 0
    assert torch.autograd.gradcheck(lambda x: similarity_matching(x, teacher), (student,))


def test_a_free_student_finds_the_teachers_neighbours() -> None:
    teacher = heads(24, 1, 8)[:, 0].float()
    student = torch.randn(24, 6, generator=torch.Generator().manual_seed(4)).requires_grad_()
    optimiser = torch.optim.Adam([student], lr=0.03)

    def agreement() -> float:
        near = [(unit(x) @ unit(x).T).fill_diagonal_(-2).argmax(1) for x in (student.detach(), teacher)]
        return float((near[0] == near[1]).float().mean())

    start = agreement()
    for _ in range(300):
        optimiser.zero_grad()
        similarity_matching(student, teacher).backward()
        optimiser.step()
    assert start < 0.3 and agreement() > 0.6


@pytest.mark.parametrize("count", [0, 1, 2, 6])
def test_student_is_finite_at_coincident_points(count: int) -> None:
    for row in (torch.zeros(4), torch.tensor([0.5, 0.5, 0.5, 0.5])):
        student = row.repeat(count, 1).requires_grad_()
        value = similarity_matching(student, heads(max(count, 1), 1)[:count, 0].float())
        assert torch.isfinite(value) and torch.isfinite(torch.autograd.grad(value, student)[0]).all()


def test_student_refuses_other_shapes() -> None:
    with pytest.raises(ConfigError, match=r"\[4, 3\] and \[5, 3\]"):
        similarity_matching(torch.zeros(4, 3), torch.zeros(5, 3))
    with pytest.raises(ConfigError, match="temperature is 0"):
        similarity_matching(torch.zeros(4, 3), torch.zeros(4, 3), temperature=0)


def test_autocast_does_not_reach_the_terms() -> None:
    x, y = heads().float(), heads(9, 1, 6, seed=1)[:, 0].float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = [distance_diversity(x), similarity_matching(x[:, 0], y)]
    expected = [distance_diversity(x), similarity_matching(x[:, 0], y)]
    assert all(torch.equal(*pair) and pair[0].dtype == torch.float32 for pair in zip(terms, expected, strict=True))
