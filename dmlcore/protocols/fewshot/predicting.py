"""From embeddings to labels: nearest support sample in cosine, nearest prototype, and how often they are right."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dmlcore.losses import unit

ROWS = 1024  # compared with everything at a time


def in_batches(network: nn.Module, fetch: Callable[[slice], Tensor], count: int) -> Tensor:
    """Outputs `[N, D]` of a network in evaluation mode, without gradients.

    Args:
        network: samples to rows.
        fetch: the samples of a slice of positions.
        count: N >= 1.
    """
    was_training = network.training
    network.eval()
    with torch.no_grad():
        parts = [network(fetch(slice(start, min(start + ROWS, count)))) for start in range(0, count, ROWS)]
    network.train(was_training)
    return torch.cat(parts)


def nearest_support(queries: Tensor, support: Tensor, labels: Tensor) -> Tensor:
    """The label of the support sample with the greatest cosine, the first of equal ones.

    Args:
        queries: `[Q, D]` raw.
        support: `[S, D]` raw.
        labels: `[S]` int64.

    Returns:
        `[Q]`.
    """
    support = unit(support)
    return torch.cat([labels[(unit(part) @ support.T).argmax(1)] for part in queries.split(ROWS)])


def prototypes_of(support: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Mean raw embedding of each class, `[C, D]`; every class has a sample."""
    sums = support.new_zeros(classes, support.shape[1]).index_add(0, labels, support)
    return sums / torch.bincount(labels, minlength=classes).to(support)[:, None]


def nearest_prototype(queries: Tensor, prototypes: Tensor) -> Tensor:
    """The class whose prototype is nearest in Euclidean distance, `[Q]`; arguments raw `[Q, D]`, `[C, D]`."""
    return torch.cat([torch.cdist(part, prototypes, compute_mode=_EXACT).argmin(1) for part in queries.split(ROWS)])


_EXACT = "donot_use_mm_for_euclid_dist"  # squares of raw embeddings lose digits as differences of products


def leave_one_out_recall(embeddings: Tensor, labels: Tensor) -> float:
    """Share of the samples whose nearest other sample in cosine has their label, of those with another of their label."""
    units = unit(embeddings)
    counts = torch.bincount(labels)
    right = total = 0
    for start in range(0, len(units), ROWS):
        cosines = units[start : start + ROWS] @ units.T  # [R, N]
        rows = torch.arange(len(cosines))
        cosines[rows, rows + start] = -torch.inf
        own_labels = labels[start : start + ROWS]
        counted = counts[own_labels] > 1
        right += int((counted & (labels[cosines.argmax(1)] == own_labels)).sum())
        total += int(counted.sum())
    return right / total if total else 0.0


def leave_one_out_prototypes(embeddings: Tensor, labels: Tensor, classes: int) -> float:
    """Share of the samples that are nearest to their class's prototype, which is the mean of the others of the class."""
    prototypes = prototypes_of(embeddings, labels, classes)
    counts = torch.bincount(labels, minlength=classes).to(embeddings)[labels]  # [N]
    counted = counts > 1
    right = 0
    for start in range(0, len(embeddings), ROWS):
        part, own_labels = embeddings[start : start + ROWS], labels[start : start + ROWS]
        squares = torch.cdist(part, prototypes, compute_mode=_EXACT).square()
        # without the sample itself the mean moves away from it: |x - (n p - x) / (n - 1)| = n / (n - 1) |x - p|
        factor = (counts[start : start + ROWS] / (counts[start : start + ROWS] - 1).clamp_min(1)).square()
        rows = torch.arange(len(part))
        squares[rows, own_labels] *= factor
        right += int((counted[start : start + ROWS] & (squares.argmin(1) == own_labels)).sum())
    return right / max(int(counted.sum()), 1)
