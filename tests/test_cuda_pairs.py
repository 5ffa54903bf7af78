"""The CUDA kernels on the emulator, beside the CPU kernels in float64: chunks of any shape, listed positives, own references,
windows, given numbers, large classes, and the plan of the chunks."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import cuda_emulation
import pytest
import torch
from cases import BATCHES, FUSED, PAIRS, PROXIES, Case, embeddings_of
from torch import Tensor

from dmlcore.kernels import FunctorCall, Pass, Relations, fused, fused_pass, partner_functors, plan_options
from dmlcore.kernels.cuda import CudaPass, NotTaken
from dmlcore.kernels.jit import cuda_functors
from dmlcore.losses import Comparison

pytestmark = pytest.mark.skipif(bool(cuda_emulation.missing()), reason=cuda_emulation.missing())
CHUNKS = {
    "planned": {},
    "rows in chunks": {"tile_rows": 7},
    "rows and columns in chunks": {"tile_rows": 16, "tile_columns": 13},
}
chunks = pytest.mark.parametrize("plan", CHUNKS)
# a row of the table for every functor
FUNCTORS = list({case.create().functor_call().functor: case for case in reversed(FUSED) if case in PAIRS}.values())
FUNCTORS = [case for case in FUNCTORS if case.name != "angular"]
functors = pytest.mark.parametrize("case", FUNCTORS, ids=lambda case: case.id)


def ready(case: Case, comparison: Comparison, dtype: torch.dtype) -> tuple[FunctorCall, tuple[bool, bool]]:
    """The functor of a row with its numbers, whatever the pairs."""
    loss = case.create(dtype)
    with torch.no_grad():
        call = loss.functor_call()
        return replace(call, given=call.given(comparison)) if callable(call.given) else call, loss.normalise


def outcome(
    dtype: torch.dtype,
    calls: tuple[FunctorCall, ...],
    comparison: Comparison,
    normalise: tuple[bool, bool],
    relations: Relations | None,
    plan: dict[str, int],
) -> list[Tensor]:
    """Values, counts, tables and gradients under fixed cotangents."""
    leaf = comparison.anchors.to(dtype, copy=True).requires_grad_()  # the table of batches stays as it is
    other = None if comparison.references is None else comparison.references.to(dtype, copy=True).requires_grad_()
    with plan_options(**plan):
        values, counts, tables = fused_pass(
            leaf,
            comparison.labels,
            other,
            comparison.reference_labels,
            calls,
            normalise=normalise,
            relations=relations or Relations(),
        )
        generator = torch.Generator().manual_seed(1)
        weights, of_cells = (torch.rand(x.shape, generator=generator).to(dtype) for x in (values, tables))
        total = (values * weights).sum() + (tables * of_cells).sum()
        leaves = [leaf] if other is None else [leaf, other]
        gradients = torch.autograd.grad(total, leaves, allow_unused=True)
    halves = [half / half.sum().clamp_min(1) for half in tables.view(2, -1)] if len(tables) else []  # pairs may count twice
    tensors = [values, counts, *halves]
    if not len(tables):
        tensors += [torch.zeros_like(x) if g is None else g for g, x in zip(gradients, leaves, strict=True)]
    return [x.detach().double() for x in tensors]


@pytest.fixture
def agree(emulated: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Checks a pass of the CUDA kernels in float32 against one of the CPU kernels in float64."""

    def check(
        make: Any, comparison: Comparison, relations: Relations | None = None, plan: str = "planned", loose: float = 1.0
    ) -> None:
        calls, normalise = make(torch.float64)
        truth = outcome(torch.float64, calls, comparison, normalise, relations, {})
        calls, normalise = make(torch.float32)
        with monkeypatch.context() as patch:
            patch.setattr(fused, "device_pass", lambda pass_: CudaPass(pass_, module=emulated))
            results = outcome(torch.float32, calls, comparison, normalise, relations, CHUNKS[plan])
        for tensor, right in zip(results, truth, strict=True):
            torch.testing.assert_close(
                tensor, right, rtol=2e-4 * loose, atol=2e-5 * loose * float(right.abs().max() if right.numel() else 0) + 1e-6
            )

    return check


