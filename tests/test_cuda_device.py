"""The CUDA kernels on a real device: the table of cases again, and what only a device can show."""

from __future__ import annotations

import pytest
import torch
from cases import BATCHES, CLASSES, ON_CUDA, PAIRS, Case, embeddings_of
from cuda_comparison import (
    FIVE,
    autocast_does_not_reach_in,
    batch_of,
    compare,
    compiled_rows,
    five_rows,
    same_bits_every_time,
    scaler_skips_what_is_not_finite,
)

from dmlcore import LossEnsemble
from dmlcore.kernels import FunctorCall, extension, fused_rows
from dmlcore.plugins import defaults

WHY_NOT = extension.why_not("cuda") or ("" if torch.cuda.is_available() else "torch sees no CUDA device")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]
cases = pytest.mark.parametrize("case", ON_CUDA, ids=lambda case: case.id)


@cases
@pytest.mark.parametrize("batch", BATCHES)
def test_equals_the_definition(case: Case, batch: str) -> None:
    if case.mines_beyond and batch == "duplicates of other classes":
        pytest.skip("negatives exactly as far as positives: the definition jumps there, and the last bit decides")
    compare(case, *batch_of(case, batch), "cuda")


@pytest.mark.parametrize("case", [case for case in PAIRS if case in ON_CUDA], ids=lambda case: case.id)
@pytest.mark.parametrize(
    ("anchors", "references", "width"), [(33, 70, 130), (67, 1, 5), (1, 66, 1), (5, 0, 8), (3, 4, 257), (1000, 3000, 64)]
)
def test_references(case: Case, anchors: int, references: int, width: int) -> None:
    labels, other_labels = torch.arange(anchors) * 5 % CLASSES, torch.arange(references) * 3 % CLASSES
    if case.name == "triplet" and anchors > 100:
        labels, other_labels = torch.arange(anchors) % 300, torch.arange(references) % 300  # the definition holds all triplets
    x, r = embeddings_of(labels, width), embeddings_of(other_labels, width, seed=1)
    compare(case, x, labels, "cuda", references=r, reference_labels=other_labels)


def _batch(count: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(count) % (count // 4)
    return embeddings_of(labels, width, torch.float32).cuda(), labels.cuda()


def test_same_bits_every_time() -> None:
    same_bits_every_time(*_batch(2048, 96))
    same_bits_every_time(*_batch(8192, 64))  # in chunks


def test_large_classes() -> None:
    x, y = _batch(1500, 32)
    y = y % 3  # 500 of a class: lists of positives in global memory
    compare(Case("ms"), x.cpu(), y.cpu(), "cuda")
    compare(Case("sup_con"), x.cpu(), y.cpu(), "cuda")


def test_another_stream() -> None:
    x, y = _batch(1024, 64)
    expected = five_rows(x, y)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        result = five_rows(x, y)
    torch.cuda.current_stream().wait_stream(stream)
    assert all(torch.equal(a, b) for a, b in zip(expected, result, strict=True))


def test_memory_is_linear() -> None:
    x, y = _batch(16_384, 32)
    five_rows(x[:64].contiguous(), y[:64].contiguous())
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    five_rows(x, y)
    assert torch.cuda.max_memory_allocated() - before < 100 << 20  # one matrix of similarities would take 1 GiB


def test_autocast_and_half_precision() -> None:
    autocast_does_not_reach_in(*_batch(256, 48))


def test_scaler() -> None:
    scaler_skips_what_is_not_finite(*_batch(256, 48))


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_both_passes_see_the_same_product(precision: str) -> None:
    x, y = _batch(8192, 128)  # products are computed again in backward
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        leaf = x.requires_grad_()
        values, _ = fused_rows(leaf, y, None, None, (FunctorCall("triplet_hard", (0.5, 0.0)),))
        values.sum().backward()
    finally:
        torch.set_float32_matmul_precision(before)
    # a nearest negative that is not found again would leave its anchor without a gradient
    assert leaf.grad is not None and bool((leaf.grad[values[0] > 0].norm(dim=1) > 0).all())


def test_the_host_does_not_wait() -> None:
    x, y = _batch(512, 64)
    five_rows(x, y)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        five_rows(x, y)
        five_rows(*_on_device(8192))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _on_device(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(count, 32, device="cuda"), torch.arange(count, device="cuda") % (count // 4)


@pytest.mark.parametrize("count", [37, 512, 4096])
def test_graph(count: int) -> None:
    x, y = _on_device(count)
    leaf = x.clone().requires_grad_()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            fused_rows(leaf, y, None, None, FIVE)[0].sum().backward()
            leaf.grad = None
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        values, counts = fused_rows(leaf, y, None, None, FIVE)
        values.sum().backward()
    for seed in range(3):
        torch.manual_seed(seed)
        batch, labels = torch.randn_like(x), torch.randint(count // 3, (count,), device="cuda")  # other classes, other sizes
        with torch.no_grad():
            leaf.copy_(batch)
            y.copy_(labels)
        graph.replay()
        assert leaf.grad is not None
        for result, right in zip((values.detach(), counts, leaf.grad), five_rows(batch, labels), strict=True):
            torch.testing.assert_close(result, right, rtol=1e-5, atol=1e-6)


def test_a_step_in_a_graph() -> None:
    """The recipe of docs/design/cuda.md."""
    torch.manual_seed(0)
    x, y = _on_device(256)
    ensemble, model = LossEnsemble([*defaults().LOSSES, "ms"]).cuda(), torch.nn.Linear(32, 16, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            ensemble(model(x), y).backward()
    torch.cuda.current_stream().wait_stream(stream)
    model.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        total = ensemble(model(x), y)
        total.backward()
    for _ in range(3):
        batch, labels = _on_device(256)
        x.copy_(batch)
        y.copy_(labels[torch.randperm(256, device="cuda")])
        graph.replay()
        right = ensemble(model(x), y)
        gradients = torch.autograd.grad(right, list(model.parameters()))
        torch.testing.assert_close(total, right, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close([p.grad for p in model.parameters()], list(gradients), rtol=1e-4, atol=1e-6)


def test_compiled() -> None:
    compiled_rows(*_batch(512, 64), mode="reduce-overhead")


def test_many_proxies_and_a_large_memory() -> None:
    x, y = torch.randn(64, 16, device="cuda"), torch.arange(64, device="cuda") % 8
    memory = torch.randn(300_000, 16, device="cuda")  # streamed: more than 65,536
    labels = torch.arange(300_000, device="cuda") % 70_000
    for name in ("sup_con", "ms"):
        case = Case(name)
        compare(case, x.cpu(), y.cpu(), "cuda", references=memory.cpu(), reference_labels=labels.cpu())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one CUDA device, or none")
def test_a_device_that_is_not_current() -> None:
    x, y = _batch(256, 48)
    expected = five_rows(x, y)
    result = five_rows(x.to("cuda:1"), y.to("cuda:1"))
    assert all(torch.allclose(a, b.to("cuda:0"), rtol=1e-5, atol=1e-6) for a, b in zip(expected, result, strict=True))
