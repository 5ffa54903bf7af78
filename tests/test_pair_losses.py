"""Pair losses where pytorch-metric-learning has no counterpart or differs: nested loops, sampling, extreme options."""

from __future__ import annotations

import math

import pytest
import torch
from cases import BATCHES, Case, assert_close, embeddings_of, value_and_gradients
from dmlcore_plugins.losses.intra_pair_variance import mean_similarities
from dmlcore_plugins.losses.margin import drawn_columns
from torch import Tensor

import dmlcore
from dmlcore.errors import ConfigError
from dmlcore.kernels import plan_options, recorded_passes
from dmlcore.losses import Comparison, create

X, Y = BATCHES["odd"]
LABELS = Y.tolist()


def cosines(a: Tensor, b: Tensor) -> list[list[float]]:
    return (torch.nn.functional.normalize(a) @ torch.nn.functional.normalize(b).T).tolist()


def pairs(labels: list[int]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    every = [(a, b) for a in range(len(labels)) for b in range(len(labels)) if a != b]
    return [(a, b) for a, b in every if labels[a] == labels[b]], [(a, b) for a, b in every if labels[a] != labels[b]]


def test_binomial_deviance_by_nested_loops() -> None:
    s, (positives, negatives) = cosines(X, X), pairs(LABELS)
    pull = [math.log1p(math.exp(-3 * (s[a][b] - 0.2))) for a, b in positives]
    push = [math.log1p(math.exp(3 * 7 * (s[a][b] - 0.2))) for a, b in negatives]
    expected = sum(pull) / len(pull) + sum(push) / len(push)
    loss = create("binomial_deviance", alpha=3.0, beta=0.2, negative_cost=7.0)
    assert loss.reference(X, Y).item() == pytest.approx(expected, rel=1e-12)


def test_binomial_deviance_of_the_ensemble_of_losses_by_nested_loops() -> None:
    s, total = cosines(X, X), 0.0
    for a in range(len(LABELS)):
        pull = [math.log1p(math.exp(-2 * (s[a][b] - 0.5))) for b in range(len(LABELS)) if b != a and LABELS[a] == LABELS[b]]
        push = [math.log1p(math.exp(25 * (s[a][b] - 0.5))) for b in range(len(LABELS)) if LABELS[a] != LABELS[b]]
        total += sum(pull) / max(len(pull), 1) + sum(push) / len(push)
    loss = create("binomial_deviance", variant="wedl")
    assert loss.reference(X, Y).item() == pytest.approx(total / len(LABELS), rel=1e-12)


def test_n_pair_by_nested_loops() -> None:
    s, values = (X @ X.T).tolist(), []
    for a, p in pairs(LABELS)[0]:
        values.append(math.log1p(sum(math.exp(s[a][n] - s[a][p]) for n in range(len(LABELS)) if LABELS[n] != LABELS[a])))
    assert create("n_pair").reference(X, Y).item() == pytest.approx(sum(values) / len(values), rel=1e-9)


def test_n_pair_against_the_positives_is_the_papers() -> None:
    pytest.importorskip("pytorch_metric_learning", reason="the test extra is not installed")
    from pytorch_metric_learning.distances import DotProductSimilarity
    from pytorch_metric_learning.losses import NPairsLoss

    classes = torch.arange(9)
    anchors, positives = embeddings_of(classes, seed=1).requires_grad_(), embeddings_of(classes, seed=2).requires_grad_()
    both = torch.stack([anchors, positives], 1).flatten(0, 1)  # a pair per class, the anchor first: what the peer looks for
    expected = NPairsLoss(distance=DotProductSimilarity(normalize_embeddings=False))(both, classes.repeat_interleave(2))
    gradients = torch.autograd.grad(expected, [anchors, positives])
    for compute in (create("n_pair"), create("n_pair").reference):
        value = compute(anchors, classes, references=positives, reference_labels=classes)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(torch.autograd.grad(value, [anchors, positives]), gradients)


def test_lifted_structure_with_references_by_nested_loops() -> None:
    labels = [0, 3, 3, 1, 2, 2, 5, 0, 9]
    references = embeddings_of(torch.tensor(labels), seed=8)
    d = [[math.sqrt(2 - 2 * s) for s in row] for row in cosines(X, references)]
    among = [[math.sqrt(max(2 - 2 * s, 0)) for s in row] for row in cosines(references, references)]
    values = []
    for a in range(len(LABELS)):
        for p in range(len(labels)):
            if labels[p] != LABELS[a]:
                continue
            pushes = [1.2 - x[n] for x in (d[a], among[p]) for n in range(len(labels)) if labels[n] != labels[p]]
            values.append(max(math.log(sum(map(math.exp, pushes))) + d[a][p] - 0.1, 0) ** 2 / 2)
    loss = create("lifted_structure", neg_margin=1.2, pos_margin=0.1)
    for compute in (loss, loss.reference):
        value = compute(X, Y, references=references, reference_labels=torch.tensor(labels))
        assert value.item() == pytest.approx(sum(values) / len(values), rel=1e-9)


def test_lifted_structure_with_asymmetric_weights() -> None:
    loss = create("lifted_structure")
    weights, gradients = torch.linspace(0.1, 2, len(Y), dtype=torch.float64), []
    for plain in (False, True):  # a pair's two directions have different cotangents
        leaf = X.clone().requires_grad_()
        (loss.rows(leaf, Y, plain=plain).values * weights).sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("per_class", [False, True])
def test_gradient_of_the_boundary(per_class: bool) -> None:
    """A hinge moves with beta by one: the gradient is the number of active negatives less that of active positives."""
    loss = create("margin", learn_beta=True, nu=0.0, per_class=per_class, num_classes=7, margin=0.15).double()
    with torch.no_grad():
        loss.beta += torch.linspace(-0.2, 0.1, len(loss.beta))
    assert loss.is_fused and loss.parameter_roles()["scalars"] == [loss.beta]
    s, label_beta = cosines(X, X), loss.beta.tolist()
    expected, active = [0] * len(loss.beta), 0
    for a, p in pairs(LABELS)[0]:
        at = LABELS[a] if per_class else 0
        for n in range(len(LABELS)):
            if LABELS[n] == LABELS[a]:
                continue
            too_far = math.sqrt(2 - 2 * s[a][p]) - label_beta[at] + 0.15 > 0
            too_near = label_beta[at] - math.sqrt(2 - 2 * s[a][n]) + 0.15 > 0
            expected[at] += too_near - too_far
            active += too_near + too_far
    gradient = torch.autograd.grad(loss(X, Y), loss.beta)[0]
    torch.testing.assert_close(gradient, torch.tensor(expected, dtype=torch.float64) / active)


def test_boundary_is_regularised_where_no_triplet_is_active() -> None:
    x = torch.eye(4, dtype=torch.float64).repeat_interleave(2, 0).requires_grad_()
    loss = create("margin", learn_beta=True, nu=0.5, margin=0.0, beta=1.0).double()
    value = loss(x, torch.arange(4).repeat_interleave(2))
    assert value.item() == 0.5
    gradients = torch.autograd.grad(value, [x, loss.beta])
    assert gradients[0].abs().max() == 0 and gradients[1].item() == 0.5


def test_boundary_is_saved_even_if_it_is_not_learnt() -> None:
    loss = create("margin", beta=0.7)
    assert not list(loss.parameters()) and loss.state_dict()["beta"].tolist() == pytest.approx([0.7])


def test_boundary_per_class_needs_the_classes() -> None:
    with pytest.raises(ConfigError, match="needs num_classes >= 1, got None"):
        create("margin", per_class=True)
    with pytest.raises(ConfigError, match=r"labels 0\.\.6, got labels 1\.\.7"):
        create("margin", per_class=True, num_classes=7)(X, Y + 1)


SAMPLED = {"sampling": "distance_weighted", "margin": 0.3}


def test_columns_are_drawn_by_their_weights() -> None:
    weights = torch.tensor([[0.0, 1.0, 0.0, 3.0, 4.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0, 5.0]], dtype=torch.float64)
    draws = ((torch.arange(8000, dtype=torch.float64) + 0.5) / 8000).expand(2, -1)
    shares = [torch.bincount(row, minlength=6) / 8000 for row in drawn_columns(weights, draws)]
    torch.testing.assert_close(shares[0].double(), weights[0] / 8, rtol=0, atol=1e-3)
    assert shares[1][5] == 1
    ends = torch.tensor([[0.0, 1 - 2**-53], [0.0, 1 - 2**-53]], dtype=torch.float64)
    assert drawn_columns(weights, ends).tolist() == [[1, 4], [5, 5]]


def test_sampling_inverts_the_density_of_distances() -> None:
    """Uniform points lie at the distances that the density says; with its inverse as weights every distance is as likely."""
    width, count = 8, 100_000
    points = torch.nn.functional.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(0)))
    d = torch.sqrt(2 - 2 * points[:, 0].double())[None]
    loss = create("margin", sampling="distance_weighted", cutoff=0.5, nonzero_loss_cutoff=1.4)
    weights = loss.weights(d, torch.ones_like(d, dtype=torch.bool), width)[0]
    assert weights[d[0] > 1.4].max() == 0
    parts = torch.stack([weights[(d[0] > low) & (d[0] <= low + 0.1)].sum() for low in (0.8, 0.9, 1.0, 1.1, 1.2, 1.3)])
    torch.testing.assert_close(parts / parts.mean(), torch.ones_like(parts), rtol=0, atol=0.1)
    flat = loss.weights(torch.tensor([[0.1, 0.3, 0.5]]), torch.ones(1, 3, dtype=torch.bool), width)
    assert flat.unique().numel() == 1  # below the cutoff all are as likely