def other_side(case: Case, count: int = 41) -> tuple[Tensor, Tensor]:
    labels = torch.arange(count) * 3 % 7
    return embeddings_of(labels, seed=4), labels


@functors
@chunks
@pytest.mark.parametrize("references", [False, True])
def test_chunks(agree: Any, case: Case, plan: str, references: bool) -> None:
    x, y = BATCHES["odd"]
    if references and case.create().functor_call().functor in partner_functors():
        pytest.skip("takes no references")
    comparison = Comparison(x, y, *(other_side(case) if references else (None, None)))

    def make(dtype: torch.dtype) -> Any:
        call, normalise = ready(case, comparison, dtype)
        return (call,), normalise

    agree(make, comparison, None, plan)


@pytest.mark.parametrize("case", [case for case in PROXIES if case.fused], ids=lambda case: case.id)
@pytest.mark.parametrize("plan", ["rows in chunks", "rows and columns in chunks"])
def test_proxies_in_chunks(emulated: ModuleType, monkeypatch: pytest.MonkeyPatch, case: Case, plan: str) -> None:
    x, y = BATCHES["odd"]
    results = []
    for dtype in (torch.float64, torch.float32):
        loss, leaf = case.create(dtype), x.to(dtype, copy=True).requires_grad_()
        with monkeypatch.context() as patch, plan_options(**(CHUNKS[plan] if dtype == torch.float32 else {})):
            if dtype == torch.float32:
                patch.setattr(fused, "device_pass", lambda pass_: CudaPass(pass_, module=emulated))
            value = loss(leaf, y)
            results.append([value, *torch.autograd.grad(value, [leaf, *loss.parameters()])])
    for right, tensor in zip(*results, strict=True):
        torch.testing.assert_close(tensor.double(), right, rtol=2e-4, atol=2e-5 * float(right.detach().abs().max()))


