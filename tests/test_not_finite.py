"""Embeddings that are no finite numbers: no path makes a finite value of them."""

from __future__ import annotations

import pytest
import torch
from cases import CLASSES, LOSSES, WIDTH, Case

import dmlcore
from dmlcore.errors import ConfigError

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


@pytest.mark.parametrize("name", ["ms", "histogram", "proxy_anchor", "cross_entropy"])
def test_tensors_that_are_no_plain_numbers(name: str) -> None:
    loss = dmlcore.losses.create(name, num_classes=4, embedding_dim=3)
    x, labels = torch.randn(8, 3), torch.arange(8) // 2
    nested = torch.nested.nested_tensor([torch.randn(2, 3), torch.randn(6, 3)])
    for vectors, told in (
        (x.to("meta"), "on the device meta"),
        (x.to_sparse(), "dense tensors, got a torch.sparse_coo one"),
        (nested, "dense tensors, got a nested one"),
    ):
        for use in (loss, dmlcore.LossEnsemble([loss, "circle"])):
            with pytest.raises(ConfigError, match=told):
                use(vectors, labels.to(vectors.device))
    if loss.needs_classes:
        with pytest.raises(ConfigError, match="proxies on meta, but embeddings are on cpu"):
            loss.to("meta")(x, labels)
