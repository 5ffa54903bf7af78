"""The custom operator of the compiled path: its registration; torch.compile without graph breaks, with equal gradients."""

from __future__ import annotations

import pytest
import torch
from cases import BATCHES, FUSED

from dmlcore import LossEnsemble
from dmlcore.kernels import FunctorCall, Pass, extension
from dmlcore.kernels.encoding import encoded

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
    torch.library.opcheck(torch.ops.dmlcore.fused_rows.default, (sources, *encoded(passes, targets), 2))


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
def test_an_ensemble_compiles_whole_with_inductor() -> None:
    torch.compiler.reset()
    x, y = BATCHES["odd"]
    ensemble = LossEnsemble(["ms", "triplet", "proxy_anchor"], weighting="uncertainty", num_classes=7, embedding_dim=11)
    results = []
    for compute in (ensemble, torch.compile(lambda a, b: ensemble(a, b), fullgraph=True)):
        leaf = x.float().requires_grad_()
        value = compute(leaf, y)
        results.append([value.detach(), *torch.autograd.grad(value, [leaf, *ensemble.parameters()])])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-6)
