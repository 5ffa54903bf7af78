"""What holds for every batch, searched by hypothesis over distributions of class sizes, dimensions, plans and members of an
ensemble. In float64; batches in which a decision (a hinge, a mined pair, a nearest point) hangs on the last bit are not drawn:
points are drawn again until all similarities of an anchor are apart, and a batch counts only if the definition's own gradient
does not jump nearby. No tolerance is widened for them."""

from __future__ import annotations

import copy
import os
from typing import Any

import pytest
import torch
from cases import FUSED, LOSSES, Case, assert_close, embeddings_of, hold_draws, value_and_gradients
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

import dmlcore
from dmlcore.kernels import plan_options
from dmlcore.losses import RowLoss, unit

TOLERANCE = 1e-8  # float64 sums of some hundred terms in another order, through exponents of up to some hundreds
APART = 1e-8  # least distance of two similarities of an anchor
OFF_ENDS = 1e-6  # and of a similarity from 1 and -1, where distances and angles have no digits left
NEARBY = 1e-9  # relative size of the step within which the definition must not jump

DRAWN = ("intra_class", "class_shared")  # losses that draw by `pair_draws`

CHECKS = [HealthCheck.filter_too_much, HealthCheck.too_slow]
SEARCH = int(os.environ.get("DML_EXAMPLES", "0"))  # a longer search, of other batches every time


def counted(examples: int) -> settings:
    """So many batches, the same every time, unless DML_EXAMPLES asks for a search."""
    return settings(
        max_examples=SEARCH or examples, derandomize=not SEARCH, database=None, deadline=None, suppress_health_check=CHECKS
    )


sizes = st.one_of(
    st.lists(st.integers(1, 12), min_size=1, max_size=9),
    st.integers(2, 40).map(lambda count: [1] * count),  # singletons: no positives at all
    st.tuples(st.integers(20, 60), st.integers(1, 8)).map(lambda pair: [pair[0]] + [1] * pair[1]),  # one large class
    st.integers(1, 6).map(lambda most: [2**k for k in range(most)]),
    st.tuples(st.integers(1, 5), st.integers(2, 12)).map(lambda pair: [pair[0]] * pair[1]),  # balanced, as samplers make them
    st.sampled_from([[1], [2], [1, 1], [1, 2], [33], [17, 17], [16, 16, 1]]),  # around the width of registers
)
widths = st.sampled_from([2, 3, 8, 11, 16, 33])
plans = st.fixed_dictionaries(
    {},
    optional={
        "threads": st.integers(1, 3),
        "workspace": st.sampled_from([0, 2000]),
        "tile_rows": st.integers(1, 70),
        "tile_columns": st.integers(1, 90),
        "slot_bytes": st.sampled_from([1, 4000]),
        "triangle": st.just(0),
    },
)
seeds = st.integers(0, 10**6)


def members(cases: list[Case], most: int = 5) -> Any:
    return st.lists(st.sampled_from(cases), min_size=1, max_size=most, unique_by=lambda case: case.id)


