"""Numbers at the ends of floating point: values that are not finite, and norms from 1e-10 to 1e10."""

from __future__ import annotations

import pytest
import torch
from cases import CLASSES, LOSSES, WIDTH, Case

import dmlcore

REGULARISERS = ("sec", "l2_norm")  # they look at embeddings only, whatever references there are


@pytest.mark.parametrize("side", ["batch", "anchor", "reference"])
@pytest.mark.parametrize("case", LOSSES, ids=lambda case: case.id)
def test_a_row_that_is_not_finite_is_never_hidden(case: Case, side: str) -> None:
    """Comparisons and maxima make something finite of a NaN. The gradient would be NaN all the same."""
    loss, generator = case.create(torch.float32), torch.Generator().manual_seed(0)
    if side != "batch" and (not loss.takes_references or case.name in REGULARISERS):
        pytest.skip("it takes no references")
    labels, reference_labels = torch.arange(12) // 3 % CLASSES, torch.arange(14) % 4
    for bad in (torch.nan, torch.inf, -torch.inf):
        x = torch.randn(12, WIDTH, generator=generator)
        references = torch.randn(14, WIDTH, generator=generator)
        (references if side == "reference" else x)[4, 2] = bad
        against = {} if side == "batch" else {"references": references, "reference_labels": reference_labels}
        for value in (loss(x, labels, **against), loss.reference(x, labels, **against)):
            assert not torch.isfinite(value)


UNSCALED = ("sphereface", "cross_entropy", "n_pair", "sec", "l2_norm", "prototypical", "snr_contrastive", "contrastive", "ms")


@pytest.mark.parametrize("scale", [0.9, 1, 2.5, 10, 30, 64, 100])
@pytest.mark.parametrize("name", ["sphereface", "arcface", "cosface", "subcenter_arcface"])
def test_gradients_with_any_norm_and_scale(name: str, scale: float) -> None:
    _check_norms(name, {"scale": scale})


@pytest.mark.parametrize("name", UNSCALED)
def test_gradients_with_any_norm(name: str) -> None:
    _check_norms(name, {})


def _check_norms(name: str, options: dict[str, float]) -> None:
    """The error of the fused gradient in float32 is about what PyTorch errs in float32, against the definition in float64.

    With norms of 1e7 a logit has no fraction. A maximum that is rounded in one place and not in another is then off by e^0.5.
    """
    samples = torch.randn(24, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(24) // 4
    torch.manual_seed(0)
    loss = dmlcore.losses.create(name, num_classes=CLASSES, embedding_dim=WIDTH, **options)
    exact = dmlcore.losses.create(name, num_classes=CLASSES, embedding_dim=WIDTH, **options).double()
    exact.load_state_dict(loss.state_dict())
    for exponent in (-10, -6, -3, 0, 3, 5, 7, 10):
        x = (samples * 10.0**exponent).float()
        fused, plain, wide = x.clone().requires_grad_(), x.clone().requires_grad_(), x.double().requires_grad_()
        loss(fused, labels).backward()
        loss.reference(plain, labels).backward()
        exact.reference(wide, labels).backward()
        assert fused.grad is not None and plain.grad is not None and wide.grad is not None
        size = wide.grad.norm()
        allowed = 2 * (plain.grad - wide.grad).norm() + 2e-6 * size  # 2e-6: sums of exponentials in another order
        assert (fused.grad - wide.grad).norm() <= allowed, (exponent, (fused.grad - wide.grad).norm() / size)
