"""Distribution shift: ooDML. Milbich, Roth, Sinha, Schmidt, Ghassemi, Ommer, "Characterizing Generalization under
Out-Of-Distribution Shifts in Deep Metric Learning", NeurIPS 2021, and the methods it compares.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.linalg import sqrtm
from torch import Tensor
from torch.nn.functional import normalize

import dmlcore
from benchmarks.fidelity import diva
from benchmarks.fidelity.rows import SEEDS, Row, batch, distance, distances_of_loss, distances_with_proxies, equal, same
from benchmarks.fidelity.sphere import multi_similarity
from dmlcore.protocols.shift.area import area_under_shift
from dmlcore.protocols.shift.frechet import frechet_distance
from dmlcore.training.distillation import Distillation
from dmlcore.training.setting_groups.model import ModelSettings

BETA = float(np.float32(1.2))  # a parameter, which begins in float32


def rows() -> list[Row]:
    """All rows of the publication."""
    return [
        _frechet(),
        _area(),
        _margin(),
        _arcface(),
        _proxy_anchor(),
        _multi_similarity(),
        _self_distillation(),
        *diva.rows(),
    ]


def _frechet() -> Row:
    generator = np.random.default_rng(3)
    a, b = generator.normal(size=(100, 24)), 0.5 + generator.normal(size=(90, 24)) * np.linspace(0.5, 2, 24)
    ca, cb = np.cov(a.T), np.cov(b.T)
    published = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * sqrtm(ca @ cb).real)
    error = abs(frechet_distance(a, b) - published) / published
    return equal("Fréchet distance of class means", "eq. 1", "`dmlcore splits`", error, "against a matrix root", limit=1e-8)


def _area() -> Row:
    fids, values = [19.0, 52.0, 92.0, 130.0, 175.0], [0.66, 0.63, 0.6, 0.51, 0.38]
    x = [(fid - fids[0]) / (fids[-1] - fids[0]) for fid in fids]
    published = sum((x[i + 1] - x[i]) * (values[i] + values[i + 1]) / 2 for i in range(len(x) - 1))
    error = abs(area_under_shift(fids, values) - published) / published
    return equal("area under R@1 over the scaled distances", "section 4", "`dmlcore ood report`", error, "area")


def _pairs(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distances [N, N] of unit vectors, and which are positive and negative pairs."""
    u = normalize(x, dim=1)
    d = (u[:, None] - u).square().sum(2).clamp_min(1e-16).sqrt()
    equals = labels[:, None] == labels
    return d, equals & ~torch.eye(len(x), dtype=torch.bool), ~equals


def _margin() -> Row:
    """Over all triplets: the sum divided by the number of triplets with a term above 0."""

    def published(x: Tensor, labels: Tensor) -> Tensor:
        d, positive, negative = _pairs(x, labels)
        pull, push = (d - BETA + 0.2).clamp_min(0), (BETA - d + 0.2).clamp_min(0)
        total, triplets = torch.zeros((), dtype=x.dtype), 0
        for a in range(len(d)):
            for p in positive[a].nonzero().flatten():
                for n in negative[a].nonzero().flatten():
                    total = total + pull[a, p] + push[a, n]
                    triplets += bool(pull[a, p] > 0 or push[a, n] > 0)
        return total / triplets

    return _of_loss(
        "margin, beta 1.2, divided by active triplets", "`margin`, `average = triplets`", published, "margin",
        average="triplets",
    )  # fmt: skip


def _of_loss(component: str, ours: str, published, name: str, **options) -> Row:
    return same(component, "section 5, and its code", ours, distances_of_loss(published, name, samples=18, **options))


def _of_proxies(component: str, ours: str, published, name: str, **options) -> Row:
    return same(component, "section 5, and its code", ours, distances_with_proxies(published, name, **options))


