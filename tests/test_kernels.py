"""Fused = plain, value and gradient, over the table of cases: float64 through the same kernels that serve float32."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import (
    BATCHES,
    CLASSES,
    FUSED,
    PAIRS,
    WIDTH,
    Case,
    assert_close,
    call_on,
    embeddings_of,
    given_to,
    value_and_gradients,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from dmlcore.errors import ConfigError
from dmlcore.kernels import (
    FunctorCall,
    Relations,
    extension,
    functors,
    fused_pass,
    fused_passes,
    fused_rows,
    partner_functors,
    plan_options,
)
from dmlcore.kernels.jit import cpu_functors
from dmlcore.losses import Comparison, Rows
from dmlcore.losses.path import pass_of, reduced
from dmlcore.testing import naming_both

cases = pytest.mark.parametrize("case", FUSED, ids=lambda case: case.id)
batches = pytest.mark.parametrize("batch", BATCHES)
pytestmark = pytest.mark.skipif(extension.cpu() is None, reason="the CPU extension is not built")

PLANS = {
    "planned": {},
    "recomputed": {"workspace": 0},
    "small tiles": {"tile_rows": 8, "tile_columns": 16},
    "small tiles recomputed": {"tile_rows": 5, "tile_columns": 32, "workspace": 0},
    "partly stored": {"workspace": 20_000, "tile_rows": 16, "tile_columns": 32},
    "no triangle": {"triangle": 0},
    "no triangle recomputed": {"triangle": 0, "workspace": 0, "tile_rows": 8, "tile_columns": 16},
    "slots in chunks": {"slot_bytes": 4000},
    "searched": {"search": 1, "slot_bytes": 16000},
    "two threads": {"threads": 2, "thread_work": 1, "tile_rows": 8, "tile_columns": 32},
    "two threads recomputed": {"threads": 2, "thread_work": 1, "tile_rows": 16, "tile_columns": 16, "workspace": 0},
    "two threads, no triangle": {"threads": 2, "thread_work": 1, "triangle": 0, "tile_rows": 8},
    "two threads, chunks": {"threads": 2, "thread_work": 1, "slot_bytes": 4000},
}


@pytest.fixture(autouse=True)
def _restore_level_and_blas():
    module = extension.cpu()
    level = module.level()
    yield
    module.use_level(level)
    extension.use_default_blas()


def test_own_products_where_the_vendor_leaves_half_of_the_registers() -> None:
    assert extension.preferred_blas(True, "avx512", "AuthenticAMD") == "own"
    for is_mkl, level, maker in (
        (True, "avx512", "GenuineIntel"),
        (True, "avx2", "AuthenticAMD"),
        (False, "avx512", "AuthenticAMD"),
    ):
        assert extension.preferred_blas(is_mkl, level, maker) == "vendor"


@cases
@batches
def test_fused_equals_plain(case: Case, batch: str) -> None:
    if case.mines_beyond and batch in ("duplicates of other classes", "collapsed"):
        pytest.skip("negatives exactly as far as positives: the definition jumps there, and the last bit decides")
    if case.id == "snr_contrastive" and batch == "duplicates":
        pytest.skip("positives at the margin exactly: the last bit of a product decides which of them count")
    loss, (x, y) = case.create(), BATCHES[batch]
    assert loss.is_fused, loss.why_not_fused
    result, plain = value_and_gradients(loss, x, y, loss), value_and_gradients(loss, x, y, loss.reference)
    if case.takes_nearest and "duplicates" in batch:
        # Which of two coincident points is the nearest is decided by the last bit of a matrix product. Only the gradient of
        # the place they share is defined: add it up over coincident points.
        _, place = torch.unique(x, dim=0, return_inverse=True)
        for _, gradients in (result, plain):
            gradients[0] = torch.zeros_like(x).index_add_(0, place, gradients[0])
    # Where the target has all of the probability, the definition has no digits of what is missing to 1. The kernel has.
    floor = 1e-15 / case.options.get("temperature", 1.0) / x.norm(dim=1, keepdim=True) if "softmax" in case.name else 0.0
    with naming_both(loss):
        assert_close(result, plain, 1e-9, floor=floor)


# A loss's first row meets every plan, its further options those that share least.
PLANNED = [
    pytest.param(case, plan, id=f"{case.id}-{plan}")
    for case in FUSED
    for plan in PLANS
    if plan in ("no triangle recomputed", "two threads, chunks") or next(c for c in FUSED if c.name == case.name) is case
]


def completed(loss: Any, call: FunctorCall, passed: Any, comparison: Comparison, context: torch.Tensor | None) -> Rows:
    """What a loss makes of the values, counts and histograms of its functor."""
    values, counts, table = passed
    rows = Rows(table.view(2, -1), table.new_zeros(2, 0)) if call.cells else Rows(values, counts)
    return loss.complete(rows, comparison, context) if loss.completes else rows


@pytest.mark.parametrize(("case", "plan"), PLANNED)
def test_plans_agree(case: Case, plan: str) -> None:
    loss, (x, y) = case.create(), BATCHES["large"]
    with plan_options(**PLANS[plan]):
        result = value_and_gradients(loss, x, y, loss)
    with naming_both(loss):
        assert_close(result, value_and_gradients(loss, x, y, loss.reference), 1e-9)


@cases
@pytest.mark.parametrize("blas", ["vendor", "own"])
@pytest.mark.parametrize("level", extension.cpu().levels() if extension.cpu() else [])
def test_instruction_sets_and_products_agree(case: Case, level: str, blas: str) -> None:
    extension.use_level(level)
    extension.use_blas(blas)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-4)):  # float32: a loose net, the budget is tested below
        loss = case.create(dtype)
        x, y = BATCHES["unbalanced"]
        result = value_and_gradients(loss, x.to(dtype), y, loss)
        with torch.no_grad():
            exact = case.create()
        with naming_both(loss):
            assert_close(result, value_and_gradients(exact, x, y, exact.reference), tolerance, by_row=dtype == torch.float64)


@cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_error_is_within_twice_torchs_own(case: Case, dtype: torch.dtype) -> None:
    x, y = BATCHES["odd"]
    x = x.to(dtype)  # what is computed exactly is the rounded input
    low, exact = case.create(torch.float32), case.create()
    exact.load_state_dict(low.state_dict())
    truth, truth_gradients = value_and_gradients(exact, x.double(), y, exact.reference)
    own, own_gradients = value_and_gradients(low, x.float(), y, low.reference)
    value, gradients = value_and_gradients(low, x, y, low)
    # beside twice torch's error: a few roundings of the result, because at this size torch is often exactly right by luck
    assert abs(value.double() - truth) <= 2 * abs(own.double() - truth) + 2e-6 * abs(truth) + 1e-7
    for g, reference, t in zip(gradients, own_gradients, truth_gradients, strict=True):
        if g.dtype != torch.float32:
            assert (g.double() - t).abs().max() <= 2 * torch.finfo(dtype).eps * t.abs().max()  # the result itself is rounded
        else:
            scale = t.abs().max()
            assert (g.double() - t).abs().max() <= 2 * (reference.double() - t).abs().max() + 4e-6 * scale + 1e-9


@cases
def test_gradcheck(case: Case) -> None:
    labels = torch.tensor([0, 0, 1, 2, 1, 2, 2, 3])
    x = embeddings_of(labels, 4, seed=5).requires_grad_()
    loss = case.create(classes=4, width=4)
    inputs = (x, *loss.parameters())
    # circle takes its weights as constants, so its gradient is not the derivative of its value: check that of the plain form
    if case.name == "circle":
        assert_close(value_and_gradients(loss, x, labels, loss), value_and_gradients(loss, x, labels, loss.reference), 1e-9)
        return

    def value(*tensors: torch.Tensor) -> torch.Tensor:
        return loss(tensors[0], labels)

    assert torch.autograd.gradcheck(value, inputs, eps=1e-7, atol=1e-5, rtol=1e-4)


@cases
def test_gradient_under_a_random_cotangent(case: Case) -> None:
    loss, (x, y) = case.create(), BATCHES["odd"]
    torch.manual_seed(11)
    gradients = []
    for plain in (False, True):
        leaf = x.clone().requires_grad_()
        values = loss.rows(leaf, y, plain=plain).values
        torch.manual_seed(12)
        gradients.append(torch.autograd.grad(values, leaf, torch.randn_like(values))[0])
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-10)


@cases
def test_order_and_scale_do_not_matter(case: Case) -> None:
    loss, (x, y) = case.create(), BATCHES["odd"]
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(4))
    if case.takes_first:
        order = torch.argsort(y, stable=True)
    value, (gradient, *_) = value_and_gradients(loss, x, y, loss)
    shuffled, (shuffled_gradient, *_) = value_and_gradients(loss, x[order], y[order], loss)
    torch.testing.assert_close(shuffled, value, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(shuffled_gradient, gradient[order], rtol=1e-8, atol=1e-10)
    scaled, (scaled_gradient, *_) = value_and_gradients(loss, 7 * x, y, loss)
    if case.scale_free:
        torch.testing.assert_close(scaled, value, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(7 * scaled_gradient, gradient, rtol=1e-8, atol=1e-10)
    else:
        assert (scaled - value).abs() > 1e-3


@pytest.mark.parametrize("case", [case for case in FUSED if case in PAIRS], ids=lambda case: case.id)
def test_labels_may_be_any_int64(case: Case) -> None:
    if case.options.get("per_class"):
        with pytest.raises(ConfigError, match="labels 0..6, got labels"):  # labels are places in its table
            case.create()(BATCHES["odd"][0], BATCHES["odd"][1] + 1)
        return
    loss, (x, y) = case.create(), BATCHES["odd"]
    names = torch.tensor([2**62, -(2**62), 2**53 + 1, 2**53, -1, 2**24 + 1, 2**24])
    value, gradients = value_and_gradients(loss, x, names[y], loss)
    assert_close((value, gradients), value_and_gradients(loss, x, y, loss.reference), 1e-9)


@pytest.mark.parametrize("case", [case for case in FUSED if case in PAIRS], ids=lambda case: case.id)
@pytest.mark.parametrize("plan", ["planned", "small tiles recomputed", "two threads, chunks"])
def test_references(case: Case, plan: str) -> None:
    loss, (x, y) = case.create(), BATCHES["odd"]
    labels = torch.tensor([0, 1, 1, 1, 9, 3, 0, 0, 5, 5, 6, 8] * 4)
    vectors = embeddings_of(labels, seed=8)
    results = []
    for compute in (loss, loss.reference):
        leaf, other = x.clone().requires_grad_(), vectors.clone().requires_grad_()
        with plan_options(**PLANS[plan]):
            value = compute(leaf, y, references=other, reference_labels=labels)
            results.append((value.detach(), list(torch.autograd.grad(value, [leaf, other]))))
    assert_close(*results, 1e-9)
    with plan_options(**PLANS[plan]):  # a memory that takes no gradient
        leaf = x.clone().requires_grad_()
        only = torch.autograd.grad(loss(leaf, y, references=vectors, reference_labels=labels), leaf)[0]
    torch.testing.assert_close(only, results[0][1][0])


@pytest.mark.parametrize("case", [case for case in FUSED if case in PAIRS], ids=lambda case: case.id)
def test_empty_references_and_empty_batch(case: Case) -> None:
    loss, (x, y) = case.create(), BATCHES["odd"]
    leaf = x.clone().requires_grad_()
    value = loss(leaf, y, references=x[:0], reference_labels=y[:0])
    assert value == 0
    assert torch.autograd.grad(value, leaf)[0].abs().max() == 0
    empty = x[:0].clone().requires_grad_()
    nothing = loss(empty, y[:0])
    assert nothing == 0
    assert torch.autograd.grad(nothing, empty)[0].shape == (0, WIDTH)


@cases
def test_a_broken_anchor_shows_in_its_row(case: Case) -> None:
    loss, (x, y) = case.create(), BATCHES["odd"]
    x = x.clone()
    x[5, 3] = torch.nan
    values = loss.rows(x, y).values
    if case.name == "histogram":  # one value per batch
        return
    if case.name == "proxy_anchor":  # rows are proxies; every proxy sees the broken sample
        assert not torch.isfinite(values).all()
    else:
        assert not torch.isfinite(values[:, 5]).any()


def test_a_second_backward_pass_gives_the_same() -> None:
    loss, (x, y) = FUSED[0].create(), BATCHES["odd"]
    leaf = x.clone().requires_grad_()
    value = loss(leaf, y)
    first = torch.autograd.grad(value, leaf, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(value, leaf)[0])


def test_the_state_is_freed_by_the_backward_pass() -> None:
    loss, (x, y) = FUSED[0].create(), BATCHES["odd"]
    value = loss(x.clone().requires_grad_(), y)
    value.backward()
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        value.backward()


def test_threads_may_differentiate_one_graph() -> None:
    loss = FUSED[0].create(torch.float32)
    leaf, y = torch.randn(256, 16, generator=torch.Generator().manual_seed(0)).requires_grad_(), torch.arange(256) // 4
    value = loss(leaf, y)
    expected = torch.autograd.grad(value, leaf, retain_graph=True)[0]
    with ThreadPoolExecutor(2) as pool:
        gradients = list(pool.map(lambda _: torch.autograd.grad(value, leaf, retain_graph=True)[0], range(60)))
    assert all(torch.equal(gradient, expected) for gradient in gradients)


@pytest.mark.parametrize(
    "environment", [{"OMP_DYNAMIC": "true"}, {"OMP_MAX_ACTIVE_LEVELS": "0"}, {"OMP_THREAD_LIMIT": "2"}], ids=str
)
def test_fewer_threads_than_asked_for(environment: dict[str, str]) -> None:
    code = """