def test_random_numbers_of_pairs_are_uniform_and_repeatable() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(100, 6, generator=generator))
    index = torch.arange(100).expand(100, -1)
    loss, other = create("margin", **SAMPLED), create("margin", seed=1, **SAMPLED)
    draws = loss.draws(x, x, index)
    assert draws.min() >= 0 and draws.max() < 1
    counts = torch.histc(draws, 20, 0, 1)
    assert ((counts - 500).square() / 500).sum() < 45  # chi-square of 19 degrees of freedom: 1 in 1000
    for second in (draws.T, other.draws(x, x, index), loss.draws(x + 1e-6, x, index)):  # directions, seeds and steps apart
        assert abs(torch.corrcoef(torch.stack([draws.flatten(), second.flatten()]))[0, 1]) < 0.15
    assert torch.equal(draws, create("margin", **SAMPLED).draws(x, x, index))


def test_one_negative_is_drawn_per_pair() -> None:
    loss = create("margin", learn_beta=True, **SAMPLED).double()
    value = loss(X, Y)
    d = torch.sqrt((2 - 2 * torch.tensor(cosines(X, X), dtype=torch.float64)).clamp_min(0))
    rows = create("margin", sampling="distance_weighted", margin=2.0, beta=2.0).double().rows(X, Y)
    positive, negative = Comparison(X, Y).masks()
    assert rows.counts[0].tolist() == (2 * positive.sum(1)).tolist()  # margins so wide that every hinge is active
    drawn = 4 * positive.sum(1) - rows.values[1]  # the sum of the drawn distances
    least = torch.where(negative, d, 9.0).amin(1) * positive.sum(1)
    assert bool((drawn >= least - 1e-9).all()) and bool((drawn <= 1.4 * positive.sum(1) + 1e-9)[least < 1.4].all())
    assert value != create("margin", learn_beta=True, seed=5, **SAMPLED).double()(X, Y)
    assert torch.equal(value, loss.reference(X, Y)) and "sampling" in loss.why_not_fused
    order = torch.randperm(len(Y), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(loss(X[order], Y[order]), value)
    assert torch.autograd.grad(value, loss.beta)[0].abs() > 0


@pytest.mark.parametrize("references", [False, True])
def test_means_of_pairs_from_sums_per_class(references: bool) -> None:
    if references:
        vectors, labels = torch.cat([embeddings_of(Y[:6], seed=4), X]), torch.cat([Y[:6] + 1, Y])
        own = torch.arange(len(Y)) + 6
        own[::3] = -1
        own[1] = 2  # of another class
        comparison = Comparison(X, Y, vectors, labels, own)
    else:
        vectors, comparison = X, Comparison(X, Y)
    s = torch.tensor(cosines(X, vectors), dtype=torch.float64)
    for mean, mask in zip(mean_similarities(comparison), comparison.masks(), strict=True):
        torch.testing.assert_close(mean, s[mask].mean())


@pytest.mark.parametrize("threads", [1, 2])
def test_intra_pair_variance_of_a_batch(threads: int) -> None:
    loss = create("intra_pair_variance", pos_eps=0.3, neg_eps=0.2)
    together = dmlcore.LossEnsemble([create("ms"), create("intra_pair_variance", pos_eps=0.3, neg_eps=0.2)], weights=[0.0, 1.0])
    expected = value_and_gradients(loss, X, Y, loss.reference)
    with plan_options(threads=threads, thread_work=1, tile_rows=16, tile_columns=16, workspace=0):
        assert_close(value_and_gradients(loss, X, Y, loss), expected, 1e-9)
    results = [
        value_and_gradients(loss, X, Y, compute) for compute in (loss, loss, together)
    ]  # anew, as before, beside another
    for result in results:
        assert_close(result, expected, 1e-9)
    assert results[0][0] == results[1][0] and torch.equal(results[0][1][0], results[1][1][0])
    cotangents = torch.rand(2, len(X), dtype=X.dtype, generator=torch.Generator().manual_seed(0))
    gradients = []
    for plain in (False, True):
        leaf = X.clone().requires_grad_()
        (loss.rows(leaf, Y, plain=plain).values * cotangents).sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-12)
    broken = X.clone()
    broken[3, 1] = torch.nan
    assert loss.rows(broken, Y).values.isnan().all() and loss(broken, Y).isnan()


