"""The CUDA kernels, executed on the CPU by the emulator: the table of cases, orders of the threads, AddressSanitizer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import cuda_emulation
import pytest
import torch
from cases import BATCHES, CLASSES, ON_CUDA, PAIRS, Case, embeddings_of
from cuda_comparison import batch_of, compare
from torch import Tensor

from dmlcore.errors import ConfigError
from dmlcore.kernels import FunctorCall, rows
from dmlcore.kernels import cuda as cuda_module
from dmlcore.kernels.cuda import CudaStep, NotTaken

pytestmark = pytest.mark.skipif(bool(cuda_emulation.missing()), reason=cuda_emulation.missing())
cases = pytest.mark.parametrize("case", ON_CUDA, ids=lambda case: case.id)
pairs = pytest.mark.parametrize("case", [case for case in PAIRS if case in ON_CUDA], ids=lambda case: case.id)

MS = FunctorCall("ms", (2.0, 50.0, 0.5, 0.1))
TRIPLETS = FunctorCall("triplet_all", (0.1,))
ANCHOR = FunctorCall("proxy_anchor", (0.1, 32.0))


@pytest.fixture
def on_emulator(emulated: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused losses of CPU tensors run the CUDA kernels, through the code that CUDA tensors take."""
    monkeypatch.setattr(rows, "_step", lambda *arguments: CudaStep(*arguments, module=emulated))


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
    labels, others = torch.arange(anchors) * 5 % CLASSES, torch.arange(references) * 3 % CLASSES
    x, r = embeddings_of(labels, width), embeddings_of(others, width, torch.float32, seed=1)
    compare(case, x, labels, references=r, reference_labels=others)


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
    step = CudaStep(x, y, r, other, normalise, calls, module=emulated)
    values, counts, _ = step.forward()
    cotangents = torch.rand(values.shape, generator=torch.Generator().manual_seed(1))
    return [tensor for tensor in (values, counts, *step.backward(cotangents)) if tensor is not None]


@pytest.mark.parametrize("count", [1, 33, 67])
def test_no_order_of_the_threads_matters(emulated: ModuleType, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    calls = tuple(dict.fromkeys(case.create().functor_call() for case in ON_CUDA))
    x, y = embeddings_of(torch.arange(count) % CLASSES, 19, torch.float32), torch.arange(count) % CLASSES
    r, other = (None, None) if count != 33 else (embeddings_of(y[:21], 19, torch.float32, seed=2), y[:21])
    results = []
    for order in range(4):
        monkeypatch.setenv("CUEMU_ORDER", str(order))
        results.append(run(emulated, calls, x, y, r, other))
    for result in results[1:]:
        for mine, first in zip(result, results[0], strict=True):
            assert torch.equal(mine, first)


def test_an_ensemble_equals_its_members(emulated: ModuleType) -> None:
    x, y = BATCHES["odd"]
    x = x.float()
    values, counts, grad = run(emulated, (MS, TRIPLETS, ANCHOR), x, y)
    single = [run(emulated, (call,), x, y) for call in (MS, TRIPLETS, ANCHOR)]
    assert torch.equal(values, torch.cat([s[0] for s in single]))
    assert torch.equal(counts, torch.cat([s[1] for s in single]))
    cotangents = torch.rand(values.shape, generator=torch.Generator().manual_seed(1))
    step, at, total = None, 0, torch.zeros_like(grad)
    for call, s in zip((MS, TRIPLETS, ANCHOR), single, strict=True):
        step = CudaStep(x, y, None, None, (True, True), (call,), module=emulated)
        step.forward()
        total += step.backward(cotangents[at : at + len(s[0])])[0]
        at += len(s[0])
    torch.testing.assert_close(grad, total, rtol=1e-5, atol=1e-6)


def test_long_lists_of_positives(emulated: ModuleType) -> None:
    y = torch.cat([torch.zeros(260, dtype=torch.int64), torch.arange(1, 4)])  # above the 256 that fit shared memory
    x = embeddings_of(y, 2, torch.float32)
    values, counts, _ = run(emulated, (MS,), x, y)
    case = Case("ms")
    exact = case.create().rows(x.double(), y, plain=True)
    torch.testing.assert_close(values.double(), exact.values, rtol=1e-5, atol=1e-5)
    assert torch.equal(counts.double(), exact.counts)


def test_many_references(emulated: ModuleType) -> None:
    torch.manual_seed(0)
    x, r = torch.randn(2, 3), torch.randn(66_000, 3)  # more than 16 tiles in each of the 64 splits
    y, other = torch.tensor([0, 1]), torch.randint(2, 9, (66_000,))
    other[::30_000] = 1
    step = CudaStep(x, y, r, other, (True, True), (FunctorCall("sup_con", (0.1,)),), module=emulated)
    values, counts, _ = step.forward()
    grad, _ = step.backward(torch.ones_like(values), with_references=False)
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(emulated: ModuleType, dtype: torch.dtype) -> None:
    x, y = BATCHES["odd"][0].to(dtype), BATCHES["odd"][1]
    low, single = run(emulated, (MS,), x, y), run(emulated, (MS,), x.float(), y)
    assert torch.equal(low[0], single[0]) and low[2].dtype == dtype
    assert torch.equal(low[2], single[2].to(dtype))


def test_what_is_not_taken(emulated: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = BATCHES["odd"][0].float(), BATCHES["odd"][1]
    with pytest.raises(ConfigError, match="float64"):
        run(emulated, (MS,), x.double(), y)
    with pytest.raises(ValueError, match="takes the options 'margin'"):
        run(emulated, (FunctorCall("triplet_all", (0.1, 2.0)),), x, y)
    with pytest.raises(ValueError, match="no functor 'quadruplet'"):
        run(emulated, (FunctorCall("quadruplet", (0.1,)),), x, y)
    monkeypatch.setattr(cuda_module, "SLOT_BYTES", 1000)
    with pytest.raises(NotTaken, match="every positive with every negative"):
        run(emulated, (TRIPLETS,), x, y)


def test_no_access_out_of_bounds(built: Path) -> None:
    if not cuda_emulation.sanitizers():
        pytest.skip("the compiler's AddressSanitizer library is not installed")
    command = [sys.executable, cuda_emulation.__file__, str(built / "sanitized" / "_cuda.so")]
    done = subprocess.run(command, env=cuda_emulation.sanitized_environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "clean" in done.stdout, done.stderr[-3000:]
