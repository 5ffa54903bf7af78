"""Sides whose vectors are not copied: against copies and the definition, by panels of any size."""

from __future__ import annotations

import pytest
import torch
from cases import assert_close

from dmlcore import LossEnsemble
from dmlcore.kernels import extension, plan_options
from dmlcore.losses import create

pytestmark = pytest.mark.skipif(extension.cpu() is None, reason="the CPU extension is not built")
WIDTH = 11
FAR = 2**62
"""Labels so far apart that no table of them would fit."""


def sides(anchors: int, references: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(anchors)
    x, r = (torch.randn(count, WIDTH, generator=generator, dtype=torch.float64) for count in (anchors, references))
    y, ry = (torch.randint(0, 9, (count,), generator=generator) for count in (anchors, references))
    return x.to(dtype), y - 3, r.to(dtype), ry  # some classes are on one side only


def value_and_gradients(compute, x: torch.Tensor, y: torch.Tensor, r: torch.Tensor, ry: torch.Tensor):
    leaf, other = x.clone().requires_grad_(), r.clone().requires_grad_()
    value = compute(leaf, y, references=other, reference_labels=ry)
    return value.detach(), list(torch.autograd.grad(value, [leaf, other]))


@pytest.mark.parametrize("name", ["ms", "sup_con", "triplet", "smooth_ap", "contrastive", "histogram"])
@pytest.mark.parametrize("shape", [(23, 90), (90, 23), (1, 40), (40, 1)])
@pytest.mark.parametrize("threads", [1, 2])
def test_panels_equal_copies_and_the_definition(name: str, shape: tuple[int, int], threads: int) -> None:
    loss, batch = create(name), sides(*shape)
    expected = value_and_gradients(loss.reference, *batch)
    small = {"tile_rows": 24 if threads == 1 else 16, "tile_columns": 32, "workspace": 0}
    plans = ({}, {"tile_columns": 16}, small, {"stream": 0})
    for options in plans:
        with plan_options(threads=threads, thread_work=1, **options):
            assert_close(value_and_gradients(loss, *batch), expected, 1e-9)


@pytest.mark.parametrize("scale", [1, -FAR // 9])
def test_labels_far_apart_and_none_in_common(scale: int) -> None:
    loss, (x, y, r, ry) = create("ms"), sides(23, 90)
    for labels in (y * scale, y * scale + 1):
        expected = value_and_gradients(loss.reference, x, labels, r, ry * scale)
        assert_close(value_and_gradients(loss, x, labels, r, ry * scale), expected, 1e-9)


def test_several_losses_share_panels() -> None:
    members = ["ms", "contrastive", "triplet", "nt_xent"]
    batch = sides(23, 300)
    ensemble = LossEnsemble([create(name) for name in members])
    results = [value_and_gradients(ensemble, *batch)]
    with plan_options(stream=0):
        results.append(value_and_gradients(ensemble, *batch))
    assert_close(results[0], results[1], 1e-11)


@pytest.mark.parametrize("shape", [(23, 90), (90, 23)])
@pytest.mark.parametrize("of_references", [False, True])
def test_what_is_not_finite(shape: tuple[int, int], of_references: bool) -> None:
    x, y, r, ry = sides(*shape)
    (r if of_references else x)[5, 2] = torch.inf
    loss = create("ms", reduction="none")
    with plan_options(stream=0):
        expected = loss(x, y, references=r, reference_labels=ry)
    torch.testing.assert_close(loss(x, y, references=r, reference_labels=ry), expected, equal_nan=True)
    assert expected.isnan().sum() == (len(x) if of_references else 1)


def test_only_one_side_takes_a_gradient() -> None:
    for shape in ((23, 90), (90, 23)):
        x, y, r, ry = sides(*shape)
        loss = create("ms")
        for side in (0, 1):
            vectors = [x, r]
            leaf = vectors[side] = vectors[side].clone().requires_grad_()
            loss(vectors[0], y, references=vectors[1], reference_labels=ry).backward()
            expected = value_and_gradients(loss.reference, x, y, r, ry)[1][side]
            torch.testing.assert_close(leaf.grad, expected)


def test_the_bits_are_the_same_every_time() -> None:
    batch = sides(23, 900, torch.float32)
    for threads in (1, 2):
        with plan_options(threads=threads, thread_work=1):
            runs = [value_and_gradients(create("sup_con"), *batch) for _ in range(2)]
        assert torch.equal(runs[0][0], runs[1][0])
        assert all(torch.equal(a, b) for a, b in zip(runs[0][1], runs[1][1], strict=True))
