"""Functors of plugins on a real CUDA device: against their plain form, alone and in an ensemble, and against a twin."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cuda_functors import TWO_FORMS, again
from test_runtime_functors import header, loss_class, value_and_gradient

import dmlcore
from dmlcore.kernels import FunctorCall, Pass, extension, fused, fused_rows, plan_options
from dmlcore.kernels.jit import cuda_functors, dispatch, nvrtc
from dmlcore.kernels.jit.driver import why_not_there

WHY_NOT = extension.why_not("cuda") or ("" if torch.cuda.is_available() else "torch sees no CUDA device")
WHY_NOT = WHY_NOT or (reason if isinstance(reason := nvrtc.compiler(), str) else "") or why_not_there()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return loss_class(header(tmp_path_factory.mktemp("plugin"), "toy_device", TWO_FORMS))


def batch(count: int = 512, width: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(count, width, device="cuda"), torch.arange(count, device="cuda") % (count // 4)


def joined(loss: Any, name: str) -> None:
    assert dispatch.why_not_loaded(name, loss.functor_header(), "cuda") == "" and name in cuda_functors.joined


@pytest.mark.parametrize("margin", [0.1, 0.7])
def test_equals_its_plain_form(toy: Any, margin: float) -> None:
    joined(toy, "toy_device")
    loss, (x, y) = toy(margin=margin), batch()
    r, reference_labels = torch.randn(300, 48, device="cuda"), torch.arange(300, device="cuda") % 128
    for against in ({}, {"references": r, "reference_labels": reference_labels}):
        result = value_and_gradient(loss, x, y, **against)
        torch.testing.assert_close(result, value_and_gradient(loss.reference, x, y, **against), rtol=1e-4, atol=1e-6)
        assert torch.equal(result[1], value_and_gradient(loss, x, y, **against)[1])  # the same bits


def test_in_an_ensemble(toy: Any) -> None:
    joined(toy, "toy_device")
    x, y = batch()
    ensemble = dmlcore.LossEnsemble(["ms", toy(margin=0.1), "triplet"], weights=[1.0, 2.0, 0.5])

    def alone(embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        parts = zip([1.0, 2.0, 0.5], ensemble.members, strict=True)
        return torch.stack([weight * loss.reference(embeddings, labels) for weight, loss in parts]).sum()

    result = value_and_gradient(ensemble, x, y)
    torch.testing.assert_close(result, value_and_gradient(alone, x, y), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options"), [("ms", (2.0, 50.0, 0.5, 0.1)), ("ms", (2.0, 500.0, 0.5, 0.1)), ("triplet_all", (0.1,))]
)
def test_a_copy_of_a_built_in_functor(name: str, options: tuple[float, ...], tmp_path_factory: pytest.TempPathFactory) -> None:
    stem = name.split("_")[0]
    entry = cuda_functors.joined.get(f"again_{name}")
    path = entry.header if entry else again(tmp_path_factory.mktemp("again"), stem)
    assert dispatch.why_not_loaded(f"again_{name}", path, "cuda") == ""
    x, y = batch()
    results = []
    for functor in (name, f"again_{name}"):
        leaf = x.clone().requires_grad_()
        values, counts = fused_rows(leaf, y, None, None, (FunctorCall(functor, options),))
        values.sum().backward()
        results.append((values.detach(), counts, leaf.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)  # two compilers may order a sum differently


@pytest.mark.parametrize("count", [96, 512, 3000])
def test_losses_share_a_launch(count: int) -> None:
    x, y = batch(count)
    ensemble = dmlcore.LossEnsemble(["ms", "sup_con", "circle", "triplet", "contrastive"], weights=[1.0, 0.5, 2.0, 1.0, 1.0])
    alone = value_and_gradient(ensemble, x, y)
    for one_launch in (1, 2):
        with plan_options(one_launch=one_launch), warnings.catch_warnings():
            warnings.simplefilter("error")
            torch.testing.assert_close(value_and_gradient(ensemble, x, y), alone, rtol=1e-4, atol=1e-6)


def test_streams_and_graphs(toy: Any) -> None:
    joined(toy, "toy_device")
    loss, (x, y) = toy(margin=0.1), batch()
    expected = value_and_gradient(loss, x, y)
    leaf, stream = x.clone().requires_grad_(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            result = value_and_gradient(loss, x, y)
            loss(leaf, y).backward()
            leaf.grad = None
    torch.cuda.current_stream().wait_stream(stream)
    torch.testing.assert_close(result, expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = loss(leaf, y)
        value.backward()
    for seed in range(2):
        torch.manual_seed(seed)
        other = torch.randn_like(x)
        with torch.no_grad():
            leaf.copy_(other)
        graph.replay()
        torch.testing.assert_close((value.detach(), leaf.grad), value_and_gradient(loss, other, y), rtol=1e-5, atol=1e-6)


def test_a_thread_without_a_context(toy: Any) -> None:
    """As that of a backward pass whose first kernel is one that the driver launches."""
    joined(toy, "toy_device")
    x, y = batch(64)
    results, errors = [], []

    def run(state: Any) -> None:
        try:
            results.append(state.backward(torch.ones(1, 64, device="cuda"))[0])
        except RuntimeError as error:
            errors.append(error)

    for in_thread in (True, False):
        state = fused.device_pass(Pass(x, y, None, None, (FunctorCall("toy_device", (0.1,)),), (True, True)))
        assert state is not None
        state.forward()
        torch.cuda.synchronize()
        thread = threading.Thread(target=run, args=(state,))
        if in_thread:
            thread.start()
            thread.join()
        else:
            run(state)
    assert not errors and torch.equal(*results)


def test_the_folder_is_used(toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dmlcore.kernels.jit import cubins

    monkeypatch.setenv("DML_CACHE", str(tmp_path))
    cuda = cuda_functors.driver()
    arch = cuda.capability(cuda.current())
    assert cubins.cubin_of(toy.functor_header(), arch).compiled and not cubins.cubin_of(toy.functor_header(), arch).compiled
