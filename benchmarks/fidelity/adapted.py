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
from benchmarks.fidelity.rows import Row, batch, distance, distances_of_loss, equal, same
from dmlcore.protocols.fewshot.budgets import budget_of
from dmlcore.protocols.fewshot.fitting import Rule, fit
from dmlcore.protocols.fewshot.networks import build_network
from dmlcore.training import recipes


def rows() -> list[Row]:
    """All rows of the publication."""
    return [_histogram(), _prototypes(), *_stopping(), *_networks(), *_budgets()]


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

    distances = distances_of_loss(published, "histogram", n_bins=200)
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


# Of each data set: a sample's shape, the shapes of kernels and matrices, and how many layers are normalised by the batch.
NETWORKS = {
    "mnist": ((1, 28, 28), [(32, 1, 3, 3), (32, 32, 3, 3), (128, 14 * 14 * 32)], 0),
    "isolet": ((617,), [(128, 617), (64, 128)], 0),
    "omniglot": ((1, 28, 28), [(32, 1, 3, 3), (32, 32, 3, 3), (32, 32, 3, 3), (128, 7 * 7 * 32)], 3),
    "tiny_imagenet": ((3, 64, 64), [(32, 3, 3, 3), *[(32, 32, 3, 3)] * 3, (128, 8 * 8 * 32)], 4),
}


def _networks() -> list[Row]:
    """Every kernel, matrix, bias and shift; padding and pooling show in the width of what is flattened."""
    rows = []
    for name, (shape, weights, normalised) in NETWORKS.items():
        recipe = recipes.find(f"adapted_{name}").values
        arguments = recipe["arguments"]
        model = arguments["model"]
        network = build_network(
            model,
            options=recipe[model],
            sample_shape=shape,
            kind="images" if len(shape) == 3 else "features",
            embedding_dim=int(arguments["embedding_dim"]),
            init=arguments["init"],
            seed=0,
        )
        ours = [tuple(p.shape) for p in network.parameters() if p.ndim > 1]
        published = sum(math.prod(weight) + weight[0] for weight in weights) + sum(w[0] for w in weights[:normalised])
        count = sum(p.numel() for p in network.parameters())
        error = abs(count - published) / published if ours == weights else math.inf
        rows.append(equal(f"network for {name}", "its code", f"recipe `adapted_{name}`", error, f"{published:,} parameters"))
    return rows


# Of the authors' option files: epochs, patience, that of classifiers, batch, that of classifiers, episodes without progress,
# queries of a class, rate of prototypical networks, and training and validation samples of a source class.
BUDGETS = {
    "mnist": (500, 20, 20, 1024, 2048, 2000, 100, 1e-3, 1600, 600),
    "isolet": (750, 50, 50, 1024, 1024, 4000, 50, 1e-4, 250, 50),
    "omniglot": (500, 70, 100, 1024, 2048, 4000, 5, 1e-4, 15, 5),
    "tiny_imagenet": (750, 100, 100, 1024, 1024, 6000, 50, 1e-4, 350, 200),
}


def _budgets() -> list[Row]:
    rows = []
    for name, published in BUDGETS.items():
        budget = budget_of("paper", {}, data=name)
        samples = budget.source_samples or published[-2] + published[-1]
        validating = round(budget.validation_share * samples)
        ours = (
            budget.epochs,
            budget.patience,
            budget.classifier_patience or budget.patience,
            budget.batch,
            budget.classifier_batch or budget.batch,
            budget.episode_patience,
            budget.episode_queries,
            budget.prototype_rate,
            samples - validating,
            validating,
        )
        differing = sum(a != b for a, b in zip(ours, published, strict=True))
        rows.append(
            equal(
                f"budget for {name}",
                "its option files",
                f"`--budget paper/{name}`",
                differing,
                f"of {len(ours)} numbers differ",
            )
        )
    return rows
