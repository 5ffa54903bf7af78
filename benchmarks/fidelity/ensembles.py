"""The ensemble of losses: WEL, WEDL and WEDL_C. Zabihzadeh, Alitbi, Mousavirad, "Ensemble of Loss Functions to Improve
Generalizability of Deep Metric Learning methods", MTAP 2023 (arXiv 2107.01130).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid, normalize

from benchmarks.fidelity.rows import Row, distance, distances_of_loss, distances_with_proxies, equal, same
from dmlcore.ensemble import distance_diversity, distance_matching
from dmlcore.plugins import registry

PRIOR = (2.0, 1.0, 2.0, 3.0)


def rows() -> list[Row]:
    """All rows of the publication."""
    return [_weights(), _equalised(), _diversity(), _semi_hard(), _binomial(), *_smoothed(), _centres(), _compressor()]


def _weighting(prior: tuple[float, ...] = PRIOR):
    return registry("weighting")["floor_square_penalty"].component(torch.tensor(prior, dtype=torch.float64)).double()


def _weights() -> Row:
    """`w_i = c_i^2 + 1 / (4 m)`, which begin at the prior scaled to sum 1."""
    weighting = _weighting()
    floor = 1 / (4 * len(PRIOR))
    prior = torch.tensor(PRIOR, dtype=torch.float64)
    roots = (prior / prior.sum() - floor).sqrt()
    error = float((roots.square() + floor - weighting.shares).abs().max() + (roots - weighting.roots.detach()).abs().max())
    return equal(
        "weights `c^2 + 1/(4m)`, begun at the prior 2:1:2:3", "eq. 8", "`--weighting floor_square_penalty --weights 2,1,2,3`",
        error, "first weights, which are float32", limit=1e-7,
    )  # fmt: skip


def _published_total(terms: list[Tensor], roots: Tensor) -> Tensor:
    """The objective of the last of some steps, whose terms [m] are given in order: losses are brought to one scale by their
    means so far, and a penalty holds the sum of the weights at 1."""
    weights = roots.square() + 1 / (4 * len(roots))
    means = torch.stack([term.detach() for term in terms]).mean(0)  # [m]
    factors = means.mean() / means
    return (weights * factors * terms[-1]).sum() + 1e4 * (weights.sum() - 1).square()


def _equalised() -> Row:
    """Value and gradient over 25 steps, of terms and of the weights' roots, which move."""
    generator = torch.Generator().manual_seed(4)
    weighting = _weighting()
    sizes = torch.tensor([1.0, 30.0, 0.2, 5.0], dtype=torch.float64)
    history: list[Tensor] = []
    worst = 0.0
    for _ in range(25):
        terms = (sizes * (0.5 + torch.rand(4, generator=generator, dtype=torch.float64))).requires_grad_()
        roots = weighting.roots.detach().clone().requires_grad_()
        published = _published_total([*history, terms], roots)
        expected = torch.autograd.grad(published, (terms, roots))
        inputs = terms.detach().clone().requires_grad_()
        value = weighting(inputs)
        actual = torch.autograd.grad(value, (inputs, weighting.roots))
        worst = max(worst, float(((value - published) / published).detach().abs()))
        worst = max([worst, *(float((a - e).norm() / e.norm()) for a, e in zip(actual, expected, strict=True))])
        history.append(terms.detach())
        with torch.no_grad():
            weighting.roots -= 1e-3 * actual[1].sign()
    return equal(
        "equalised objective, penalty `1e4 (sum w - 1)^2`", "eq. 11", "`--weighting floor_square_penalty`",
        worst, "value and both gradients over 25 steps",
    )  # fmt: skip


def _diversity() -> Row:
    def published(heads: Tensor) -> Tensor:
        count = heads.shape[1]
        apart = [torch.stack([(x[i] - x[j]).norm() for x in heads]).mean() for i in range(count) for j in range(i + 1, count)]
        return (2 - torch.stack(apart).mean()).clamp_min(0)

    generator = torch.Generator().manual_seed(1)
    heads = normalize(torch.randn(9, 4, 6, generator=generator, dtype=torch.float64), dim=2)
    apart = distance(published, distance_diversity, [heads])
    return same("diversity `max(0, 2 - mean distance of heads)`", "section on WEDL", "`--diversity distance`", apart)


