"""The second product where most slopes are zero: lists of those that are not give what the whole product gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from dmlcore.kernels import extension, plan_options
from dmlcore.losses import create

pytestmark = pytest.mark.skipif(extension.cpu() is None, reason="the CPU kernels are not built")

LEVELS = extension.cpu().levels() if extension.cpu() else []
# Anchors and references of one tile. A tile of 64 x 256 is large enough for lists. Halves of it are not, and take the product.
LISTED = {"tile_rows": 64, "tile_columns": 256, "stream": 0}  # with copies: the slopes of positives have products of their own
WHOLE_ROWS, WHOLE_COLUMNS = {**LISTED, "tile_columns": 128}, {**LISTED, "tile_rows": 32}


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    module = extension.cpu()
    level = module.level()
    yield
    module.use_level(level)
    extension.use_default_blas()


def batch(samples: int, width: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, width, generator=generator, dtype=torch.float64).to(dtype), torch.arange(samples) % 40


def margin_of(x: Tensor, y: Tensor, references: Tensor, others: Tensor, share: float) -> float:
    """The margin of `contrastive` within which this share of the negatives lies."""
    x, references = (torch.nn.functional.normalize(v.double()) for v in (x, references))
    distances = (2 - 2 * x @ references.T).clamp_min(0).sqrt()[y[:, None] != others]
    return max(float(distances.quantile(share)) if share else 0.5 * float(distances.min()), 1e-3)


def gradients(
    loss: Any, x: Tensor, y: Tensor, references: Tensor | None = None, others: Tensor | None = None, **options: int
) -> list[Tensor]:
    x = x.clone().requires_grad_()
    references = None if references is None else references.clone().requires_grad_()
    with plan_options(**options):
        loss(x, y, references=references, reference_labels=others).backward()
    return [leaf.grad for leaf in (x, references) if leaf is not None and leaf.grad is not None]


@pytest.mark.parametrize("width", [5, 37, 136])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("level", LEVELS)
def test_lists_and_our_product_give_the_same_bits(level: str, dtype: torch.dtype, width: int) -> None:
    extension.use_level(level)
    extension.use_blas("own")  # a vendor's product sums in an order of its own
    (x, y), (references, others) = batch(128, width, dtype), batch(768, width, dtype, seed=1)
    for share in (0.004, 0.08):
        loss = create("contrastive", neg_margin=margin_of(x, y, references, others, share))
        of_anchors, of_references = gradients(loss, x, y, references, others, **LISTED)
        assert of_anchors.abs().sum() > 0 and of_references.abs().sum() > 0
        # The gradient of an anchor is summed over columns, so tiles with fewer rows sum alike; for references the other way.
        assert torch.equal(of_anchors, gradients(loss, x, y, references, others, **WHOLE_COLUMNS)[0])
        assert torch.equal(of_references, gradients(loss, x, y, references, others, **WHOLE_ROWS)[1])


@pytest.mark.parametrize("name", ["contrastive", "triplet", "ms"])
@pytest.mark.parametrize("share", [0.0, 0.002, 0.03, 0.15, 0.25])
def test_a_batch_with_itself_agrees_with_the_definition(name: str, share: float) -> None:
    x, y = batch(520, 24, torch.float64)
    noise = torch.randn(520, 24, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x = x[y] + (0.1 + 2 * share) * noise  # classes apart, the more the fewer slopes
    options = {"contrastive": {"neg_margin": margin_of(x, y, x, y, share)}, "triplet": {"margin": 0.1}, "ms": {}}[name]
    loss = create(name, **options)
    value = x.clone().requires_grad_()
    loss.reference(value, y).backward()
    exact = value.grad
    assert exact is not None
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-4)):
        for threads in (1, 2):
            (gradient,) = gradients(loss, x.to(dtype), y, threads=threads, thread_work=1)
            assert (gradient.double() - exact).abs().max() <= tolerance * exact.abs().max()
            again = gradients(loss, x.to(dtype), y, threads=threads, thread_work=1)[0]
            assert torch.equal(gradient, again)


def test_one_side_alone_and_a_vector_that_is_not_finite() -> None:
    (x, y), (references, others) = batch(128, 16, torch.float32), batch(512, 16, torch.float32, seed=1)
    loss = create("contrastive", neg_margin=margin_of(x, y, references, others, 0.02))
    both = gradients(loss, x, y, references, others)
    leaf = x.clone().requires_grad_()
    loss(leaf, y, references=references, reference_labels=others).backward()
    assert leaf.grad is not None and torch.equal(leaf.grad, both[0])
    x[7, 3] = torch.inf  # as with the product, the gradient is not finite either
    assert not all(torch.isfinite(gradient).all() for gradient in gradients(loss, x, y, references, others))