import torch, dmlcore
x, y = torch.randn(512, 32, requires_grad=True), torch.arange(512) // 4
first, second = dmlcore.losses.create("contrastive"), dmlcore.losses.create("triplet")
heads = dmlcore.LossEnsemble([first, second], columns=[(0, 16), (16, 32)])
for loss, work, reference in (
    (first, 1, first.reference),
    (second, 1, second.reference),
    (heads, 5_000_000, lambda x, y: first.reference(x[:, :16], y) + second.reference(x[:, 16:], y)),
):
    with dmlcore.kernels.plan_options(threads=4, thread_work=work):
        value = loss(x, y)
        gradient = torch.autograd.grad(value, x)[0]
    expected = reference(x, y)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, x)[0], rtol=1e-2, atol=1e-5)
x, y, other, labels = x[:40].double(), y[:40] % 3, torch.randn(300, 32).double(), torch.arange(300) % 3
ranks = dmlcore.losses.create("smooth_ap")  # of large classes: taken once for each row, by whichever thread
with dmlcore.kernels.plan_options(threads=4, thread_work=1):
    value = ranks(x, y, references=other, reference_labels=labels)
torch.testing.assert_close(value, ranks.reference(x, y, references=other, reference_labels=labels))
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "m, gamma", [(0.4, 1000.0), (0.4, 700.0), (0.62, 256.0), (0.9, 150.0), (0.8, 140.0), (0.9, 140.0), (0.95, 120.0)]
)
def test_circle_in_float32_at_extreme_options(m: float, gamma: float) -> None:
    generator, y = torch.Generator().manual_seed(0), torch.arange(64) // 4
    apart = torch.randn(64, 64, generator=generator)
    apart[1::4] = -apart[::4] + 0.5 * torch.randn(16, 64, generator=generator)  # positives on opposite sides
    loss = Case("circle", {"m": m, "gamma": gamma}).create(torch.float32)
    for x in (torch.randn(64, 512, generator=generator), apart):
        result = value_and_gradients(loss, x, y, loss)
        assert_close(result, value_and_gradients(loss, x.double(), y, loss.reference), 1e-4, by_row=False)


