"""Draws without a state: random numbers that are hashes of a seed and of a batch, and the weights by which pairs are drawn.

The same batch in any order draws the same, and another batch draws anew.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dmlcore.losses.distances import unit


def scrambled(x: Tensor) -> Tensor:
    """int64 to int64 whose bits all depend on all bits: the finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    x = x - 7046029254386353131  # 0x9E3779B97F4A7C15 as a signed number; products wrap around
    x = (x ^ ((x >> 30) & (2**34 - 1))) * -4658895280553007687
    x = (x ^ ((x >> 27) & (2**37 - 1))) * -7723592293110705685
    return x ^ ((x >> 31) & (2**33 - 1))


def hashes(numbers: Tensor) -> Tensor:
    """A hash of each row.

    Args:
        numbers: `[N, D]` int64.

    Returns:
        `[N]` int64.
    """
    factors = scrambled(torch.arange(numbers.shape[1], device=numbers.device)) | 1
    return scrambled((numbers * factors).sum(1))


def fractions(bits: Tensor) -> Tensor:
    """Hashes as float64 in [0, 1), of the same shape."""
    return ((bits >> 11) & (2**53 - 1)).double() * 2.0**-53


@torch.no_grad()
def pair_draws(anchors: Tensor, references: Tensor, labels: Tensor, seed: int) -> Tensor:
    """A random number for each anchor with each reference.

    It depends on the seed, on the directions of both, and on the labels of all references. Directions are taken roughly, about
    four steps for each component. So rounding errors, as between one process and several, hardly ever draw anew. The labels of
    a batch do. The two directions of a pair have numbers of their own. References of one rough direction have the same number,
    and the first of them is drawn.

    Args:
        anchors: `[A, D]` floating point.
        references: `[N, D]`.
        labels: `[N]` of the references, or `N` rows.
        seed: of the draws.

    Returns:
        `[A, N]` float64 in [0, 1).
    """
    steps = anchors.shape[1] ** 0.5  # a component of a random direction deviates by the inverse
    of_anchors, of_references = (hashes((unit(x) * steps).round().long()) for x in (anchors, references))
    of_batch = hashes(labels.reshape(len(labels), -1).long()).sum()
    keys = scrambled(of_anchors + scrambled(of_batch + seed))
    return fractions(scrambled(keys[:, None] ^ of_references))


@torch.no_grad()
def drawn(numbers: Tensor, mask: Tensor, log_weights: Tensor | None = None) -> Tensor:
    """One column of each row, drawn by weights among those of a mask.

    The one with the highest `log w - log(-log u)` is taken, whose probability is proportional to `w` (Gumbel). So it does not
    matter in which order the columns stand.

    Args:
        numbers: `[A, N]` float64 in [0, 1), `N >= 1`.
        mask: `[A, N]` bool.
        log_weights: `[A, N]`; None: all columns are as likely.

    Returns:
        `[A]` int64; any column where a row has none.
    """
    scores = -torch.log(-torch.log(numbers.clamp(1e-300, 1 - 2.0**-53)))
    if log_weights is not None:
        scores = scores + log_weights
    return torch.where(mask, scores, -torch.inf).argmax(1)


def log_inverse_density(distances: Tensor, width: int, cutoff: float) -> Tensor:
    """`-log q(d)` with the density `q(d) = d^(D - 2) (1 - d^2 / 4)^((D - 3) / 2)` of the distances of points that are spread
    evenly over the unit sphere, up to a constant.

    Args:
        distances: Euclidean ones of unit vectors, of any shape.
        width: `D`.
        cutoff: smaller distances count as this.

    Returns:
        float64 of the same shape.

    Source: Wu, Manmatha, Smola, Krähenbühl, "Sampling Matters in Deep Embedding Learning", ICCV 2017, section 4.
    """
    d = distances.double().clamp(cutoff, 2 - 1e-6)
    return (2 - width) * torch.log(d) - (width - 3) / 2 * torch.log(1 - d.square() / 4)
