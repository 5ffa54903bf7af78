"""Losses in the forms that published systems train with, against transcriptions by loops: value and gradient in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import embeddings_of
from torch import Tensor

from dmlcore.errors import ConfigError
from dmlcore.losses import compare, create

LABELS = torch.tensor([4, 0, 2, 4, 1, 2, 0, 3, 4, 1, 2, 2, 5, 1])  # one to four of a class; 3 and 5 have one sample
X = embeddings_of(LABELS, seed=7, spread=1.5)
Definition = Callable[[Tensor, list[int]], Tensor]


def squares(x: Tensor) -> Tensor:
    """Squared distances of unit vectors, as sums of squares rather than by products."""
    x = torch.nn.functional.normalize(x)
    return (x[:, None, :] - x[None, :, :]).square().sum(2)


def mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean()


def check(name: str, options: dict[str, Any], definition: Definition, x: Tensor = X, y: Tensor = LABELS) -> None:
    """The plain and the fused form equal a definition."""
    leaf = x.clone().requires_grad_()
    expected = definition(leaf, y.tolist())
    gradient = torch.autograd.grad(expected, leaf)[0]
    assert gradient.abs().max() > 1e-6, "nothing is tested"
    loss = create(name, num_classes=6, embedding_dim=x.shape[1], **options).double()
    for compute in (loss.reference, loss):
        leaf = x.clone().requires_grad_()
        value = compute(leaf, y)
        torch.testing.assert_close(value, expected.detach(), rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(torch.autograd.grad(value, leaf)[0], gradient, rtol=1e-8, atol=1e-10)


def triplets(labels: list[int]) -> list[tuple[int, int, int]]:
    number = range(len(labels))
    return [
        (a, p, n)
        for a in number
        for p in number
        for n in number
        if a != p and labels[a] == labels[p] and labels[a] != labels[n]
    ]


def every_triplet(x: Tensor, labels: list[int]) -> Tensor:
    d = squares(x)
    return mean([torch.relu(d[a, p] - d[a, n] + 1) for a, p, n in triplets(labels)])


def nearest_beyond(x: Tensor, labels: list[int]) -> Tensor:
    d, values, fallen = squares(x), [], 0
    for a in range(len(labels)):
        for p in range(len(labels)):
            if a == p or labels[a] != labels[p]:
                continue
            negatives = [d[a, n] for n in range(len(labels)) if labels[n] != labels[a]]
            beyond = [n for n in negatives if n > d[a, p]]
            fallen += not beyond
            values.append(torch.relu(d[a, p] - (min(beyond) if beyond else max(negatives)) + 0.2))
    assert fallen and fallen < len(values), "both rules must be used"
    return mean(values)


SEC_TRIPLET = {"distance": "squared_euclidean", "margin": 1.0, "average": "all"}
SEC_SEMIHARD = {"distance": "squared_euclidean", "margin": 0.2, "average": "all", "mining": "semihard_else_farthest"}


def test_triplets_of_the_spherical_embedding() -> None:
    check("triplet", SEC_TRIPLET, every_triplet)
    check("triplet", SEC_SEMIHARD, nearest_beyond, far_positives(X))


def far_positives(x: Tensor) -> Tensor:
    """With one sample opposite the rest of its class and near all others, so that no negative lies beyond its positives."""
    x = torch.nn.functional.normalize(x).clone()
    rest = torch.tensor([i for i in range(len(x)) if LABELS[i] != 0])
    x[1] = x[rest].mean(0)
    x[6] = -x[1] + 0.1 * x[6]
    return x


def test_averages_of_triplets() -> None:
    everything = triplets(LABELS.tolist())

    def active(x: Tensor, labels: list[int]) -> Tensor:
        d = squares(x)
        return mean([v for a, p, n in everything if (v := torch.relu(d[a, p] - d[a, n] + 0.5)) > 0])

    def hardest(x: Tensor, labels: list[int]) -> Tensor:
        d, values = squares(x).clamp_min(1e-30).sqrt(), []
        for a in sorted({a for a, _, _ in everything}):
            far = max(d[a, p] for q, p, _ in everything if q == a)
            near = min(d[a, n] for q, _, n in everything if q == a)
            values.append(torch.relu(far - near + 0.1))
        assert 0 < sum(bool(value > 0) for value in values) < len(values), "the averages must differ"
        return mean(values)

    check("triplet", {"distance": "squared_euclidean", "margin": 0.5}, active)
    check("triplet", {"margin": 0.1, "mining": "hard", "average": "all"}, hardest, embeddings_of(LABELS, seed=2, spread=0.8))


def paired(labels: list[int]) -> list[tuple[int, int]]:
    places = {label: [i for i, other in enumerate(labels) if other == label] for label in labels}
    return [(rows[0], rows[1]) for rows in places.values() if len(rows) > 1]


@pytest.mark.parametrize(("name", "options", "scale"), [("n_pair", {}, None), ("nt_xent", {"temperature": 0.04}, 25.0)])
def test_one_pair_per_class(name: str, options: dict[str, Any], scale: float | None) -> None:
    def cross_entropy(x: Tensor, labels: list[int]) -> Tensor:
        x = x if scale is None else torch.nn.functional.normalize(x)
        anchors, positives = (torch.stack([x[pair[side]] for pair in paired(labels)]) for side in (0, 1))
        logits = (scale or 1.0) * anchors @ positives.T
        return torch.nn.functional.cross_entropy(logits, torch.arange(len(logits)))

    check(name, {**options, "pairs": "one_per_class"}, cross_entropy)
    loss = create(name, pairs="one_per_class", **options).double()
    assert loss(X[:3], LABELS[:3]) == 0  # no class has a pair
    # references: the first of each class that is not the anchor itself
    own = torch.arange(len(X))
    torch.testing.assert_close(loss(X, LABELS, references=X, reference_labels=LABELS, own=own), loss(X, LABELS))
    with pytest.raises(ConfigError, match="one label per sample"):
        loss(X, torch.eye(6)[LABELS])
    for wrong in ({"miner": "batch_hard"}, {"reduction": "none"}):
        with pytest.raises(ConfigError, match="one_per_class"):
            create(name, pairs="one_per_class", **wrong)


def test_numbers_of_pairs() -> None:
    own = torch.tensor([3, -1, 0, 1])
    for comparison in (
        compare(X, LABELS),
        compare(X[:4], LABELS[:4], references=X[:9], reference_labels=LABELS[:9]),
        compare(X[:4], LABELS[:4], references=X[:9], reference_labels=LABELS[:9], own=own),
        compare(X[:4], LABELS[:4], references=X[:0], reference_labels=LABELS[:0]),
        compare(X, torch.eye(6)[LABELS]),
    ):
        expected = [mask.sum(1).tolist() for mask in comparison.masks()]
        assert [numbers.tolist() for numbers in comparison.numbers_of_pairs()] == expected


def test_margin_over_triplets_with_a_term() -> None:
    def definition(x: Tensor, labels: list[int]) -> Tensor:
        d, total, number, terms = squares(x).clamp_min(1e-30).sqrt(), x.sum() * 0, 0, 0
        for a, p, n in triplets(labels):
            pull, push = torch.relu(d[a, p] - 1.25 + 0.2), torch.relu(1.25 - d[a, n] + 0.2)
            total, number = total + pull + push, number + bool(pull > 0 or push > 0)
            terms += bool(pull > 0) + bool(push > 0)
        assert 0 < number < terms
        return total / number

    check("margin", {"beta": 1.25, "average": "triplets"}, definition)


def test_margin_switches_negatives_for_positives(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = create("margin", sampling="distance_weighted", rho=0.3, margin=0.4, beta=0.25, average="triplets").double()
    switched = torch.rand(14, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    listed = []

    def draws(anchors: Tensor, references: Tensor, index: Tensor, salt: int = 0) -> Tensor:
        listed.append(index)
        return switched if salt else torch.zeros_like(switched)  # the nearest negative

    monkeypatch.setattr(loss, "draws", draws)
    leaf = X.clone().requires_grad_()
    value = loss(leaf, LABELS)
    d, labels = squares(other := X.clone().requires_grad_()).clamp_min(1e-30).sqrt(), LABELS.tolist()
    total, number, used = 0.0, 0, set()
    for a in range(14):
        nearest = min((n for n in range(14) if labels[n] != labels[a]), key=lambda n: d[a, n].item())
        for place, p in enumerate(listed[0][a].tolist()):
            if p == a or labels[p] != labels[a]:
                continue
            is_switched = bool(switched[a, place] < 0.3)
            used.add(is_switched)
            pull = torch.relu((0 * d[a, p] if is_switched else d[a, p]) - 0.25 + 0.4)
            push = torch.relu(0.25 - d[a, p if is_switched else nearest] + 0.4)
            total, number = total + pull + push, number + bool(pull > 0 or push > 0)
    assert used == {False, True} and isinstance(total, Tensor)
    torch.testing.assert_close(value, total / number, rtol=1e-10, atol=0)
    gradients = torch.autograd.grad(value, leaf)[0], torch.autograd.grad(total / number, other)[0]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-10)


def test_switching_has_its_probability_and_needs_sampling() -> None:
    x, labels = embeddings_of(torch.arange(200) % 20, seed=3), torch.arange(200) % 20
    loss = create("margin", sampling="distance_weighted", rho=0.25)
    index = (labels[:, None] == labels).float().topk(10, dim=1).indices
    draws = loss.draws(x, x, index, 1 << 32)
    assert abs((draws < 0.25).double().mean() - 0.25) < 0.03
    assert not torch.equal(draws, loss.draws(x, x, index))
    with pytest.raises(ConfigError, match="rho is 0.2, but needs sampling"):
        create("margin", rho=0.2)


def test_ms_over_anchors_that_count() -> None:
    def definition(x: Tensor, labels: list[int]) -> Tensor:
        x = torch.nn.functional.normalize(x)
        s, values, number = x @ x.T, [], range(len(labels))
        for a in number:
            positives = [s[a, p] for p in number if p != a and labels[p] == labels[a]]
            negatives = [s[a, n] for n in number if labels[n] != labels[a]]
            if not positives:
                continue
            hard = [n for n in negatives if n + 0.1 > min(positives)]
            far = [p for p in positives if p - 0.1 < max(negatives)]
            if not hard or not far:
                continue
            pull = torch.log1p(torch.stack([torch.exp(-2 * (p - 0.5)) for p in far]).sum()) / 2
            values.append(pull + torch.log1p(torch.stack([torch.exp(40 * (n - 0.5)) for n in hard]).sum()) / 40)
        assert 0 < len(values) < len(labels)
        return mean(values)

    check("ms", {"beta": 40.0, "average": "active"}, definition)


def test_uniform_prior_by_loops() -> None:
    def definition(x: Tensor, labels: list[int]) -> Tensor:
        d, number = squares(x), range(len(labels))
        return mean([torch.log(mean([torch.exp(-1.5 * d[a, n]) for n in number if n != a])) for a in number])

    check("uniform_prior", {"t": 1.5}, definition)
    loss, generator = create("uniform_prior"), torch.Generator().manual_seed(0)
    even = torch.randn(64, 8, generator=generator)
    crowded = even + torch.tensor([3.0, *[0.0] * 7])
    assert loss(even, torch.arange(64)) < loss(crowded, torch.arange(64))  # the more even, the lower


@pytest.mark.parametrize(("name", "options", "share"), [
    ("cross_entropy", {"label_smoothing": 0.15, "smoothing": "others", "bias": True}, 0.15),
    ("proxy_nca", {"variant": "wedl", "smoothing": "others"}, 0.1),
])  # fmt: skip
def test_smoothing_over_the_other_classes(name: str, options: dict[str, Any], share: float) -> None:
    torch.manual_seed(0)
    loss = create(name, num_classes=6, embedding_dim=X.shape[1], **options).double()
    proxies = loss.proxies.detach().clone().requires_grad_()
    normal = torch.nn.functional.normalize
    leaf = X.clone().requires_grad_()
    if name == "cross_entropy":
        logits = leaf @ proxies.T
    else:  # squared distances of unit vectors and of proxies of norm 3
        logits = -(normal(leaf)[:, None, :] - 3 * normal(proxies)[None, :, :]).square().sum(2)
    targets = torch.full((len(X), 6), share / 5, dtype=torch.float64)
    targets[torch.arange(len(X)), LABELS] = 1 - share
    expected = -(targets * torch.log_softmax(logits, 1)).sum(1).mean()
    gradients = torch.autograd.grad(expected, [leaf, proxies])
    for compute in (loss.reference, loss):
        leaf = X.clone().requires_grad_()
        value = compute(leaf, LABELS)
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(torch.autograd.grad(value, [leaf, loss.proxies]), gradients, rtol=1e-9, atol=1e-12)
    single = create(name, num_classes=1, embedding_dim=X.shape[1], **options).double()
    assert single(X, torch.zeros_like(LABELS)) == 0
