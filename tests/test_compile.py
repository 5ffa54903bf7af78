"""The custom operator of the compiled path: its registration; torch.compile without graph breaks, with equal gradients."""

from __future__ import annotations

import pytest
import torch
from cases import BATCHES, FUSED

from dmlcore import LossEnsemble
from dmlcore.kernels import extension

pytestmark = pytest.mark.skipif(extension.cpu() is None, reason="the CPU extension is not built")
SOME = [case for case in FUSED if not case.options or case.options.get("mining")]


@pytest.mark.parametrize("references", [False, True])
def test_operator_is_registered_well(references: bool) -> None:
    x, y = BATCHES["odd"]
    other, ids = (x[:9].clone().requires_grad_(), y[:9]) if references else (None, None)
    options = [2.0, 50.0, 0.5, 0.1, 0.0, 1.0]
    arguments = (x.clone().requires_grad_(), other, y, ids, "ms,contrastive", options, [], None, None, None, 3, 0, True, True)
    torch.library.opcheck(torch.ops.dmlcore.fused_rows.default, arguments)


@pytest.mark.parametrize("case", SOME, ids=lambda case: case.id)
def test_compiled_equals_eager(case) -> None:
    torch.compiler.reset()
    loss, (x, y) = case.create(torch.float32), BATCHES["odd"]
    found = []
    whole = case.name != "angular"  # how many pairs there are, only the labels tell: its graph breaks
    for compute in (loss, torch.compile(lambda a, b: loss(a, b), fullgraph=whole, backend="aot_eager")):
        leaf = x.float().requires_grad_()
        value = compute(leaf, y)
        found.append([value.detach(), *torch.autograd.grad(value, [leaf, *loss.parameters()])])
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-6, atol=1e-7)


def test_an_ensemble_compiles_whole_with_inductor() -> None:
    torch.compiler.reset()
    x, y = BATCHES["odd"]
    ensemble = LossEnsemble(["ms", "triplet", "proxy_anchor"], weighting="uncertainty", num_classes=7, embedding_dim=11)
    found = []
    for compute in (ensemble, torch.compile(lambda a, b: ensemble(a, b), fullgraph=True)):
        leaf = x.float().requires_grad_()
        value = compute(leaf, y)
        found.append([value.detach(), *torch.autograd.grad(value, [leaf, *ensemble.parameters()])])
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-6)
