"""The spherical embedding constraint. Zhang, Li, Zhang, "Deep Metric Learning with Spherical Embedding", NeurIPS 2020."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, normalize

import dmlcore
from benchmarks.fidelity.rows import Row, batch, distances_of_loss, equal, same


def rows() -> list[Row]:
    """All rows of the publication."""
    return [_constraint(), _moving_mean(), _squared_norms(), _multi_similarity(), _n_pair(), *_triplets()]


def _same(component: str, ours: str, published, name: str, samples_per_class: int = 4, **options) -> Row:
    """A row of a loss, at three batches of raw embeddings."""
    distances = distances_of_loss(published, name, samples=6 * samples_per_class, **options)
    return same(component, "section 4", ours, distances)


def _constraint() -> Row:
    def published(x: Tensor, labels: Tensor) -> Tensor:
        norms = x.norm(dim=1)
        return (norms - norms.detach().mean()).square().mean()

    return _same("`L_sec`, mean norm of the batch", "`sec`", published, "sec")


def _moving_mean() -> Row:
    """Fifty steps of the moving average with share 0.3, which begins at the first batch."""
    loss = dmlcore.losses.create("sec", rho=0.3).double()
    mean, worst = None, 0.0
    for step in range(50):
        x, labels = batch(step)
        x = (x * (1 + step % 3)).requires_grad_()
        norms = x.norm(dim=1)
        centre = norms.detach().mean()
        mean = centre if mean is None else 0.7 * mean + 0.3 * centre
        value = (norms - mean).square().mean()
        expected, actual = (torch.autograd.grad(v, x)[0] for v in (value, loss(x, labels)))
        worst = max(worst, float((actual - expected).norm() / expected.norm()))
    return equal("moving mean of the norms, moved before use", "section 3", "`sec`, `rho`", worst, "gradient over 50 steps")


def _squared_norms() -> Row:
    return _same("L2 regularisation, 1e-4", "`l2_norm`", lambda x, labels: 1e-4 * x.square().sum(1).mean(), "l2_norm")


def multi_similarity(x: Tensor, labels: Tensor) -> list[Tensor]:
    """The values of the anchors for which mining by 0.1 leaves pairs, with alpha 2, beta 40, base 0.5."""
    s = normalize(x, dim=1) @ normalize(x, dim=1).T
    values = []
    for a in range(len(s)):
        is_positive = labels == labels[a]
        is_positive[a] = False
        positives, negatives = s[a][is_positive], s[a][labels != labels[a]]
        far, near = negatives[negatives + 0.1 > positives.min()], positives[positives - 0.1 < negatives.max()]
        if len(far) and len(near):
            pull = torch.log1p(torch.exp(-2 * (near - 0.5)).sum()) / 2
            values.append(pull + torch.log1p(torch.exp(40 * (far - 0.5)).sum()) / 40)
    return values


def _multi_similarity() -> Row:
    """The mean over all anchors."""

    def published(x: Tensor, labels: Tensor) -> Tensor:
        return torch.stack(multi_similarity(x, labels)).sum() / len(x)

    return _same("Multi-Similarity 2 / 40 / 0.5 / 0.1", "`ms`, `beta = 40`", published, "ms", alpha=2.0, beta=40.0)


def _n_pair() -> Row:
    """The first sample of each class is an anchor, the second its positive; the positives of other classes are negatives."""

    def published(x: Tensor, labels: Tensor) -> Tensor:
        u = normalize(x, dim=1)
        places = [(labels == label).nonzero().flatten()[:2] for label in labels.unique()]
        anchors, positives = u[torch.stack([p[0] for p in places])], u[torch.stack([p[1] for p in places])]
        return -log_softmax(25 * anchors @ positives.T, 1).diagonal().mean()

    return _same(
        "normalised N-pair, one pair of each class, 25 cos", "`nt_xent`, `pairs = one_per_class`, `temperature = 0.04`",
        published,
        "nt_xent", samples_per_class=2, temperature=0.04, pairs="one_per_class",
    )  # fmt: skip


def _triplets() -> list[Row]:
    def squares(x: Tensor) -> Tensor:
        u = normalize(x, dim=1)
        return (u[:, None] - u).square().sum(2)

    def every_triplet(x: Tensor, labels: Tensor) -> Tensor:
        d = squares(x)
        values = [
            (1 + d[a, p] - d[a, n]).clamp_min(0)
            for a in range(len(d))
            for p in range(len(d))
            for n in range(len(d))
            if p != a and labels[p] == labels[a] and labels[n] != labels[a]
        ]
        return torch.stack(values).mean()

    def semi_hard(x: Tensor, labels: Tensor) -> Tensor:
        d = squares(x)
        values = []
        for a in range(len(d)):
            negatives = d[a][labels != labels[a]]
            for p in range(len(d)):
                if p != a and labels[p] == labels[a]:
                    beyond = negatives[negatives > d[a, p]]
                    negative = beyond.min() if len(beyond) else negatives.max()
                    values.append((0.2 + d[a, p] - negative).clamp_min(0))
        return torch.stack(values).mean()

    return [
        _same(
            "triplets, squared distance, margin 1, mean over all", "`triplet`, `distance = squared_euclidean`, `average = all`",
            every_triplet, "triplet", distance="squared_euclidean", margin=1.0, average="all",
        ),
        _same(
            "semi-hard, else the farthest; squared, margin 0.2", "the same, `mining = semihard_else_farthest`",
            semi_hard, "triplet", distance="squared_euclidean", margin=0.2, average="all", mining="semihard_else_farthest",
        ),
    ]  # fmt: skip
