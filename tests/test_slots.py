"""Losses that compare every positive with every negative: large classes by search or power series, against comparing and the
definition."""

from __future__ import annotations

import pytest
import torch
from cases import BATCHES, Case, assert_close, call_on, embeddings_of, value_and_gradients

from dmlcore.kernels import Pass, extension, plan_options
from dmlcore.kernels.cpu import CpuPasses

pytestmark = pytest.mark.skipif(extension.cpu() is None, reason="the CPU extension is not built")

SEARCHED = [
    Case("triplet", {"margin": 0.3}),
    Case("triplet", {"margin": 0.3, "mining": "semihard"}),
    Case("triplet", {"margin": 0.0, "mining": "semihard"}),
    Case("smooth_ap"),  # power series instead of a search
    Case("smooth_ap", {"temperature": 0.2}),
]
SIZES = {
    "1 positive": [2] * 20,
    "13 positives": [14, 14, 14],
    "32 positives": [33, 5, 1],
    "40 positives": [41, 41, 20, 1],
    "300 positives": [301, 40, 2, 1],
}
PLANS = {
    "whole": {},
    "small tiles": {"tile_rows": 5, "tile_columns": 16},
    "recomputed": {"workspace": 0, "tile_rows": 16, "tile_columns": 48},
    "chunks": {"slot_bytes": 6000},
    "two threads": {"threads": 2, "tile_rows": 8, "tile_columns": 32},
    "two threads, chunks": {"threads": 2, "slot_bytes": 6000},
}
searched = pytest.mark.parametrize("case", SEARCHED, ids=lambda case: case.id)


def labels_of(sizes: list[int], seed: int = 0) -> torch.Tensor:
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]


def rows_and_gradient(case: Case, x: torch.Tensor, y: torch.Tensor, **plan: int) -> tuple[torch.Tensor, ...]:
    leaf = x.clone().requires_grad_()
    with plan_options(**plan):
        values, counts = case.create(x.dtype).rows(leaf, y)
        cotangents = torch.linspace(0.5, 2, values.numel(), dtype=values.dtype).view_as(values)
        return values.detach(), counts, torch.autograd.grad(values, leaf, cotangents)[0]


@searched
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("plan", PLANS)
def test_search_equals_the_definition(case: Case, sizes: str, plan: str) -> None:
    y = labels_of(SIZES[sizes])
    x, loss = embeddings_of(y, seed=len(sizes)), case.create()
    with plan_options(search=1, **PLANS[plan]):
        result = value_and_gradients(loss, x, y, loss)
    assert_close(result, value_and_gradients(loss, x, y, loss.reference), 1e-9)


