"""DiVA. Milbich, Roth, Bharadhwaj, Sinha, Bengio, Ommer, Cohen, "DiVA: Diverse Visual Feature Aggregation for Deep Metric
Learning", ECCV 2020: its four tasks, as the study of shift trains them, and what keeps their heads apart.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

import dmlcore
from benchmarks.fidelity.rows import SEEDS, Row, batch, distance, equal, same
from dmlcore.losses import compare, euclidean_distances
from dmlcore.models import build_model
from dmlcore.training.keys import KeyEncoder

SOURCE = "Milbich et al. 2020, and its code"
BETA = float(np.float32(1.2))  # a parameter, which begins in float32
Triplets = list[tuple[int, int, int]]


def rows() -> list[Row]:
    """All rows of the publication."""
    return [
        _triplets("class-shared task: margin loss over triplets of three classes", "class_shared"),
        _triplets("intra-class task: margin loss over triplets of one class", "intra_class", replacement=True),
        _sample_specific(),
        _key_encoder(),
        _separation(),
    ]


def _triplets(component: str, name: str, **options: Any) -> Row:
    """The triplets are as drawn here; that these are legal, and drawn by the published weights, is shown by tests."""
    distances = []
    for seed in SEEDS:
        x, labels = batch(seed)
        loss = dmlcore.losses.create(name, **options).double()
        positive, negative, counted = loss.triplets(compare(x, labels), euclidean_distances(x, x))
        drawn = [(a, int(positive[a]), int(negative[a])) for a in range(len(x)) if counted[a]]

        def published(x: Tensor, drawn: Triplets = drawn) -> Tensor:
            u, total, count = normalize(x, dim=1), torch.zeros((), dtype=x.dtype), 0
            for a, p, n in drawn:
                near, far = ((u[a] - u[other]).square().sum().clamp_min(1e-30).sqrt() for other in (p, n))
                pull, push = (near - BETA + 0.2).clamp_min(0), (BETA - far + 0.2).clamp_min(0)
                total = total + pull + push
                count += bool(pull > 0 or push > 0)
            return total / count

        distances.append(distance(published, lambda e, f=loss, y=labels: f(e, y), [x]))
    return same(component, SOURCE, f"`{name}`", distances)


def _sample_specific() -> Row:
    """The logits of the memory are products with weights by distance, which sum to 1 over the batch and have no gradient."""
    distances = []
    for seed in SEEDS:
        x, labels = batch(seed)
        keys, entries = (normalize(batch(seed + 10 * k)[0] + 0.5 * x, dim=1) for k in (1, 2))
        loss = dmlcore.losses.create("sample_specific", temperature=0.3).double()
        loss(x, labels, keys=entries)  # what an earlier batch leaves

        def published(x: Tensor, keys: Tensor = keys, entries: Tensor = entries) -> Tensor:
            u, width = normalize(x, dim=1), x.shape[1]
            weights = torch.zeros(len(x), len(entries), dtype=x.dtype)
            for j, entry in enumerate(entries):
                for b in range(len(x)):
                    apart = math.sqrt(float((u[b] - entry).detach().square().sum()))
                    d = max(apart, 0.5)
                    log = (2 - width) * math.log(d) - (width - 3) / 2 * math.log(1 - d * d / 4)
                    weights[b, j] = math.exp(log) if apart <= 1.4 else 1e-45
                weights[:, j] /= weights[:, j].sum()
            logits = torch.cat([(u * keys).sum(1, keepdim=True), weights * (u @ entries.T)], 1) / 0.3
            return torch.nn.functional.cross_entropy(logits, torch.zeros(len(x), dtype=torch.int64))

        distances.append(distance(published, lambda e, f=loss, y=labels, k=keys: f.reference(e, y, keys=k), [x]))
    return same("sample-specific task: weighted contrast with a memory", SOURCE, "`sample_specific`", distances)


def _key_encoder() -> Row:
    """Weights of the copy over ten steps of a model that moves."""
    model = build_model("mlp", sample_shape=(8,), kind="features", embedding_dim=4).double()
    encoder, generator = KeyEncoder(model, 0.9), torch.Generator().manual_seed(0)
    published = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    for _ in range(10):
        for name, weight in model.named_parameters():
            weight.data += torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
            published[name] = published[name] * 0.9 + weight.detach() * (1 - 0.9)
        encoder.follow(model)
    ours = dict(encoder.model.named_parameters())
    error = max(float((ours[name] - weight).norm() / weight.norm()) for name, weight in published.items())
    return equal("momentum encoder of the keys, 0.9", SOURCE, "`sample_specific`, `momentum`", error, "weights over 10 steps")


def _separation() -> Row:
    """DiVA: the products of one embedding with another that is mapped to it. The embeddings' gradient is turned round."""
    distances = []
    for seed in SEEDS:
        x, y = (normalize(batch(s)[0], dim=1) for s in (seed, seed + 10))
        torch.manual_seed(seed)
        term = dmlcore.ensemble.AdversarialDiversity(2, 8, hidden=16).double()
        weights = dict(term.named_parameters())

        def ours(a: Tensor, b: Tensor, *leaves: Tensor, term=term, names=tuple(weights)) -> Tensor:
            return torch.func.functional_call(term, dict(zip(names, leaves, strict=True)), (torch.stack([a, b], 1),))

        def published(a: Tensor, b: Tensor, *leaves: Tensor) -> Tensor:
            w, v, w_out, v_out = leaves
            a, b = 2 * a.detach() - a, 2 * b.detach() - b  # the same values with the gradient turned round
            mapped = normalize((b @ w.T + v).relu() @ w_out.T + v_out, dim=1)
            return -((a * mapped) ** 2).mean(1).mean()

        distances.append(distance(published, ours, [x, y, *(p.detach() for p in weights.values())]))
    return same("DiVA's separation of embeddings", SOURCE, "`--diversity adversarial`", distances)
