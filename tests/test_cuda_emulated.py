"""The CUDA kernels, executed on the CPU by the emulator: the table of cases, orders of the threads, AddressSanitizer."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import cuda_emulation
import pytest
import torch
from cases import BATCHES, CLASSES, ON_CUDA, PAIRS, PROXIES, Case, embeddings_of
from cuda_comparison import (
    autocast_does_not_reach_in,
    batch_of,
    compare,
    compiled_rows,
    same_bits_every_time,
    scaler_skips_what_is_not_finite,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import dmlcore
from dmlcore import plugins
from dmlcore.errors import ConfigError
from dmlcore.kernels import FunctorCall, Pass, fused, fused_rows, partner_functors, plan_options
from dmlcore.kernels.cuda import CudaPass, NotTaken
from dmlcore.losses import Comparison

pytestmark = pytest.mark.skipif(bool(cuda_emulation.missing()), reason=cuda_emulation.missing())
cases = pytest.mark.parametrize("case", ON_CUDA, ids=lambda case: case.id)
pairs = pytest.mark.parametrize("case", [case for case in PAIRS if case in ON_CUDA], ids=lambda case: case.id)

MS = FunctorCall("ms", (2.0, 50.0, 0.5, 0.1))
TRIPLETS = FunctorCall("triplet_all", (0.1,))
ANCHOR = FunctorCall("proxy_anchor", (0.1, 32.0))


@pytest.fixture
def on_emulator(emulated: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused losses of CPU tensors run the CUDA kernels, through the code that CUDA tensors take."""
    monkeypatch.setattr(fused, "device_pass", lambda pass_: CudaPass(pass_, module=emulated))
    for loss in {entry.component for entry in plugins.registry("loss").values()}:  # functors that are for the CPU alone
        if "functor_call_of_batch" in vars(loss):
            monkeypatch.setattr(loss, "functor_call_of_batch", lambda self: None)


def test_lists_every_functor(emulated: ModuleType) -> None:
    assert {case.create().functor_call().functor for case in ON_CUDA} <= set(emulated.functors())


@cases
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.usefixtures("on_emulator")
def test_equals_the_definition(case: Case, batch: str) -> None:
    if case.mines_beyond and batch == "duplicates of other classes":
        pytest.skip("negatives exactly as far as positives: the definition jumps there, and the last bit decides")
    compare(case, *batch_of(case, batch))


@pairs
@pytest.mark.parametrize(("anchors", "references", "width"), [(33, 70, 130), (67, 1, 5), (1, 66, 1), (5, 0, 8), (3, 4, 257)])
@pytest.mark.usefixtures("on_emulator")
def test_references(case: Case, anchors: int, references: int, width: int) -> None:
    if width == 1 and case.mines_beyond and "distance" in case.options:
        pytest.skip("all vectors of one number are as far as each other, to the last bit of a cosine")
    labels, reference_labels = torch.arange(anchors) * 5 % CLASSES, torch.arange(references) * 3 % CLASSES
    x, r = embeddings_of(labels, width), embeddings_of(reference_labels, width, torch.float32, seed=1)
    compare(case, x, labels, references=r, reference_labels=reference_labels)


@pytest.mark.usefixtures("on_emulator")
def test_gradient_of_references() -> None:
    torch.manual_seed(0)
    x, r = torch.randn(35, 9), torch.randn(68, 9)
    y, other = torch.randint(CLASSES, (35,)), torch.randint(CLASSES, (68,))
    for case in (case for case in PAIRS if case in ON_CUDA):
        low, exact = case.create(torch.float32), case.create()
        a = r.clone().requires_grad_()
        b = r.double().requires_grad_()
        low(x, y, references=a, reference_labels=other).backward()
        exact.reference(x.double(), y, references=b, reference_labels=other).backward()
        assert a.grad is not None and b.grad is not None
        torch.testing.assert_close(a.grad.double(), b.grad, rtol=1e-4, atol=1e-5 * float(b.grad.abs().max()), msg=case.id)


def run(
    emulated: ModuleType,
    calls: tuple[FunctorCall, ...],
    x: Tensor,
    y: Tensor,
    r: Tensor | None = None,
    other: Tensor | None = None,
    normalise: tuple[bool, bool] = (True, True),
) -> list[Tensor]:
    state = CudaPass(Pass(x, y, r, other, calls, normalise), module=emulated)
    values, counts, tables = state.forward()
    cotangents, of_cells = (torch.rand(t.shape, generator=torch.Generator().manual_seed(1)) for t in (values, tables))
    return [tensor for tensor in (values, counts, *state.backward(cotangents, of_cells), tables) if tensor is not None]


CENTRES = ("soft_triple", "subcenter_arcface")