@pytest.mark.parametrize("name", ["sup_con", "ms", "circle", "triplet"])
def test_a_broken_reference_shows_in_every_row(name: str) -> None:
    x, y = BATCHES["odd"]
    vectors = x.clone()
    vectors[3] = torch.nan
    assert torch.isnan(Case(name).create().rows(x, y, references=vectors, reference_labels=y + 100).values).all()


def test_double_differentiation_is_refused() -> None:
    loss, (x, y) = FUSED[0].create(), BATCHES["odd"]
    leaf = x.clone().requires_grad_()
    with pytest.raises(ConfigError, match="differentiable once"):
        torch.autograd.grad(loss(leaf, y), leaf, create_graph=True)
    assert torch.autograd.grad(loss.reference(leaf, y), leaf, create_graph=True)[0].requires_grad


@cases
def test_the_same_bits_every_time(case: Case) -> None:
    loss, (x, y) = case.create(torch.float32), BATCHES["large"]
    runs = []
    for _ in range(3):
        with plan_options(threads=2, thread_work=1, tile_rows=16, tile_columns=32):
            runs.append(value_and_gradients(loss, x.float(), y, loss))
    for value, gradients in runs[1:]:
        assert torch.equal(value, runs[0][0])
        assert all(torch.equal(a, b) for a, b in zip(gradients, runs[0][1], strict=True))


