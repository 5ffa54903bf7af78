"""The published objective of compression, distances matched up to a common factor, and fitting a map by it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from dmlcore.losses.distances import squared_euclidean_distances


def shares_of_distances(points: Tensor) -> Tensor:
    """Squared Euclidean distances of all pairs, divided by their sum: the same for the points times any factor.

    Args:
        points: `[B, D]` floating point.

    Returns:
        `[B, B]` >= 0, float32 at least, of sum 1; all 0, with zero gradient, where the points coincide.
    """
    with torch.autocast(points.device.type, enabled=False):
        points = points.float() if points.dtype in (torch.float16, torch.bfloat16) else points
        size = points.detach().abs().amax() if points.numel() else points.new_ones(())
        points = points / torch.where(size > 0, size, torch.ones_like(size))  # squares of tiny or huge numbers stay finite
        squares = squared_euclidean_distances(points, points, normalise=False)  # [B, B]
        total = squares.sum()
        rounding = 8 * torch.finfo(points.dtype).eps * points.detach().norm(dim=1)  # [B]
        apart = total > len(points) * rounding.square().sum()  # below it distances are the rounding of equal points
        return torch.where(apart, squares / torch.where(apart, total, torch.ones_like(total)), torch.zeros_like(squares))


def distance_matching(compressed: Tensor, embeddings: Tensor) -> Tensor:
    """`B^2 |D(g) / sum D(g) - D(z) / sum D(z)|_F` with `D` the squared Euclidean distances of all pairs of a batch.

    Multiplying all embeddings, or all compressed ones, by a factor changes nothing. Points that all coincide count as distances
    of 0 instead of dividing by 0.

    Args:
        compressed: `[B, out]` floating point.
        embeddings: `[B, W]` floating point; detached.

    Returns:
        Scalar >= 0, float32 at least.

    Source: Zabihzadeh, Alitbi, Mousavirad, "Ensemble of Loss Functions to Improve Generalizability of Deep Metric Learning
    methods", 2021, the compression of WEDL_C as in the authors' code.
    """
    difference = shares_of_distances(compressed) - shares_of_distances(embeddings.detach())
    return len(compressed) ** 2 * torch.linalg.vector_norm(difference)


def fit_by_distances(
    compress: Callable[[Tensor], Tensor],
    parameters: Iterable[Tensor],
    embeddings: Tensor,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
) -> None:
    """Lower `distance_matching` by Adam on shuffled batches, with a learning rate that falls to 0 as a cosine.

    The batches follow the seed alone; the global random state is left as it is.

    Args:
        compress: `[B, W]` to `[B, out]`, differentiable in the parameters.
        parameters: what is learnt, changed in place.
        embeddings: `[N, W]`; batches go to the device of the parameters.
        steps: optimiser steps, >= 0.
        batch: embeddings in a step, >= 2; all of them if there are fewer.
        learning_rate: of the first step, > 0.
        seed: of the batches.
    """
    learnt = list(parameters)
    optimiser = torch.optim.Adam(learnt, lr=learning_rate)
    generator = torch.Generator().manual_seed(seed)
    order, used = torch.empty(0, dtype=torch.int64), 0
    for step in range(steps):
        if used + batch > len(order):
            order, used = torch.randperm(len(embeddings), generator=generator), 0
        index = order[used : used + batch]
        used += batch
        with torch.inference_mode(False), torch.enable_grad():
            z = embeddings[index.to(embeddings.device)].to(learnt[0])  # [B, W]
            loss = distance_matching(compress(z), z)
            gradients = torch.autograd.grad(loss, learnt)
        for parameter, gradient in zip(learnt, gradients, strict=True):
            parameter.grad = gradient
        optimiser.param_groups[0]["lr"] = learning_rate * (1 + math.cos(math.pi * step / steps)) / 2
        optimiser.step()
    optimiser.zero_grad()
