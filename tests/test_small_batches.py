"""Small batches: the short way from a batch to a term, and the matrix of all slopes, give what the long ways give."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from cases import BATCHES, CLASSES, FUSED, Case
from torch import Tensor

from dmlcore import LossEnsemble
from dmlcore.errors import ConfigError
from dmlcore.kernels import extension, plan_options, recorded_passes
from dmlcore.losses import Measure, WindowMiner, Windows, create

pytestmark = pytest.mark.skipif(extension.cpu() is None, reason="the CPU extension is not built")
X, Y = BATCHES["odd"]
FIVE = ("ms", "contrastive", "sup_con", "circle", "triplet")
IN_TILES = {"workspace": 0}
"""Of the planner: every tile is multiplied by itself, and the positives apart from it."""


def value_and_gradient(loss: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    value = loss(leaf, y)
    value.backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def batch(samples: int, classes: int, width: int = 20, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(samples)
    x = torch.randn(samples, width, generator=generator, dtype=torch.float64)
    return x.to(dtype), torch.arange(samples)[torch.randperm(samples, generator=generator)] % classes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", FUSED, ids=lambda case: case.id)
def test_repeating_gives_the_bits_of_the_first_call(case: Case, dtype: torch.dtype) -> None:
    loss = case.create(torch.float64 if dtype == torch.float64 else torch.float32)
    x = X.to(dtype)
    first = value_and_gradient(loss, x, Y)
    for _ in range(2):
        for before, after in zip(first, value_and_gradient(loss, x, Y), strict=True):
            assert before.dtype == after.dtype and torch.equal(before, after)


@pytest.mark.parametrize("case", FUSED, ids=lambda case: case.id)
def test_a_batch_of_none_has_a_gradient(case: Case) -> None:
    loss, (x, y) = case.create(), (X[:0], Y[:0])
    for function in (loss, loss.reference):
        value, gradient = value_and_gradient(function, x, y)
        assert torch.isfinite(value) and gradient.shape == x.shape


def test_an_ensemble_repeats_with_all_it_tells() -> None:
    names = (*FIVE, "n_pair")  # which does not normalise: a pass of its own
    repeating = LossEnsemble([create(name) for name in names], weights=[1.0, 2.0, 0.5, 1.0, 3.0, 0.1])
    for samples in (37, 64, 12):
        x, y = batch(samples, 6, dtype=torch.float32)
        fresh = LossEnsemble([create(name) for name in names], weights=[1.0, 2.0, 0.5, 1.0, 3.0, 0.1])
        results = [value_and_gradient(ensemble, x, y) for ensemble in (repeating, fresh)]
        for after, before in zip(*results, strict=True):
            assert torch.equal(after, before)
        for told in ("terms", "active"):
            after, before = getattr(repeating, told), getattr(fresh, told)
            assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    assert repeating.members[0].repetition is not None and fresh.members[0].repetition is None


@pytest.mark.parametrize("weighting", ["equal_gradient_norms", "floor_square_penalty"])
def test_weightings_see_the_same_when_an_ensemble_repeats(weighting: str) -> None:
    x, y = batch(40, 8, dtype=torch.float32)
    ensembles = [LossEnsemble([create(name) for name in FIVE], weighting) for _ in range(2)]
    for _ in range(3):
        repeating, fresh = ensembles
        for loss in fresh.members:
            loss.repetition, loss.fusions = None, {}
        for after, before in zip(*(value_and_gradient(ensemble, x, y) for ensemble in ensembles), strict=True):
            assert torch.equal(after, before)
    assert torch.equal(repeating.weights, fresh.weights)


def test_what_changes_between_calls_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    loss, other = create("ms"), create("ms", alpha=5.0)
    x, y = batch(24, 6)
    for _ in range(2):
        value_and_gradient(loss, x, y)
    kept = loss.repetition
    assert kept is not None
    with plan_options(tile_rows=8, tile_columns=16), recorded_passes() as passes:
        loss(x, y)
    assert len(passes) == 1  # the long way, which looks at both
    loss.options = other.options
    assert torch.equal(loss(x, y), other(x, y)) and loss.repetition is not kept
    loss.use_miner("multi_similarity")
    other.use_miner("multi_similarity")
    assert_close(loss(x, y), other.reference(x, y))
    matrix = torch.nn.functional.one_hot(y)
    plain = create("ms", alpha=5.0)
    for _ in range(2):
        assert_close(plain(x, y), plain(x, matrix))
    monkeypatch.setenv(extension.SWITCH, "0")
    assert loss.why_not_fused
    assert_close(plain(x, y), plain.reference(x, y))


def test_vectors_that_are_no_longer_scaled_are_seen() -> None:
    loss, (x, y) = create("contrastive"), batch(20, 5)
    for normalise in ((True, True), (False, False), (True, True)):
        loss.normalise = normalise
        expected = value_and_gradient(loss.reference, x, y)
        for _ in range(2):
            for actual, of_reference in zip(value_and_gradient(loss, x, y), expected, strict=True):
                assert_close(actual, of_reference)


def test_a_copy_finds_out_for_itself() -> None:
    loss = create("ms")
    x, y = batch(24, 6)
    expected = [loss(x, y) for _ in range(2)][-1]
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert twin.repetition is None and torch.equal(twin(x, y), expected)


def test_differentiating_a_repeated_term() -> None:
    loss = create("ms")
    x, y = batch(24, 6)
    loss(x, y)
    leaf = x.clone().requires_grad_()
    value = loss(leaf, y)
    (gradient,) = torch.autograd.grad(value, leaf, retain_graph=True)
    (again,) = torch.autograd.grad(value, leaf, torch.full_like(value, 2.0))
    assert_close(again, 2 * gradient)
    with pytest.raises(RuntimeError, match="differentiated once"):
        value.backward()
    with pytest.raises(ConfigError, match="differentiable once"):
        torch.autograd.grad(loss(leaf, y), leaf, create_graph=True)
    with torch.no_grad():
        assert torch.equal(loss(leaf, y), value.detach()) and not loss(leaf, y).requires_grad
    with torch.inference_mode():
        assert torch.equal(loss(leaf, y), value.detach())
    assert torch.autograd.gradcheck(lambda leaf: loss(leaf, y), leaf)
    apart = leaf.detach().T.contiguous().T  # rows are not contiguous
    assert torch.equal(loss(apart, y), value.detach())


@pytest.mark.parametrize("case", FUSED, ids=lambda case: case.id)
def test_one_matrix_of_slopes_equals_tiles(case: Case) -> None:
    for samples, classes in ((1, 1), (16, 1), (17, 5), (48, 48), (80, 7), (131, 7)):
        x, y = batch(samples, classes, 11)
        loss = case.create(classes=max(classes, CLASSES))
        expected = None
        for options in (IN_TILES, {}, {"tile_rows": 16}, {"tile_rows": 32, "threads": 2, "thread_work": 1}):
            with plan_options(**options):
                result = value_and_gradient(loss, x, y)
            expected = expected or result
            for actual, reference in zip(result, expected, strict=True):
                assert_close(actual, reference)


@pytest.mark.parametrize("blas", ["own", "vendor"])
@pytest.mark.parametrize("level", extension.cpu().levels() if extension.cpu() else [])
def test_one_matrix_of_slopes_at_every_level(level: str, blas: str) -> None:
    module = extension.cpu()
    assert module is not None
    before = module.level()
    try:
        extension.use_level(level)
        extension.use_blas(blas)
        for samples, classes, margin in ((37, 5, 1.0), (256, 64, 0.9), (300, 64, 1.4), (512, 60, 1.0)):
            x, y = batch(samples, classes)
            for loss in (create("contrastive", neg_margin=margin), create("triplet"), create("ms")):
                leaf = x.clone().requires_grad_()
                loss.reference(leaf, y).backward()
                value, gradient = value_and_gradient(loss, x, y)
                assert_close(value, loss.reference(x, y))
                assert_close(gradient, leaf.grad)
    finally:
        extension.use_level(before)
        extension.use_default_blas()


def test_an_anchor_that_is_not_finite_spoils_what_it_did() -> None:
    x, y = batch(130, 10)
    x[5, 3] = torch.nan
    loss = create("contrastive", neg_margin=0.1)
    results = []
    for options in (IN_TILES, {}):
        with plan_options(**options):
            results.append(value_and_gradient(loss, x, y))
    for before, after in zip(*results, strict=True):
        assert torch.equal(before.isnan(), after.isnan())


class Hardest(WindowMiner):
    """The hardest positive and negative of each anchor alone: windows that end at the very bits of a similarity."""

    name = "hardest_alone"

    def windows(self, extremes: Measure) -> Windows:
        found = extremes(None)
        nothing = torch.full_like(found.lowest_positive, torch.inf)
        return torch.stack([-nothing, found.lowest_positive, found.highest_negative, nothing])


@pytest.mark.parametrize("samples", [12, 24, 40, 64, 200, 520])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_windows_find_the_bits_of_the_extremes(samples: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, 9, generator=generator, dtype=torch.float64)
    y = torch.arange(samples) % 4
    loss = create("contrastive", miner=Hardest())
    leaf, definition = x.clone().to(dtype).requires_grad_(), x.clone().requires_grad_()
    value, plain = loss(leaf, y), loss.reference(definition, y)
    assert loss.is_fused
    value.backward()
    plain.backward()
    assert leaf.grad is not None and definition.grad is not None
    tolerance = 1e-5 if dtype is torch.float32 else 1e-12
    assert value.item() == pytest.approx(plain.item(), rel=tolerance)
    assert torch.allclose(leaf.grad.double(), definition.grad, rtol=0, atol=tolerance)