def test_one_pass_serves_many_losses() -> None:
    x, y = BATCHES["large"]
    calls = tuple(call_on(case.create(), x, y) for case in FUSED if case in PAIRS)
    torch.manual_seed(0)
    for plan in PLANS.values():
        with plan_options(**plan):
            leaf = x.clone().requires_grad_()
            values, counts = fused_rows(leaf, y, None, None, calls)
            weights = torch.randn(values.shape[0], 1, dtype=values.dtype)
            together = torch.autograd.grad((values * weights).sum(), leaf)[0]
            at, apart = 0, torch.zeros_like(x)
            for call in calls:
                alone = x.clone().requires_grad_()
                v, c = fused_rows(alone, y, None, None, (call,))
                torch.testing.assert_close(values[at : at + len(v)], v)
                torch.testing.assert_close(counts[at : at + len(v)], c)
                apart += torch.autograd.grad((v * weights[at : at + len(v)]).sum(), alone)[0]
                at += len(v)
        torch.testing.assert_close(together, apart)


def test_unknown_functor_and_wrong_options() -> None:
    x, y = BATCHES["odd"]
    with pytest.raises(ValueError, match="no functor 'nonsense'"):
        fused_rows(x, y, None, None, (FunctorCall("nonsense", ()),))
    with pytest.raises(ValueError, match="takes the options 'alpha beta base epsilon'"):
        fused_rows(x, y, None, None, (FunctorCall("ms", (1.0,)),))