@pytest.mark.parametrize("pass_of", ["batch", "references", "centres", "chunks and windows"])
def test_no_order_of_the_threads_matters(emulated: ModuleType, monkeypatch: pytest.MonkeyPatch, pass_of: str) -> None:
    count = 67 if pass_of == "batch" else 33
    y = torch.arange(count) % CLASSES
    x, (r, other), plan = embeddings_of(y, 19, torch.float32), (None, None), {}
    if pass_of != "batch":
        other = y[:21] if pass_of == "centres" else torch.arange(40) % CLASSES  # three of every class
        r = embeddings_of(other, 19, torch.float32, seed=2)
    calls = dict.fromkeys(case.create().functor_call() for case in ON_CUDA)
    calls = [replace(call, given=torch.ones(2, count)) for call in calls if (call.functor in CENTRES) == (pass_of == "centres")]
    calls = [replace(call, options=(3.0, *call.options[1:])) if call.functor in CENTRES else call for call in calls]
    if r is not None:
        calls = [call for call in calls if call.functor not in partner_functors()]
    if pass_of == "chunks and windows":
        windows = torch.tensor([[-0.5], [0.9], [-0.9], [0.8]]).repeat(1, count)
        calls, plan = [replace(call, windows=windows) for call in calls], {"tile_rows": 20, "tile_columns": 17}
    results = []
    for order in (0, 1, 3):
        monkeypatch.setenv("CUEMU_ORDER", str(order))
        with plan_options(**plan):
            results.append(run(emulated, tuple(calls), x, y, r, other))
    for result in results[1:]:
        for tensor, first in zip(result, results[0], strict=True):
            assert torch.equal(tensor, first)


def test_an_ensemble_equals_its_members(emulated: ModuleType) -> None:
    x, y = BATCHES["odd"]
    x = x.float()
    values, counts, grad, _ = run(emulated, (MS, TRIPLETS, ANCHOR), x, y)
    single = [run(emulated, (call,), x, y) for call in (MS, TRIPLETS, ANCHOR)]
    assert torch.equal(values, torch.cat([s[0] for s in single]))
    assert torch.equal(counts, torch.cat([s[1] for s in single]))
    cotangents = torch.rand(values.shape, generator=torch.Generator().manual_seed(1))
    at, total = 0, torch.zeros_like(grad)
    for call, s in zip((MS, TRIPLETS, ANCHOR), single, strict=True):
        state = CudaPass(Pass(x, y, None, None, (call,), (True, True)), module=emulated)
        state.forward()
        total += state.backward(cotangents[at : at + len(s[0])])[0]
        at += len(s[0])
    torch.testing.assert_close(grad, total, rtol=1e-5, atol=1e-6)


def test_long_lists_of_positives(emulated: ModuleType) -> None:
    y = torch.cat([torch.zeros(260, dtype=torch.int64), torch.arange(1, 4)])  # above the 256 that fit shared memory
    x = embeddings_of(y, 2, torch.float32)
    values, counts, *_ = run(emulated, (MS,), x, y)
    case = Case("ms")
    exact = case.create().rows(x.double(), y, plain=True)
    torch.testing.assert_close(values.double(), exact.values, rtol=1e-5, atol=1e-5)
    assert torch.equal(counts.double(), exact.counts)


def test_many_references(emulated: ModuleType) -> None:
    torch.manual_seed(0)
    x, r = torch.randn(2, 3), torch.randn(66_000, 3)  # more than 16 tiles in each of the 64 splits
    y, other = torch.tensor([0, 1]), torch.randint(2, 9, (66_000,))
    other[::30_000] = 1
    state = CudaPass(Pass(x, y, r, other, (FunctorCall("sup_con", (0.1,)),), (True, True)), module=emulated)
    values, counts, _ = state.forward()
    grad, _ = state.backward(torch.ones_like(values), with_references=False)
    leaf = x.double().requires_grad_()
    truth = Case("sup_con").create().rows(leaf, y, references=r.double(), reference_labels=other, plain=True)
    truth.values.sum().backward()
    torch.testing.assert_close(values.double(), truth.values, rtol=1e-6, atol=1e-6)
    assert torch.equal(counts.double(), truth.counts)
    torch.testing.assert_close(grad.double(), leaf.grad, rtol=1e-4, atol=1e-4)