@pytest.mark.parametrize(
    "case",
    [
        Case("nt_xent", {"temperature": 1 / 69}),
        Case("nt_xent", {"temperature": 1 / 71}),
        Case("nt_xent", {"temperature": 0.001}),
        Case("tuplet_margin", {"margin": 45.0, "scale": 70.0}),
        Case("tuplet_margin", {"margin": 45.0, "scale": 500.0}),
        Case("ranked_list", {"Tn": 60.0, "Tp": 60.0, "alpha": 2.0, "margin": 2.0}),
        Case("binomial_deviance", {"alpha": 50.0, "negative_cost": 30.0}),
        Case("nca", {"softmax_scale": 500.0}),
    ],
    ids=lambda case: case.id,
)
def test_extreme_options_in_float32(case: Case) -> None:
    generator, y = torch.Generator().manual_seed(0), torch.arange(64) // 4
    apart = torch.randn(64, 64, generator=generator)
    apart[1::4] = -apart[::4] + 0.5 * torch.randn(16, 64, generator=generator)  # positives on opposite sides
    tight = apart[::4].repeat_interleave(4, 0) + 0.05 * torch.randn(64, 64, generator=generator)
    loss = case.create(torch.float32)
    for x in (torch.randn(64, 512, generator=generator), apart, tight, tight[:1] + 0.05 * apart):
        result = value_and_gradients(loss, x, y, loss)
        assert_close(result, value_and_gradients(loss, x.double(), y, loss.reference), 1e-3, by_row=False)