def test_every_functor_belongs_to_a_case() -> None:
    loaded = {name for entry in cpu_functors.loaded() for name in entry.functors}  # by other tests of this process
    losses = [case.create() for case in FUSED]
    of_batch = {call.functor for call in (loss.functor_call_of_batch() for loss in losses) if call is not None}
    assert set(functors()) - loaded - {"row_extremes"} == {loss.functor_call().functor for loss in losses} | of_batch


def test_large_batches_stay_small_in_memory() -> None:
    x = torch.randn(4096, 16, requires_grad=True)
    y = torch.arange(4096) // 4
    with plan_options(workspace=0):
        loss = FUSED[0].create(torch.float32)
        loss(x, y).backward()
    assert torch.isfinite(x.grad).all()


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=9),
    case=st.sampled_from(FUSED),
    seed=st.integers(0, 10**6),
    tile=st.tuples(st.integers(1, 70), st.integers(1, 90)),
    workspace=st.sampled_from([0, -1]),
    threads=st.integers(1, 3),
)
def test_any_class_sizes(sizes: list[int], case: Case, seed: int, tile: tuple[int, int], workspace: int, threads: int) -> None:
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    x = embeddings_of(labels, seed=seed)  # continuous in float64: ties have probability zero
    loss = case.create(classes=max(len(sizes), CLASSES))
    with plan_options(tile_rows=tile[0], tile_columns=tile[1], workspace=workspace, threads=threads, thread_work=1):
        result = value_and_gradients(loss, x, labels, loss)
    assert_close(result, value_and_gradients(loss, x, labels, loss.reference), 1e-8)


@cases
def test_inputs_are_checked(case: Case) -> None:
    loss, (x, y) = case.create(), BATCHES["odd"]
    for bad_x, bad_y, words in (
        (x[0], y, "must be a floating point matrix"),
        (x[:, :0], y, "no dimensions"),
        (x.long(), y, "must be a floating point matrix"),
        (x, y[:5], r"shape \[37\]"),
        (x, y.double(), "whole numbers"),
    ):
        with pytest.raises(ConfigError, match=words):
            loss(bad_x, bad_y)
    if loss.needs_classes:
        with pytest.raises(ConfigError, match="labels 0..6, got labels"):
            loss(x, y + 1)
        with pytest.raises(ConfigError, match="takes no references"):
            loss(x, y, references=x, reference_labels=y)
    else:
        with pytest.raises(ConfigError, match="given together"):
            loss(x, y, references=x)
        with pytest.raises(ConfigError, match="dimensions"):
            loss(x, y, references=x[:, :3], reference_labels=y)