def test_labels_of_any_size(emulated: ModuleType) -> None:
    x, y = BATCHES["odd"]
    names = torch.tensor([-(2**63), 2**63 - 1, -1, 0, 7, 2**40, -(2**40)])
    first, second = run(emulated, (MS, TRIPLETS), x.float(), y), run(emulated, (MS, TRIPLETS), x.float(), names[y])
    torch.testing.assert_close(first[0], second[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(first[2], second[2], rtol=1e-4, atol=1e-5)


def test_raw_vectors(emulated: ModuleType) -> None:
    y = torch.tensor([0, 1, 0, 2, 1])
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    unit = torch.nn.functional.normalize(x)
    torch.testing.assert_close(run(emulated, (MS,), unit, y, normalise=(False, False))[0], run(emulated, (MS,), x, y)[0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_an_anchor_that_is_not_finite_is_named(emulated: ModuleType, bad: float) -> None:
    x, y = BATCHES["odd"][0].float(), BATCHES["odd"][1]
    x[5, 2] = bad
    values, counts, *_ = run(emulated, (MS, TRIPLETS), x, y)
    assert torch.isnan(values[:, 5]).all() and bool((counts[:, 5] == 1).all())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_reference_that_is_not_finite_spoils_every_anchor(emulated: ModuleType, bad: float) -> None:
    x, y = BATCHES["odd"][0].float(), BATCHES["odd"][1]
    r = x.clone()
    r[5, 2] = bad
    values, counts, grad, *_ = run(emulated, (MS, TRIPLETS), x, y, r, y)
    assert bool(torch.isnan(values).all()) and bool((counts == 1).all()) and not bool(torch.isfinite(grad).all())


@pytest.mark.parametrize(
    "check",
    [same_bits_every_time, autocast_does_not_reach_in, scaler_skips_what_is_not_finite],
    ids=lambda check: check.__name__,
)
@pytest.mark.usefixtures("on_emulator")
def test_what_a_step_holds_to(check: Callable[[Tensor, Tensor], None]) -> None:
    check(BATCHES["odd"][0].float(), BATCHES["odd"][1])


@pytest.mark.usefixtures("on_emulator")
def test_compiled() -> None:
    compiled_rows(BATCHES["odd"][0].float(), BATCHES["odd"][1], backend="aot_eager")


class HostAsked(TorchDispatchMode):
    """Fails where a value on the device decides what the host does next: there it would wait, and a capture would end;
    or where it copies numbers of its own there, which ends one too."""

    ASKS = ("_local_scalar_dense", "nonzero", "unique_consecutive", "_unique2", "is_nonzero", "equal", "lift_fresh")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in self.ASKS, name
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("on_emulator")
def test_the_host_is_never_asked() -> None:
    x, y = BATCHES["odd"][0].float(), BATCHES["odd"][1]
    # the number of angular's pairs is a shape; a boundary per class looks at labels, but only of CPU tensors
    selected = [
        case for case in ON_CUDA if case.name != "angular" and not case.options.get("per_class") and case not in PROXIES
    ]
    losses = {case.id: case.create(torch.float32) for case in selected}
    losses["mined"] = dmlcore.losses.create("contrastive", miner="multi_similarity")
    for name, loss in losses.items():
        with HostAsked():
            leaf = x.clone().requires_grad_()
            loss(leaf, y).sum().backward()
        assert leaf.grad is not None, name
    ensemble = dmlcore.LossEnsemble([losses[name] for name in ("ms", "contrastive", "triplet", "histogram")])
    with HostAsked():
        ensemble(x.clone().requires_grad_(), y).backward()
    for case in PROXIES:
        comparison = case.create(torch.float32).reshaped(Comparison(x, y))  # forward looks at labels, but only of CPU tensors
        call = case.create(torch.float32).functor_call()
        call = replace(call, given=torch.ones(1, len(comparison.anchors)))
        with HostAsked():
            leaf = comparison.anchors.detach().clone().requires_grad_()
            values, _ = fused_rows(leaf, comparison.labels, comparison.references, comparison.reference_labels, (call,))
            values.sum().backward()


def test_what_is_not_taken(emulated: ModuleType) -> None:
    x, y = BATCHES["odd"][0].float(), BATCHES["odd"][1]
    with pytest.raises(ConfigError, match="float64"):
        run(emulated, (MS,), x.double(), y)
    with pytest.raises(ValueError, match="takes the options 'margin'"):
        run(emulated, (FunctorCall("triplet_all", (0.1, 2.0)),), x, y)
    with pytest.raises(ValueError, match="no functor 'quadruplet'"):
        run(emulated, (FunctorCall("quadruplet", (0.1,)),), x, y)
    with pytest.raises(NotTaken, match="pairs of a batch with itself"):
        run(emulated, (FunctorCall("lifted_structure", (1.0, 0.0)),), x, y, x, y)
    for centres, words in ((2.0, "same number of centres"), (65.0, "1 to 64 centres")):
        with pytest.raises(NotTaken, match=words):
            run(emulated, (FunctorCall("soft_triple", (centres, 0.1, 20.0, 0.01)),), x, y, x, y)
    with pytest.raises(ConfigError, match="reference_labels are on meta, but anchors are on cpu; move them"):
        run(emulated, (MS,), x, y, x, y.to("meta"))


def test_no_access_out_of_bounds(built: Path) -> None:
    if not cuda_emulation.sanitizers():
        pytest.skip("the compiler's AddressSanitizer library is not installed")
    command = [sys.executable, cuda_emulation.__file__, str(built / "sanitized" / "_cuda.so")]
    done = subprocess.run(command, env=cuda_emulation.sanitized_environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "clean" in done.stdout, done.stderr[-3000:]