def _semi_hard() -> Row:
    """Triplets with `0 < d_an - d_ap <= 0.1`, each with `max(0, 1 + d_ap - d_an)`, averaged."""

    def published(x: Tensor, labels: Tensor) -> Tensor:
        u = normalize(x, dim=1)
        values = []
        for a in range(len(u)):
            for p in range(len(u)):
                for n in range(len(u)):
                    if p == a or labels[p] != labels[a] or labels[n] == labels[a]:
                        continue
                    near, far = (u[a] - u[p]).norm(), (u[a] - u[n]).norm()
                    if 0 < far - near <= 0.1:
                        values.append(1 + near - far)
        return torch.stack(values).mean()

    return same(
        "semi-hard triplets, `0 < d_an - d_ap <= 0.1`, hinge 1", "section on losses", "`triplet`, `variant = wedl`",
        distances_of_loss(published, "triplet", variant="wedl"),
    )  # fmt: skip


def _binomial() -> Row:
    """Of each anchor the mean over its positives and the mean over its negatives; then over anchors."""

    def published(x: Tensor, labels: Tensor) -> Tensor:
        s = normalize(x, dim=1) @ normalize(x, dim=1).T
        values = []
        for a in range(len(s)):
            is_positive = labels == labels[a]
            is_positive[a] = False
            pull = -logsigmoid(2 * (s[a][is_positive] - 0.5)).mean()
            push = -logsigmoid(25 * (0.5 - s[a][labels != labels[a]])).mean()
            values.append(pull + push)
        return torch.stack(values).mean()

    return same(
        "binomial deviance 2 / 25 / 0.5", "section on losses", "`binomial_deviance`, `variant = wedl`",
        distances_of_loss(published, "binomial_deviance", variant="wedl"),
    )  # fmt: skip


def _target(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """`1 - smoothing` at the label, the rest evenly over the other classes: [N, C]."""
    target = torch.full((len(labels), classes), smoothing / (classes - 1), dtype=torch.float64)
    return target.scatter(1, labels[:, None], 1 - smoothing)


def _smoothed() -> list[Row]:
    def classifier(x: Tensor, weights: Tensor, labels: Tensor) -> Tensor:
        return -(_target(labels, len(weights), 0.15) * log_softmax(x @ weights.T, 1)).sum(1).mean()

    def proxies_at_three(x: Tensor, proxies: Tensor, labels: Tensor) -> Tensor:
        apart = (normalize(x, dim=1)[:, None] - 3 * normalize(proxies, dim=1)).square().sum(2)  # [N, C]
        return -(_target(labels, len(proxies), 0.1) * log_softmax(-apart, 1)).sum(1).mean()

    return [
        same(
            "classifier, smoothed by 0.15 over the other classes", "section on WEL", "`cross_entropy`, `smoothing = others`",
            distances_with_proxies(classifier, "cross_entropy", label_smoothing=0.15, smoothing="others"),
        ),
        same(
            "Proxy-NCA, proxies of norm 3, smoothed by 0.1", "section on losses",
            "`proxy_nca`, `variant = wedl`, `smoothing = others`",
            distances_with_proxies(proxies_at_three, "proxy_nca", variant="wedl", smoothing="others"),
        ),
    ]  # fmt: skip


def _centres() -> Row:
    """Three centres per class and the regulariser of their distances with weight 0.2."""
    classes, count = 6, 3

    def published(x: Tensor, proxies: Tensor, labels: Tensor) -> Tensor:
        s = (normalize(x, dim=1) @ normalize(proxies, dim=1).T).view(len(x), classes, count)
        relaxed = (torch.softmax(s / 0.1, 2) * s).sum(2)  # [N, C]
        margin = torch.zeros_like(relaxed).scatter(1, labels[:, None], 0.01)
        centres = normalize(proxies, dim=1).view(classes, count, -1)
        pairs = [(c[i] - c[j]).norm() for c in centres for i in range(count) for j in range(i + 1, count)]
        value = -log_softmax(20 * (relaxed - margin), 1).gather(1, labels[:, None]).mean()
        return value + 0.2 * torch.stack(pairs).sum() / (classes * count * (count - 1))

    return same(
        "SoftTriple, K = 3, tau = 0.2", "section on losses", "`soft_triple`, 3 centres, tau 0.2",
        distances_with_proxies(published, "soft_triple", classes=classes, centers_per_class=count, tau=0.2),
    )  # fmt: skip


def _compressor() -> Row:
    """`B^2 |D(g) / sum D(g) - D(z) / sum D(z)|`, D the squared distances of all pairs."""

    def published(compressed: Tensor, embeddings: Tensor) -> Tensor:
        def share(points: Tensor) -> Tensor:
            squares = (points[:, None] - points).square().sum(2)
            return squares / squares.sum()

        return len(compressed) ** 2 * (share(compressed) - share(embeddings.detach())).norm()

    generator = torch.Generator().manual_seed(2)
    points = [torch.randn(9, width, generator=generator, dtype=torch.float64) for width in (3, 8)]
    apart = distance(published, distance_matching, points)
    return same("objective of the compressor", "section on WEDL_C", "`--compressor lin_tanh_lin`", apart)