@pytest.mark.parametrize("case", [case for case in FUSED if case in PAIRS], ids=lambda case: case.id)
@pytest.mark.parametrize("plan", ["planned", "small tiles recomputed", "two threads, chunks"])
def test_own_reference_is_no_pair(case: Case, plan: str) -> None:
    loss, (x, y) = case.create(), BATCHES["odd"]
    loss_of_batch = value_and_gradients(loss, x, y, loss.reference)[0]
    shuffle = torch.randperm(len(y), generator=torch.Generator().manual_seed(3))
    vectors, labels = torch.cat([embeddings_of(y[:5], seed=5), x[shuffle]]), torch.cat([y[:5], y[shuffle]])
    own = 5 + shuffle.argsort()
    if case.jumps_at_itself:  # those without an own reference meet a neighbour instead of themselves
        vectors[own[::4]] += 0.01 * embeddings_of(y[::4], seed=6)
    own[::4] = -1
    results = []
    for compute in (loss, loss.reference):
        leaf, other = x.clone().requires_grad_(), vectors.clone().requires_grad_()
        with plan_options(**PLANS[plan]):
            value = compute(leaf, y, references=other, reference_labels=labels, own=own)
            results.append((value.detach(), list(torch.autograd.grad(value, [leaf, other]))))
    if not case.mines_beyond:  # an anchor is exactly as far as itself where it is its own reference
        assert_close(*results, 1e-9)
    only = value_and_gradients(loss, x, y, loss, references=x[shuffle], reference_labels=y[shuffle], own=shuffle.argsort())[0]
    torch.testing.assert_close(only, loss_of_batch, rtol=1e-9, atol=1e-9)


PAIR_FUNCTORS = [case for case in FUSED if case in PAIRS and case.create().functor_call().functor not in partner_functors()]


@pytest.mark.parametrize("case", PAIR_FUNCTORS, ids=lambda case: case.id)
@pytest.mark.parametrize("plan", ["planned", "small tiles recomputed", "two threads, chunks"])
@pytest.mark.parametrize("references", [False, True])
def test_windows_leave_pairs_out(case: Case, plan: str, references: bool) -> None:
    loss, (x, y) = case.create(), BATCHES["odd"]
    if loss.normalise != (True, True):
        pytest.skip("windows are drawn for cosines")
    if case.name == "angular":
        pytest.skip("its functor's anchors are pairs: it runs in plain PyTorch where some are left out")
    if case.name == "intra_pair_variance":
        pytest.skip("the means that it is given know all pairs only: it runs in plain PyTorch where some are left out")
    if case.counts_pairs:
        pytest.skip("it counts the pairs that a miner leaves, and these windows come without a miner")
    labels = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(6))]
    vectors = embeddings_of(labels, seed=9)
    generator = torch.Generator().manual_seed(7)
    low, high = (0.5 * torch.rand(2, len(y), generator=generator, dtype=x.dtype) for _ in range(2))
    windows = torch.stack([low[0] - 0.6, high[0] + 0.2, low[1] - 0.7, high[1]])  # [4, A]
    windows[:, 3] = torch.tensor([2.0, 3.0, 2.0, 3.0])  # nothing is left
    results = []
    for plain in (False, True):
        leaf, other = x.clone().requires_grad_(), vectors.clone().requires_grad_()
        comparison = Comparison(leaf, y, other, labels) if references else Comparison(leaf, y)
        if plain:
            s = loss.similarities(comparison)
            positive, negative = comparison.masks()
            near = (s.detach() >= windows[0, :, None]) & (s.detach() <= windows[1, :, None])
            far = (s.detach() >= windows[2, :, None]) & (s.detach() <= windows[3, :, None])
            extra = [loss.betas(y)] if case.name == "margin" else []  # its rows know their labels by the boundary
            if case.name == "smooth_ap":
                extra = [given_to(loss, comparison)[0]]  # whether the anchor takes part itself
            rows = Rows(*loss.row_values(s, positive & near, negative & far, *extra))
        else:
            with plan_options(**PLANS[plan]):
                call, context = loss.functor_call(), given_to(loss, comparison)
                calls = [replace(call, windows=windows, given=context)]
                rows = completed(
                    loss, call, fused_passes([pass_of(comparison, calls, loss.normalise)]).of(0), comparison, context
                )
        with plan_options(**PLANS[plan]):
            value = reduced(rows, loss.options.reduction)
            gradients = torch.autograd.grad(value, [leaf, other] if references else [leaf])
        results.append((value.detach(), list(gradients)))
    assert_close(*results, 1e-9)


