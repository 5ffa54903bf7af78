"""The CUDA kernels on a real device: the table of cases again, and what only a device can show."""

from __future__ import annotations

import pytest
import torch
from cases import BATCHES, CLASSES, ON_CUDA, PAIRS, Case, embeddings_of
from cuda_comparison import compare

from dmlcore.kernels import FunctorCall, extension, fused_rows

WHY_NOT = extension.reason_against("cuda") or ("" if torch.cuda.is_available() else "torch sees no CUDA device")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]
cases = pytest.mark.parametrize("case", ON_CUDA, ids=lambda case: case.id)
CALLS = (
    FunctorCall("ms", (2.0, 50.0, 0.5, 0.1)),
    FunctorCall("contrastive", (0.0, 1.0)),
    FunctorCall("sup_con", (0.1,)),
    FunctorCall("circle", (0.4, 80.0)),
    FunctorCall("triplet_semihard", (0.1,)),
)


@cases
@pytest.mark.parametrize("batch", BATCHES)
def test_equals_the_definition(case: Case, batch: str) -> None:
    if case.mines_beyond and batch == "duplicates of other classes":
        pytest.skip("negatives exactly as far as positives: the definition jumps there, and the last bit decides")
    compare(case, *BATCHES[batch], "cuda")


@pytest.mark.parametrize("case", [case for case in PAIRS if case in ON_CUDA], ids=lambda case: case.id)
@pytest.mark.parametrize(
    ("anchors", "references", "width"), [(33, 70, 130), (67, 1, 5), (1, 66, 1), (5, 0, 8), (3, 4, 257), (1000, 3000, 64)]
)
def test_references(case: Case, anchors: int, references: int, width: int) -> None:
    labels, others = torch.arange(anchors) * 5 % CLASSES, torch.arange(references) * 3 % CLASSES
    if case.name == "triplet" and anchors > 100:
        labels, others = torch.arange(anchors) % 300, torch.arange(references) % 300  # the definition holds all triplets
    x, r = embeddings_of(labels, width), embeddings_of(others, width, seed=1)
    compare(case, x, labels, "cuda", references=r, reference_labels=others)


def _step(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    leaf = x.detach().requires_grad_()
    values, counts = fused_rows(leaf, y, None, None, CALLS)
    values.sum().backward()
    assert leaf.grad is not None
    return values.detach(), counts, leaf.grad


def _batch(count: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(count) % (count // 4)
    return embeddings_of(labels, width, torch.float32).cuda(), labels.cuda()


def test_same_bits_every_time() -> None:
    x, y = _batch(2048, 96)
    first = _step(x, y)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, _step(x, y), strict=True))


def test_large_classes() -> None:
    x, y = _batch(1500, 32)
    y = y % 3  # 500 of a class: lists of positives in global memory
    compare(Case("ms"), x.cpu(), y.cpu(), "cuda")
    compare(Case("sup_con"), x.cpu(), y.cpu(), "cuda")


def test_another_stream() -> None:
    x, y = _batch(1024, 64)
    expected = _step(x, y)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = _step(x, y)
    torch.cuda.current_stream().wait_stream(stream)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_memory_is_linear() -> None:
    x, y = _batch(16_384, 32)
    _step(x[:64].contiguous(), y[:64].contiguous())
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    _step(x, y)
    assert torch.cuda.max_memory_allocated() - before < 100 << 20  # one matrix of similarities would take 1 GiB


def test_autocast_and_half_precision() -> None:
    x, y = _batch(256, 48)
    for dtype in (torch.float16, torch.bfloat16):
        low, single = _step(x.to(dtype), y), _step(x.to(dtype).float(), y)
        assert torch.equal(low[0], single[0]) and low[2].dtype == dtype
        with torch.autocast("cuda", dtype):
            assert torch.equal(_step(x, y)[0], _step(x, y)[0])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one CUDA device, or none")
def test_a_device_that_is_not_current() -> None:
    x, y = _batch(256, 48)
    expected = _step(x, y)
    found = _step(x.to("cuda:1"), y.to("cuda:1"))
    assert all(torch.allclose(a, b.to("cuda:0"), rtol=1e-5, atol=1e-6) for a, b in zip(expected, found, strict=True))