@functors
@pytest.mark.parametrize("plan", ["planned", "rows and columns in chunks"])
@pytest.mark.parametrize("references", [False, True])
def test_windows(agree: Any, case: Case, plan: str, references: bool) -> None:
    x, y = BATCHES["odd"]
    if case.create().functor_call().functor in partner_functors():
        pytest.skip("takes no windows")
    comparison = Comparison(x, y, *(other_side(case) if references else (None, None)))
    low, high = 0.5 * torch.rand(2, 2, len(y), generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    windows = torch.stack([low[0] - 0.6, high[0] + 0.2, low[1] - 0.7, high[1]])  # [4, A]
    windows[:, 3] = torch.tensor([2.0, 3.0, 2.0, 3.0])  # nothing is left
    if case.create().normalise != (True, True):
        windows = windows * 10  # products of raw vectors

    def make(dtype: torch.dtype) -> Any:
        call, normalise = ready(case, comparison, dtype)
        return (replace(call, windows=windows.to(dtype)),), normalise

    agree(make, comparison, None, plan)


def random_lists(count: int, reference_count: int, own: Tensor | None) -> tuple[Tensor, Tensor]:
    """`starts` and `positives` of relations, no partition into classes, some anchors without any; symmetric without `own`."""
    generator = torch.Generator().manual_seed(2)
    sets, theirs = torch.rand(count, 9, generator=generator) < 0.2, torch.rand(reference_count, 9, generator=generator) < 0.2
    positive = (sets[:, None, :] & (sets if own is None else theirs)[None]).any(2)
    if own is None:
        positive.fill_diagonal_(False)
    else:
        has_own = own >= 0
        positive[has_own.nonzero()[:, 0], own[has_own]] = False
    return torch.cat([torch.zeros(1, dtype=torch.int64), positive.sum(1).cumsum(0)]), positive.nonzero()[:, 1].contiguous()


@functors
@pytest.mark.parametrize("plan", ["planned", "rows and columns in chunks"])
@pytest.mark.parametrize("references", [False, True])
def test_listed_positives(agree: Any, case: Case, plan: str, references: bool) -> None:
    x, y = BATCHES["odd"]
    if references and case.create().functor_call().functor in partner_functors():
        pytest.skip("takes no references")
    comparison = Comparison(x, y, *(other_side(case) if references else (None, None)))
    own = None
    if references:
        own = torch.full((len(y),), -1)
        own[3], own[8] = 17, 0
    relations = Relations(own, *random_lists(len(y), 41, own))

    def make(dtype: torch.dtype) -> Any:
        call, normalise = ready(case, comparison, dtype)
        return (call,), normalise

    agree(make, comparison, relations, plan)


def test_no_positive_is_listed(agree: Any) -> None:
    x, y = BATCHES["odd"]
    relations = Relations(None, torch.zeros(len(y) + 1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    calls = (FunctorCall("ms", (2.0, 50.0, 0.5, 0.1)), FunctorCall("triplet_all", (0.1,)))
    agree(lambda _: (calls, (True, True)), Comparison(x, y), relations)


@functors
@pytest.mark.parametrize("plan", ["planned", "rows and columns in chunks"])
def test_own_reference_is_no_pair(agree: Any, case: Case, plan: str) -> None:
    if case.create().functor_call().functor in partner_functors() or case.mines_beyond:
        pytest.skip("takes no references, or jumps where an anchor meets itself under another index")
    x, y = BATCHES["odd"]
    shuffle = torch.randperm(len(y), generator=torch.Generator().manual_seed(3))
    references, labels = torch.cat([embeddings_of(y[:5], seed=5), x[shuffle]]), torch.cat([y[:5], y[shuffle]])
    own = 5 + shuffle.argsort()
    own[::4] = -1
    comparison = Comparison(x, y, references, labels, own)

    def make(dtype: torch.dtype) -> Any:
        call, normalise = ready(case, comparison, dtype)
        return (call,), normalise

    keep = own >= 0  # an anchor that meets itself as a positive lies at distance 0, which one float does not tell from 1e-4
    comparison = comparison._replace(anchors=x[keep], labels=y[keep], own=own[keep])
    agree(make, comparison, Relations(own[keep]), plan)


@pytest.mark.parametrize("name", ["triplet_all", "triplet_semihard", "smooth_ap", "ms"])
def test_lists_beyond_shared_memory(agree: Any, name: str) -> None:
    y = torch.cat([torch.zeros(262, dtype=torch.int64), torch.arange(1, 12) // 3])
    x = embeddings_of(y, 8, spread=2.0)
    options = {"ms": (2.0, 50.0, 0.5, 0.1), "smooth_ap": (0.1,)}.get(name, (0.1,))
    anchors = torch.arange(0, len(y), 6)  # some anchors with long lists, some with short ones
    ones = None if name != "smooth_ap" else torch.zeros(1, len(anchors))
    windows = None if name != "triplet_semihard" else torch.tensor([[-0.2], [0.8], [-1.0], [0.9]]).repeat(1, len(anchors))
    call = FunctorCall(name, options, ones, windows)
    agree(lambda _: ((call,), (True, True)), Comparison(x[anchors], y[anchors], x, y), Relations(anchors), loose=2.0)


def test_members_share_products(emulated: ModuleType) -> None:
    x, y = BATCHES["odd"][0].float(), BATCHES["odd"][1]
    calls = (FunctorCall("ms", (2.0, 50.0, 0.5, 0.1)), FunctorCall("sup_con", (0.1,)), FunctorCall("triplet_all", (0.1,)))
    multiplied = []

    class Counted(CudaPass):
        def _multiply(self, into: Tensor, rows: Any, columns: Any) -> None:
            multiplied.append((rows, columns))
            super()._multiply(into, rows, columns)

    state = Counted(Pass(x, y, None, None, calls, (True, True)), module=emulated)
    state.backward(torch.ones_like(state.forward()[0]))
    assert multiplied == [((0, 37), (0, 37))]  # kept for backward
    with plan_options(workspace=37 * 16 * 4, tile_rows=16):
        state = Counted(Pass(x, y, None, None, calls, (True, True)), module=emulated)
        state.backward(torch.ones_like(state.forward()[0]))
    assert multiplied[1:] == 2 * [((0, 16), (0, 37)), ((16, 32), (0, 37)), ((32, 37), (0, 37))]


LARGE = [
    # anchors, references, functor, rows and columns of a chunk, whether it holds whole rows
    (512, None, "ms", (512, 512), True),
    (8192, None, "ms", (512, 8192), True),
    (131_072, None, "ms", (1024, 4096), False),
    (131_072, None, "triplet_all", (32, 131_072), True),
    (512, 1_000_000, "norm_softmax", (512, 8192), False),
    (1_000_000, 512, "proxy_anchor", (8192, 512), True),
    (64, 1_000_000, "ms", (64, 65_536), False),
    (1_000_000, 1_000_000, "sup_con", (1024, 4096), False),
]


@pytest.mark.parametrize(("anchors", "references", "functor", "chunk", "whole"), LARGE)
def test_plan_of_large_passes(
    emulated: ModuleType, anchors: int, references: int | None, functor: str, chunk: Any, whole: bool
) -> None:
    number = emulated.functors()[functor][0].count(" ") + 1
    step = emulated.Pass(anchors, references, 128, [(functor, [0.1] * number, 0, 0)], workspace=16 << 20)
    plan, longest = step.plan, references or anchors
    assert ((plan["rows"], plan["columns"]), plan["whole"]) == (chunk, whole)
    assert 4 * chunk[0] * chunk[1] <= max(16 << 20, 32 * 4 * longest)
    assert max(plan["forward"], plan["backward"]) <= (32 << 20) + 40 * longest + 80 * anchors  # linear in both comparison
    assert plan["kept"] <= 60 * (anchors + longest)
    assert 0 <= plan["long_blocks"] <= plan["rows"]


def test_too_large_for_the_kernels(emulated: ModuleType) -> None:
    with pytest.raises(ValueError, match="2\\^30 rows"):
        emulated.Pass((1 << 30) + 1, None, 8, [("ms", [2.0, 50.0, 0.5, 0.1], 0, 0)], workspace=1 << 20)


class Given:
    """A functor with its handles."""

    def __init__(self, external: Any) -> None:
        self.external = external

    def on(self, *_: Any) -> Any:
        return self.external


def test_a_functor_compiled_at_run_time_joins_the_pass(
    emulated: ModuleType, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = ctypes.CDLL(str(built / "plain" / "external.so"))
    layout = (ctypes.c_int * 10)()
    library.external_layout(layout)
    launcher = ctypes.cast(library.external_launch, ctypes.c_void_p).value
    external = emulated.External("toy", list(layout), 1, 0, 2, launcher)
    monkeypatch.setitem(cuda_functors.joined, "toy", Given(external))
    x, y = BATCHES["odd"][0].float(), BATCHES["odd"][1]
    calls = (FunctorCall("ms", (2.0, 50.0, 0.5, 0.1)), FunctorCall("toy", (0.2,)), FunctorCall("triplet_all", (0.1,)))
    leaf = x.double().requires_grad_()
    s = torch.nn.functional.normalize(leaf) @ torch.nn.functional.normalize(leaf).T
    same = (y[:, None] == y) & ~torch.eye(len(y), dtype=torch.bool)
    truth = ((s - 0.2).clamp_min(0) ** 2 * (y[:, None] != y)).sum(1) + ((1 - s) ** 2 * same).sum(1)
    truth.sum().backward()
    for plan in CHUNKS.values():
        with plan_options(**plan):
            state = CudaPass(Pass(x, y, None, None, calls, (True, True)), module=emulated)
            values, *_ = state.forward()
            grad, _ = state.backward(torch.tensor([[0.0], [1.0], [0.0]]).expand(3, len(y)))
        torch.testing.assert_close(values[1].double(), truth.detach(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(grad.double(), leaf.grad, rtol=1e-4, atol=1e-5)
    with pytest.raises(NotTaken, match="'toy' takes 1 options, got 2"):
        CudaPass(Pass(x, y, None, None, (FunctorCall("toy", (0.2, 1.0)),), (True, True)), module=emulated)
    monkeypatch.setitem(cuda_functors.joined, "toy", Given(emulated.External("toy", list(layout), 7, 0, 7, launcher)))
    state = CudaPass(Pass(x, y, None, None, calls, (True, True)), module=emulated)
    with pytest.raises(RuntimeError, match="error 400 of the driver"):
        state.forward()