@searched
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("level", extension.cpu().levels() if extension.cpu() else [])
def test_search_finds_what_comparing_finds(case: Case, sizes: str, dtype: torch.dtype, level: str) -> None:
    y = labels_of(SIZES[sizes])
    x = embeddings_of(y, 3, dtype).mul(2).round().div(2)  # many points coincide: distances tie with thresholds
    before = extension.cpu().level()
    extension.use_level(level)
    try:
        searched = rows_and_gradient(case, x, y, search=1, triangle=0)
        compared = rows_and_gradient(case, x, y, search=0, triangle=0)  # the same products, so the same bits of each distance
    finally:
        extension.use_level(before)
    assert torch.equal(searched[1], compared[1])
    tolerance = 2e-5 if dtype == torch.float32 else 1e-12  # sums over a register's lanes against sums in double
    torch.testing.assert_close(searched[0], compared[0], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(searched[2], compared[2], rtol=tolerance, atol=tolerance * float(compared[2].abs().max()))


@searched
@pytest.mark.parametrize("batch", BATCHES)
def test_search_on_every_batch(case: Case, batch: str) -> None:
    x, y = BATCHES[batch]
    searched, compared = (rows_and_gradient(case, x, y, search=how, triangle=0) for how in (1, 0))
    assert torch.equal(searched[1], compared[1])
    torch.testing.assert_close(searched[0], compared[0], rtol=1e-10, atol=1e-10)
    scale = compared[2].abs().amax(1, keepdim=True)
    assert bool(((searched[2] - compared[2]).abs() <= 1e-10 * scale + 1e-12).all())


@searched
@pytest.mark.parametrize("plan", PLANS)
def test_search_among_references(case: Case, plan: str) -> None:
    y, other_labels = labels_of([9, 30, 1, 4]), torch.cat([labels_of([61, 44, 13], seed=2), torch.tensor([7, 7, 3])])
    x, references, loss = embeddings_of(y), embeddings_of(other_labels, seed=3), case.create()
    own = torch.full((len(y),), -1)
    own[3] = int((other_labels == y[3]).nonzero()[0])
    results = []
    for compute in (loss, loss.reference):
        leaf, other = x.clone().requires_grad_(), references.clone().requires_grad_()
        with plan_options(search=1, **PLANS[plan]):
            value = compute(leaf, y, references=other, reference_labels=other_labels, own=own)
            results.append((value.detach(), list(torch.autograd.grad(value, [leaf, other]))))
    assert_close(*results, 1e-9)


def planned(case: Case, y: torch.Tensor, references: bool = False) -> dict[str, int]:
    x = embeddings_of(y, dtype=torch.float32)
    against = (x.clone(), y) if references else (None, None)
    return CpuPasses([Pass(x, y, *against, (call_on(case.create(x.dtype), x, y),))]).plan()


def test_the_planner_searches_in_large_classes_only() -> None:
    case = SEARCHED[0]
    for size, references, searches in ((33, False, 0), (34, False, 1), (12, True, 0), (13, True, 1)):
        assert planned(case, labels_of([size, 2]), references)["searches"] == searches
    for size, references, searches in ((15, False, 0), (16, False, 1), (14, True, 0), (15, True, 1)):
        assert planned(Case("smooth_ap"), labels_of([size, 2]), references)["searches"] == searches
    narrow = Case("smooth_ap", {"temperature": 0.0009})  # would need too many cells
    assert planned(narrow, labels_of([400, 2]))["searches"] == 0 == planned(Case("ms"), labels_of([400, 2]))["searches"]


@pytest.mark.parametrize("temperature", [0.001, 0.01, 0.1, 1.0])
@pytest.mark.parametrize("spread", [0.2, 0.6, 2.0])
@pytest.mark.parametrize("level", extension.cpu().levels() if extension.cpu() else [])
def test_soft_ranks_by_series_are_exact(temperature: float, spread: float, level: str) -> None:
    """No farther from the definition in float64 than twice what comparing is, in float32; 1e-11 of it in float64."""
    y = labels_of([60, 60, 60, 41, 9, 1])
    case, errors = Case("smooth_ap", {"temperature": temperature}), []
    before = extension.cpu().level()
    extension.use_level(level)
    try:
        exact = rows_and_gradient(case, embeddings_of(y, 3, spread=spread), y, search=0, triangle=0)
        for search in (1, 0):
            result = rows_and_gradient(case, embeddings_of(y, 3, torch.float32, spread=spread), y, search=search, triangle=0)
            errors.append(
                [float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in zip(result, exact, strict=True)]
            )
        doubled = rows_and_gradient(case, embeddings_of(y, 3, spread=spread), y, search=1, triangle=0)
    finally:
        extension.use_level(before)
    for series, compared in zip(*errors, strict=True):
        assert series <= 2 * compared + 5e-7
    torch.testing.assert_close(doubled[0], exact[0], rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(doubled[2], exact[2], rtol=1e-11, atol=1e-11 * float(exact[2].abs().max()))


def test_slots_stay_in_their_memory() -> None:
    plan = planned(SEARCHED[1], labels_of([1500] * 4))
    assert plan["chunks"] > 1
    assert plan["slot_bytes"] <= 34 << 20


AFTERWARDS = [
    Case("triplet", {"margin": 0.3, "mining": "semihard_hardest"}),
    Case("triplet", {"margin": 0.3, "mining": "semihard_hardest", "smooth": True}),
    Case("smooth_ap", {"temperature": 0.05}),
]


@pytest.mark.parametrize("case", AFTERWARDS, ids=lambda case: case.id)
@pytest.mark.parametrize("plan", [{}, {"slot_bytes": 4000}, {"threads": 2, "tile_rows": 8}], ids=str)
def test_weights_known_after_the_stream_serve_every_backward_pass(case: Case, plan: dict[str, int]) -> None:
    x, y = BATCHES["large"]
    loss, leaf = case.create(), x.clone().requires_grad_()
    with plan_options(**plan):
        values = loss.rows(leaf, y).values
        cotangents = [torch.rand(values.shape, generator=torch.Generator().manual_seed(k), dtype=x.dtype) for k in range(2)]
        gradients = [torch.autograd.grad(values, leaf, c, retain_graph=True)[0] for c in (*cotangents, cotangents[0])]
    plain = loss.rows(leaf, y, plain=True).values
    for gradient, cotangent in zip(gradients, (*cotangents, cotangents[0]), strict=True):
        expected = torch.autograd.grad(plain, leaf, cotangent, retain_graph=True)[0]
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(gradients[0], gradients[2], rtol=0, atol=0)


@pytest.mark.parametrize("case", [*AFTERWARDS, Case("triplet", {"smooth": True})], ids=lambda case: case.id)
@pytest.mark.parametrize("sizes", SIZES)
def test_large_classes_by_comparing(case: Case, sizes: str) -> None:
    y = labels_of(SIZES[sizes])
    x, loss = embeddings_of(y, seed=2), case.create()
    assert_close(value_and_gradients(loss, x, y, loss), value_and_gradients(loss, x, y, loss.reference), 1e-9)


def test_softplus_and_sigmoid_are_as_exact_as_stated() -> None:
    angles = torch.linspace(0.001, 3.14, 4096, dtype=torch.float64)
    x = torch.stack([angles.cos(), angles.sin()], 1).float()
    anchor, y = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    references, labels = torch.cat([anchor, x]), torch.cat([y, y.new_ones(len(x))])
    for level in extension.cpu().levels():
        before = extension.cpu().level()
        extension.use_level(level)
        try:
            loss = Case("triplet", {"margin": 2.0, "smooth": True}).create(torch.float32)
            values = loss.rows(anchor, y, references=references, reference_labels=labels).values
        finally:
            extension.use_level(before)
        exact = loss.rows(anchor.double(), y, references=references.double(), reference_labels=labels, plain=True).values
        torch.testing.assert_close(values.double(), exact, rtol=1e-6, atol=0)