def _arcface() -> Row:
    def published(x: Tensor, proxies: Tensor, labels: Tensor) -> Tensor:
        cosines = normalize(x, dim=1) @ normalize(proxies, dim=1).T
        widened = torch.cos(torch.arccos(cosines) + 0.5)
        logits = 16 * torch.where(torch.eye(len(proxies), dtype=torch.bool)[labels], widened, cosines)
        return torch.nn.functional.cross_entropy(logits, labels)

    return _of_proxies(
        "ArcFace, margin 0.5, scale 16", "`arcface`", published, "arcface", margin=float(np.degrees(0.5)), scale=16.0
    )


def _proxy_anchor() -> Row:
    def published(x: Tensor, proxies: Tensor, labels: Tensor) -> Tensor:
        s = normalize(proxies, dim=1) @ normalize(x, dim=1).T  # [C, N]
        is_positive = torch.arange(len(proxies))[:, None] == labels
        present = [c for c in range(len(proxies)) if is_positive[c].any()]
        pull = sum(torch.log1p(torch.exp(-32 * (s[c][is_positive[c]] - 0.1)).sum()) for c in present) / len(present)
        push = sum(torch.log1p(torch.exp(32 * (row[~own] + 0.1)).sum()) for row, own in zip(s, is_positive, strict=True))
        return pull + push / len(proxies)

    return _of_proxies("Proxy-Anchor 32 / 0.1", "`proxy_anchor`", published, "proxy_anchor")


def _self_distillation() -> Row:
    """S2SD: half the losses of both, and the divergence of rows of similarities, by which no gradient reaches the teacher."""

    def losses_of(x: Tensor, labels: Tensor) -> Tensor:
        return dmlcore.losses.create("ms")(x, labels)

    def divergence(base: Tensor, teacher: Tensor) -> Tensor:
        p, q = ((x @ x.T).softmax(1) for x in (normalize(teacher, dim=1).detach(), normalize(base, dim=1)))
        return (p * (p / q).log()).sum() / len(base)

    distances = []
    for seed in SEEDS:
        x, labels = batch(seed)
        model = dmlcore.models.build_model(
            "identity", sample_shape=(8,), kind="features", embedding_dim=4, distill_heads=(12, 16), distills_features=True
        ).double()
        settings = ModelSettings(distill_heads=(12, 16), distill_features_weight=50.0)
        distillation = Distillation(model, [dmlcore.LossEnsemble(["ms"]), dmlcore.LossEnsemble(["ms"])], settings)
        names = [name for name, _ in model.named_parameters()]
        weights = [weight.detach() for weight in model.parameters()]

        def ours(*leaves: Tensor, x=x, y=labels, model=model, names=names, d=distillation) -> Tensor:
            outputs = torch.func.functional_call(model, dict(zip(names, leaves, strict=True)), (x,))
            return d.join(losses_of(model.losses_part(outputs), y), outputs, y, 0)[0]

        def published(*leaves: Tensor, x=x, y=labels, names=names) -> Tensor:
            w = dict(zip(names, leaves, strict=True))
            base = x @ w["head.weight"].T + w["head.bias"]
            wide = []
            for k in range(2):
                hidden = (x @ w[f"distill_heads.{k}.0.weight"].T + w[f"distill_heads.{k}.0.bias"]).relu()
                wide.append(hidden @ w[f"distill_heads.{k}.2.weight"].T + w[f"distill_heads.{k}.2.bias"])
            of_wide = (losses_of(wide[0], y) + losses_of(wide[1], y)) / 2
            taught = (divergence(base, wide[0]) + divergence(base, wide[1])) / 2
            return (losses_of(base, y) + of_wide) / 2 + 50 * taught + 50 * divergence(base, x)

        distances.append(distance(published, ours, weights))
    return same("S2SD, also by features, weights 50", "Roth et al. 2021, and its code", "`--distill-heads`", distances)


def _multi_similarity() -> Row:
    """The mean over anchors for which mining leaves pairs."""

    def published(x: Tensor, labels: Tensor) -> Tensor:
        return torch.stack(multi_similarity(x, labels)).mean()

    return _of_loss(
        "Multi-Similarity 2 / 40",
        "`ms`, `beta = 40`, `average = active`",
        published,
        "ms",
        alpha=2.0,
        beta=40.0,
        average="active",
    )
