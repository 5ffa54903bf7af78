"""The custom operator of the compiled path: its registration; torch.compile without graph breaks, with equal gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import BATCHES, CLASSES, FUSED, LOSSES, WIDTH, Case

import dmlcore
from dmlcore import LossEnsemble
from dmlcore.kernels import FunctorCall, Pass, extension
from dmlcore.kernels.encoding import encoded
from dmlcore.plugins import defaults

pytestmark = pytest.mark.skipif(extension.cpu() is None, reason="the CPU extension is not built")
SOME = [case for case in FUSED if not case.options or case.options.get("mining")]


@pytest.mark.parametrize("references", [False, True])
@pytest.mark.parametrize("heads", [False, True])
def test_operator_is_registered_well(references: bool, heads: bool) -> None:
    x, y = (tensor.clone() for tensor in BATCHES["odd"])
    other = x[:9].clone()
    calls = (FunctorCall("ms", (2.0, 50.0, 0.5, 0.1)), FunctorCall("contrastive", (0.0, 1.0)))
    against = (other, y[:9]) if references else (None, None)
    pass_ = Pass(x, y, *against, calls, owners=(0, 1, -1))
    passes, targets = [pass_], [((0, 0), (1, 0) if references else (-1, 0))]
    if heads:
        first = pass_._replace(anchors=x[:, :4], references=other[:, :4] if references else None, anchors_in=(x, 0))
        table = FunctorCall("histogram", (5.0,), cells=10)
        passes = [first, Pass(x[:, 4:], y, None, None, (table, calls[0]), anchors_in=(x, 4), owners=(1,))]
        targets.append(((0, 4), (-1, 0)))
    sources = [x.requires_grad_(), *([other.requires_grad_()] if references else [])]
    arguments = (sources, *encoded(passes, targets))
    torch.library.opcheck(torch.ops.dmlcore.fused_rows.default, (*arguments, 2))
    _, values, _, histograms = (tensor.detach() for tensor in torch.ops.dmlcore.fused_rows(*arguments, 2))
    rates = (torch.tensor([1.0, 0.5], dtype=x.dtype), torch.ones_like(values), torch.ones_like(histograms))
    with torch.no_grad():  # it has no derivative of its own, which autograd would be registered for
        torch.library.opcheck(torch.ops.dmlcore.fused_rows_backward.default, (*rates, *arguments))


@pytest.mark.parametrize("case", SOME, ids=lambda case: case.id)
def test_compiled_equals_eager(case) -> None:
    torch.compiler.reset()
    loss, (x, y) = case.create(torch.float32), BATCHES["odd"]
    results = []
    whole = case.name != "angular"  # how many pairs there are, only the labels tell: its graph breaks
    for compute in (loss, torch.compile(lambda a, b: loss(a, b), fullgraph=whole, backend="aot_eager")):
        leaf = x.float().requires_grad_()
        value = compute(leaf, y)
        results.append([value.detach(), *torch.autograd.grad(value, [leaf, *loss.parameters()])])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_a_step_compiles_whole_with_inductor() -> None:
    """A model and an ensemble, the default's losses among its members."""
    torch.compiler.reset()
    x, y = BATCHES["odd"]
    names = [*defaults().LOSSES, "ms", "triplet", "proxy_anchor"]
    ensemble = LossEnsemble(names, weighting="uncertainty", num_classes=7, embedding_dim=11)
    model = torch.nn.Linear(WIDTH, 11)
    results = []
    for compute in (lambda a, b: ensemble(model(a), b), torch.compile(lambda a, b: ensemble(model(a), b), fullgraph=True)):
        leaf = x.float().requires_grad_()
        value = compute(leaf, y)
        results.append([value.detach(), *torch.autograd.grad(value, [leaf, *model.parameters(), *ensemble.parameters()])])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-6)


DATA_DEPENDENT = ("angular", "prototypical")
"""Their work depends on how many pairs or classes a batch has, which no graph for all batches knows."""


@pytest.mark.parametrize("case", LOSSES, ids=lambda case: case.id)
def test_one_graph_serves_every_batch_size(case: Case) -> None:
    if case.name in DATA_DEPENDENT or case.options.get("swap"):
        pytest.skip("its graph depends on the labels")
    if case.name == "ranked_list":
        pytest.skip("torch fails on its own guards of the options' floats")
    torch._dynamo.reset()
    graphs: list[Any] = []

    def keep(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    loss = case.create(torch.float32).eval()  # in training `sec` moves a mean at every call
    draws = "sampling" in case.options
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=keep)
    for size in range(8, 30, 2):  # more sizes than torch compiles anew
        x = torch.randn(size, WIDTH, generator=torch.Generator().manual_seed(size)).requires_grad_()
        labels = torch.arange(size) // 2 % CLASSES
        value = compiled(x, labels)
        assert draws or torch.allclose(value, loss(x, labels), rtol=1e-5, atol=1e-6)
        value.backward()
    assert len(graphs) == 1


@pytest.mark.parametrize("name", ["proxy_anchor", "norm_softmax", "soft_triple"])
def test_labels_without_a_proxy_in_compiled_code(name: str) -> None:
    torch._dynamo.reset()
    loss = dmlcore.losses.create(name, num_classes=4, embedding_dim=6)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    x, labels = torch.randn(8, 6), torch.arange(8) // 2
    assert torch.allclose(compiled(x, labels), loss(x, labels))
    for wrong in (4, -1):
        with pytest.raises(RuntimeError, match=f"{name} has proxies for labels 0..3, got others"):
            compiled(x, torch.cat([labels[:-1], torch.tensor([wrong])]))