@pytest.mark.parametrize("name", ["nt_xent", "tuplet_margin", "n_pair", "nca", "lifted_structure", "margin"])
@pytest.mark.parametrize("batch", ["one sample", "two classes", "all different", "one class"])
def test_nothing_to_compare_costs_nothing(name: str, batch: str) -> None:
    x, y = BATCHES[batch]
    loss = create(name)
    for compute in (loss, loss.reference):
        value, gradients = value_and_gradients(loss, x, y, compute)
        assert abs(value) <= 1e-15 and all(g.abs().max() <= 1e-14 for g in gradients)


@pytest.mark.parametrize("references", [False, True])
def test_angular_takes_each_pair_once(references: bool) -> None:
    x, y = BATCHES["odd"]
    loss = create("angular")
    labels = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(1))] if references else y
    against = {"references": embeddings_of(labels, seed=4), "reference_labels": labels} if references else {}
    with recorded_passes() as recorded:
        loss(x, y, **against)
    expected = (y[:, None] == labels[None, :]).sum() if references else ((y[:, None] == y[None, :]).sum() - len(y)) // 2
    assert [len(pass_.anchors) for pass_ in recorded] == [expected]


def test_angular_is_plain_beside_large_classes_and_relations() -> None:
    loss, (x, y) = create("angular"), BATCHES["odd"]
    matrix = torch.nn.functional.one_hot(y)
    few, many = torch.arange(18) // 17, torch.arange(24) // 20  # 136 pairs of 18 samples, 196 of 24
    for embeddings, labels, passes in ((x[:18], few, 1), (x[:24], many, 0), (x, y, 1), (x, matrix, 0)):
        with recorded_passes() as recorded:
            result = value_and_gradients(loss, embeddings, labels, loss)
        assert len(recorded) == passes
        assert_close(result, value_and_gradients(loss, embeddings, labels, loss.reference), 1e-9)


def test_angular_in_an_ensemble_has_a_pass_of_its_own() -> None:
    x, y = BATCHES["odd"]
    members = [create(name) for name in ("ms", "angular", "contrastive")]
    ensemble = dmlcore.LossEnsemble(members)
    with recorded_passes() as recorded:
        result = value_and_gradients(ensemble, x, y, ensemble)
    assert [[call.functor for call in pass_.calls] for pass_ in recorded] == [["ms", "contrastive"], ["angular"]]
    assert_close(result, value_and_gradients(ensemble, x, y, lambda *a: sum(loss.reference(*a) for loss in members)), 1e-9)
    assert ensemble.active["angular"] == (members[1].rows(x, y, plain=True).values > 0).float().mean()