def drawn(class_sizes: list[int], width: int, seed: int, reference_count: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Points, labels in random order, and as many references as `others`; the similarities of a point are apart from each other
    and from the ends."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(len(class_sizes)), torch.tensor(class_sizes))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    other_labels = torch.randint(len(class_sizes) + 1, (reference_count,), generator=generator)  # one class nobody has
    for attempt in range(seed, seed + 1000):
        x = embeddings_of(torch.cat([labels, other_labels]), width, seed=attempt)
        s = (unit(x) @ unit(x).T).sort(1).values  # [B + N, B + N], the last column a point with itself
        if s.shape[1] < 2 or (s.diff(dim=1).min() > APART and s[:, :-1].abs().max() < 1 - OFF_ENDS):
            return x[: len(labels)], labels, x[len(labels) :], other_labels
    raise AssertionError("no batch with similarities apart in 1000 draws")


def is_settled(loss: Any, x: Tensor, y: Tensor, **keywords: Any) -> bool:
    """Whether the definition's gradient is the same up to `NEARBY` beside x: no decision hangs on less than that."""
    loss = copy.deepcopy(loss)
    hold_draws(loss)
    _, (gradient, *_) = value_and_gradients(loss, x, y, loss.reference, **keywords)
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        step = NEARBY * x * torch.randn(x.shape, generator=generator, dtype=x.dtype)
        _, (beside, *_) = value_and_gradients(loss, x + step, y, loss.reference, **keywords)
        if (beside - gradient).abs().max() > 1e4 * NEARBY * (1e-3 + gradient.abs().max()):
            return False
    return True


def rough_directions(x: Tensor) -> Tensor:
    """What the draws of `DRAWN` take of samples: samples of one direction have the same numbers."""
    return (unit(x) * x.shape[1] ** 0.5).round()


def created(cases: list[Case], class_sizes: list[int], width: int) -> list[Any]:
    return [case.create(classes=len(class_sizes) + 1, width=width, seed=k) for k, case in enumerate(cases)]


def weights_of(count: int) -> list[float]:
    return [0.5 + 1.5 * k for k in range(count)]


@counted(150)
@given(cases=members(FUSED), class_sizes=sizes, width=widths, seed=seeds, plan=plans)
@example(cases=list(FUSED[:6]), class_sizes=[64, 2, 1], width=11, seed=0, plan={"threads": 2, "workspace": 0})
def test_an_ensemble_is_the_sum_of_its_members_definitions(
    cases: list[Case], class_sizes: list[int], width: int, seed: int, plan: dict[str, int]
) -> None:
    x, y, _, _ = drawn(class_sizes, width, seed)
    losses = created(cases, class_sizes, width)
    assume(all(is_settled(loss, x, y) for loss in losses))
    weights = weights_of(len(losses))
    ensemble = dmlcore.LossEnsemble(losses, weights=weights)

    def definition(embeddings: Tensor, labels: Tensor) -> Tensor:
        return torch.stack([w * loss.reference(embeddings, labels) for w, loss in zip(weights, losses, strict=True)]).sum()

    with plan_options(**plan):
        result = value_and_gradients(ensemble, x, y, ensemble)
    assert_close(result, value_and_gradients(ensemble, x, y, definition), TOLERANCE)
    terms = torch.stack([loss.reference(x, y) for loss in losses]).detach()
    torch.testing.assert_close(torch.stack(list(ensemble.terms.values())), terms, rtol=TOLERANCE, atol=TOLERANCE)


@counted(80)
@given(
    cases=members([case for case in FUSED if not case.create().needs_classes], 3),
    class_sizes=sizes,
    width=widths,
    seed=seeds,
    plan=plans,
    reference_count=st.integers(1, 50),
)
def test_against_references(
    cases: list[Case], class_sizes: list[int], width: int, seed: int, plan: dict[str, int], reference_count: int
) -> None:
    x, y, references, reference_labels = drawn(class_sizes, width, seed, reference_count)
    losses = created(cases, class_sizes, width)
    keywords = {"references": references, "reference_labels": reference_labels}
    assume(all(is_settled(loss, x, y, **keywords) for loss in losses))
    ensemble = dmlcore.LossEnsemble(losses, weights=weights_of(len(losses)))
    results = []
    for plain in (False, True):
        leaves = [x.clone().requires_grad_(), references.clone().requires_grad_()]
        keywords = {"references": leaves[1], "reference_labels": reference_labels}
        if plain:
            terms = [
                w * loss.reference(leaves[0], y, **keywords) for w, loss in zip(weights_of(len(losses)), losses, strict=True)
            ]
            value = torch.stack(terms).sum()
        else:
            with plan_options(**plan):
                value = ensemble(leaves[0], y, **keywords)
                value.backward()
        if plain and value.requires_grad:
            value.backward()
        results.append((value.detach(), [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]))
    assert_close(*results, TOLERANCE)


@counted(100)
@given(cases=members(LOSSES, 3), class_sizes=sizes, width=widths, seed=seeds)
def test_directions_and_order(cases: list[Case], class_sizes: list[int], width: int, seed: int) -> None:
    x, y, _, _ = drawn(class_sizes, width, seed)
    losses = created(cases, class_sizes, width)
    assume(all(is_settled(loss, x, y) for loss in losses))
    ensemble = dmlcore.LossEnsemble(losses, weights=weights_of(len(losses)))
    value, (gradient, *gradients) = value_and_gradients(ensemble, x, y, ensemble)

    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    shuffled, (shuffled_gradient, *shuffled_gradients) = value_and_gradients(ensemble, x[order], y[order], ensemble)
    assert_close((shuffled, [shuffled_gradient, *shuffled_gradients]), (value, [gradient[order], *gradients]), TOLERANCE)

    if all(case.scale_free for case in cases):
        radial = (gradient * unit(x)).sum(1).abs()
        assert bool((radial <= TOLERANCE * gradient.abs().amax(1) + 1e-13).all()), "the gradient has a part along the embedding"
        factors = torch.logspace(-2, 2, len(x), dtype=x.dtype)[:, None]
        scaled, (scaled_gradient, *_) = value_and_gradients(ensemble, factors * x, y, ensemble)
        assert_close((scaled, [factors * scaled_gradient]), (value, [gradient]), TOLERANCE)


@counted(60)
@given(
    case=st.sampled_from([case for case in LOSSES if not case.create().needs_classes]),
    class_sizes=sizes,
    width=widths,
    seed=seeds,
    plan=plans,
)
def test_a_batch_is_its_own_reference(case: Case, class_sizes: list[int], width: int, seed: int, plan: dict[str, int]) -> None:
    x, y, _, _ = drawn(class_sizes, width, seed)
    (loss,) = created([case], class_sizes, width)
    assume(isinstance(loss, RowLoss) and is_settled(loss, x, y))
    assume(case.name not in DRAWN or len(rough_directions(x).unique(dim=0)) == len(x))  # else the first of them is drawn
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    own = torch.empty_like(order)
    own[order] = torch.arange(len(y))  # where each sample lies among the references

    def against_itself(embeddings: Tensor, labels: Tensor) -> Tensor:
        with plan_options(**plan):
            return loss(embeddings, labels, references=embeddings[order], reference_labels=labels[order], own=own)

    assert_close(value_and_gradients(loss, x, y, against_itself), value_and_gradients(loss, x, y, loss), TOLERANCE)


@pytest.mark.parametrize("case", LOSSES, ids=lambda case: case.id)
def test_ordinary_batches_are_not_set_aside(case: Case) -> None:
    class_sizes = [3, 5, 1, 2, 8]
    batches = [drawn(class_sizes, 11, seed)[:2] for seed in range(6)]
    assert sum(is_settled(case.create(classes=6), x, y) for x, y in batches) >= 5