@pytest.mark.parametrize("case", [case for case in FUSED if case in PAIRS], ids=lambda case: case.id)
@pytest.mark.parametrize("plan", ["planned", "small tiles recomputed", "two threads, chunks"])
@pytest.mark.parametrize("references", [False, True])
def test_positives_may_be_listed(case: Case, plan: str, references: bool) -> None:
    loss, (x, _) = case.create(), BATCHES["odd"]
    if references and loss.functor_call().functor in partner_functors():
        pytest.skip("takes no references")
    if case.name == "angular":
        pytest.skip("its functor's anchors are pairs: it runs in plain PyTorch with a relation")
    if case.name == "intra_pair_variance" or case.options.get("per_class"):
        pytest.skip("sums per class, or numbers per class, need one label per sample")
    generator = torch.Generator().manual_seed(2)
    sets, other_sets = torch.rand(len(x), 9, generator=generator) < 0.2, torch.rand(41, 9, generator=generator) < 0.2
    vectors = embeddings_of(torch.arange(41) % 5, seed=4)
    own = torch.full((len(x),), -1)
    own[3] = 17

    def shares(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a[:, None, :] & b[None, :, :]).any(2)

    results = []
    for plain in (False, True):
        leaf, other = x.clone().requires_grad_(), vectors.clone().requires_grad_()
        comparison = Comparison(leaf, sets, relation=shares)
        if references:
            comparison = Comparison(leaf, sets, other, other_sets, own, shares)
        if plain:
            rows = loss.dense_rows(comparison)
        else:
            positive, _ = comparison.masks()
            starts = torch.cat([positive.new_zeros(1, dtype=torch.int64), positive.sum(1).cumsum(0)])
            relations = Relations(own if references else None, starts, positive.nonzero()[:, 1])
            context = given_to(loss, comparison)
            call = replace(loss.functor_call(), given=context)
            with plan_options(**PLANS[plan]):
                passed = fused_pass(
                    leaf, own, comparison.references, other_sets, (call,), normalise=loss.normalise, relations=relations
                )
            rows = completed(loss, call, passed, comparison, context)
        with plan_options(**PLANS[plan]):
            value = reduced(rows, loss.options.reduction)
            gradients = torch.autograd.grad(value, [leaf, other] if references else [leaf])
        results.append((value.detach(), list(gradients)))
    assert_close(*results, 1e-9)


def test_lists_of_positives_are_checked() -> None:
    x, _ = BATCHES["odd"]
    starts = torch.arange(len(x) + 1)
    wrong = torch.arange(len(x))  # every anchor its own positive
    with pytest.raises(ValueError, match="ascending references other than the anchor itself"):
        fused_rows(
            x, starts[1:], None, None, (FunctorCall("ms", (2.0, 50.0, 0.5, 0.1)),), relations=Relations(None, starts, wrong)
        )


def test_an_option_of_cuda_says_nothing_here() -> None:
    x, y = BATCHES["odd"]
    calls = (FunctorCall("ms", (2.0, 50.0, 0.5, 0.1)), FunctorCall("triplet_all", (0.1,)))
    alone = fused_rows(x, y, None, None, calls)
    with plan_options(one_launch=1):
        together = fused_rows(x, y, None, None, calls)
    for expected, rows in zip(alone, together, strict=True):
        torch.testing.assert_close(rows, expected, rtol=0, atol=0)
