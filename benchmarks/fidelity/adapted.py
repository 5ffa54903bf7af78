"""Adapted deep embeddings. Scott, Ridgeway, Mozer, "Adapted Deep Embeddings: A Synthesis of Methods for k-Shot Inductive
Transfer Learning", NeurIPS 2018.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, log_softmax

import dmlcore
from benchmarks.fidelity.rows import Row, batch, distance, equal, same
from dmlcore.protocols.fewshot.fitting import Rule, fit


def rows() -> list[Row]:
    """All rows of the publication."""
    return [_histogram(), _prototypes(), *_stopping()]


def _histogram() -> Row:
    """Probability that a negative pair is more similar than a positive one, from soft histograms of 201 nodes."""

    def published(x: Tensor, labels: Tensor) -> Tensor:
        nodes = torch.linspace(-1, 1, 201, dtype=x.dtype)
        width = 2 / 200

        def densities(similarities: Tensor) -> Tensor:
            return (1 - (similarities[:, None] - nodes).abs() / width).clamp_min(0).sum(0) / len(similarities)

        pairs = [(i, j) for i in range(len(x)) for j in range(i)]
        s = torch.stack([cosine_similarity(x[i], x[j], dim=0) for i, j in pairs])
        is_positive = torch.tensor([bool(labels[i] == labels[j]) for i, j in pairs])
        return (densities(s[~is_positive]) * densities(s[is_positive]).cumsum(0)).sum()

    distances = []
    for seed in (0, 1, 2):
        x, labels = batch(seed)
        loss = dmlcore.losses.create("histogram", n_bins=200)
        distances.append(distance(lambda e, y=labels: published(e, y), lambda e, y=labels, f=loss: f(e, y), [x]))
    return same("histogram loss, 201 nodes", "Ustinova and Lempitsky 2016", "`histogram`, `n_bins = 200`", distances)


def _prototypes() -> Row:
    """Queries against the mean of each class's support, by squared distances."""

    def published(x: Tensor, support: Tensor) -> Tensor:
        means = torch.stack([support[of_support == label].mean(0) for label in range(6)])
        logits = -(x[:, None] - means).square().sum(2)
        return -log_softmax(logits, 1).gather(1, of_queries[:, None]).mean()

    (x, of_queries), (support, of_support) = batch(0), batch(1, samples=30)
    loss = dmlcore.losses.create("prototypical")
    apart = distance(published, lambda q, s: loss(q, of_queries, references=s, reference_labels=of_support), [x, support])
    return same("prototypical loss", "Snell et al. 2017", "`prototypical`", apart)


def _epoch_of_source(scores: list[float], patience: int) -> int:
    """The first best epoch before `patience` epochs without a better one."""
    best, epoch = -math.inf, 0
    for number, score in enumerate(scores, 1):
        if score > best:
            best, epoch = score, number
        elif number - epoch >= patience:
            break
    return epoch


def _epoch_of_target(scores: list[float], patience: int) -> int:
    """Every `patience` epochs training goes on only if the best score has risen by 1 % since the last look."""
    best, epoch, looked = -math.inf, 0, 0.0
    for number, score in enumerate(scores, 1):
        if score > best:
            best, epoch = score, number
        if number % patience == 0:
            if best <= looked * 1.01:
                break
            looked = best
    return epoch


def _stopping() -> list[Row]:
    generator = np.random.default_rng(8)
    rows = []
    for name, looks_back, epoch_of in (("source", True, _epoch_of_source), ("target", False, _epoch_of_target)):
        differing, count = 0, 300
        for _ in range(count):
            scores = (
                0.05 + 0.9 * generator.random() * (1 - np.exp(-np.arange(60) / 20)) + 0.05 * generator.random(60)
            ).tolist()
            network = nn.Linear(1, 1)
            optimiser = torch.optim.SGD(network.parameters(), 1e-3)
            source = iter(scores)
            rule = Rule(len(scores), 8, looks_back=looks_back)
            fitted = fit(network, optimiser, lambda: iter(()), lambda source=source: next(source), rule)
            differing += fitted.round != epoch_of(scores, 8)
        row = equal(
            f"when training on the {name} stops", "section 3, and its code", "`dmlcore fewshot`",
            differing / count, f"epochs of {count} random curves that differ",
        )  # fmt: skip
        rows.append(row)
    return rows
