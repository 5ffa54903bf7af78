"""How well a linear classifier reads the classes off the embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

import dmlcore
from dmlcore.config import check_range
from dmlcore.evaluation import Metric
from dmlcore.losses import unit

STEPS = 300  # of L-BFGS at most


class LinearProbe(Metric):
    """Accuracy of a logistic regression on unit embeddings, fitted to one half of each class and tested on the other.

    It lowers `strength * sum_i cross_entropy(W x_i + b, y_i) + |W|^2 / 2` by L-BFGS in float64. Where the data have queries and
    a gallery, it is fitted to the gallery and tested on the queries. Samples of classes that the other part lacks do not count.
    The result does not depend on the order of the samples. O(N C D) time a step for C classes.

    Source: Alain, Bengio, "Understanding Intermediate Layers Using Linear Classifier Probes", ICLR workshop 2017. There the
    training and the test part are given. Here the part that is measured is halved.
    """

    name = "linear_probe"
    takes_roles = True

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options of `linear_probe`."""

        strength: float = 100.0
        """Weight of the data against the penalty of the weights, > 0."""
        most: int = 20_000
        """Samples that it is fitted to at most, an even part of each class, >= 2."""

        def __post_init__(self) -> None:
            check_range("strength", self.strength, above=0)
            check_range("most", self.most, least=2)

    def __call__(
        self, embeddings: Tensor, labels: Tensor, queries: Tensor | None = None, references: Tensor | None = None
    ) -> dict[str, float]:
        x = unit(embeddings).double()
        y = labels.cpu().numpy()
        # Classes are halved by an order of their own, so that the order of the samples does not matter.
        places = (x.cpu().numpy() * np.random.default_rng(0).normal(size=x.shape[1])).sum(1)
        order = np.lexsort((places, y))
        if queries is None or references is None or len(queries) == len(references) == len(y):
            _, dense, counts = np.unique(y[order], return_inverse=True, return_counts=True)
            place = np.arange(len(y)) - (np.cumsum(counts) - counts)[dense]  # in its class
            fitted, tested = order[place % 2 == 0], order[place % 2 == 1]
        else:
            fitted, tested = [order[np.isin(order, part.cpu().numpy())] for part in (references, queries)]
        tested = tested[np.isin(y[tested], y[fitted])]
        fitted = fitted[np.isin(y[fitted], y[tested])]
        classes, dense = np.unique(y[fitted], return_inverse=True)
        if len(classes) < 2:
            return {"accuracy": float("nan")}
        if len(fitted) > self.options.most:
            chosen = np.linspace(0, len(fitted) - 1, self.options.most).round().astype(int)
            fitted, dense = fitted[chosen], dense[chosen]
        x = x.clone()  # of a model that was evaluated: autograd takes no tensors of inference
        target = torch.from_numpy(dense).to(x.device)
        weights = fit(x[torch.from_numpy(fitted).to(x.device)], target, len(classes), self.options.strength)
        given = (x[torch.from_numpy(tested).to(x.device)] @ weights[:-1] + weights[-1]).argmax(1).cpu().numpy()
        return {"accuracy": float((classes[given] == y[tested]).mean())}


def fit(x: Tensor, y: Tensor, classes: int, strength: float) -> Tensor:
    """The weights of a logistic regression, float64 [D + 1, classes], the last row added to the products.

    Args:
        x: float64 [N, D].
        y: int64 [N].
        classes: C.
        strength: weight of the data against the penalty of the weights.
    """
    scale = 1 / (strength * len(x))  # the mean over samples, which L-BFGS knows how to step on
    with torch.enable_grad():
        weights = torch.zeros(x.shape[1] + 1, classes, dtype=x.dtype, device=x.device, requires_grad=True)
        optimiser = torch.optim.LBFGS(
            [weights], max_iter=STEPS, tolerance_grad=1e-7, tolerance_change=1e-12, line_search_fn="strong_wolfe"
        )

        def loss() -> Tensor:
            optimiser.zero_grad()
            value = functional.cross_entropy(x @ weights[:-1] + weights[-1], y)
            value = value + weights[:-1].square().sum() * (scale / 2)
            value.backward()
            return value

        optimiser.step(loss)
    return weights.detach()


@dmlcore.hookimpl
def dmlcore_metrics() -> list[type]:
    return [LinearProbe]
