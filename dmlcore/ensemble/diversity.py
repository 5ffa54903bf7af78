"""How alike the heads of an ensemble are, as terms to add to its loss: by their vectors, and by their similarities."""

from __future__ import annotations

import torch
from torch import Tensor

from dmlcore.errors import ConfigError


def _checked(heads: Tensor) -> Tensor:
    if heads.ndim != 3 or not heads.is_floating_point():
        raise ConfigError(f"heads must be floating point [B, m, d], got {list(heads.shape)} of {heads.dtype}")
    if heads.shape[1] < 2:
        raise ConfigError(f"diversity compares heads with one another and needs at least 2, got {heads.shape[1]}")
    return heads.float() if heads.dtype in (torch.float16, torch.bfloat16) else heads


def _pairs(heads: Tensor) -> tuple[Tensor, Tensor]:
    first, second = torch.triu_indices(heads.shape[1], heads.shape[1], 1, device=heads.device)
    return first, second


def distance_diversity(heads: Tensor) -> Tensor:
    """`max(0, 2 - 2 / (m (m - 1)) sum_{i<j} mean_b |x_bi - x_bj|)`: the published term, which pushes the vectors that different
    heads give to one sample apart.

    It compares coordinates of different spaces: turning one head lowers it and changes no similarity. It cannot reach 0 for
    `m > 2`, since `m` unit vectors have a mean distance of at most `sqrt(2 m / (m - 1))`.

    Args:
        heads: `[B, m, d]` floating point, unit norm, `m >= 2`.

    Returns:
        Scalar in [0, 2], float32 at least; 0 without samples. The gradient is 0 between vectors that coincide.

    Raises:
        ConfigError: another number of dimensions, or fewer than 2 heads.

    Source: Zabihzadeh, Alitbi, Mousavirad, "Ensemble of Loss Functions to Improve Generalizability of Deep Metric Learning
    methods", 2021, the diversity of WEDL. Deviation: no 1e-6 is added to the differences.
    """
    heads = _checked(heads)
    if len(heads) == 0:
        return heads.sum()
    first, second = _pairs(heads)
    apart = torch.linalg.vector_norm(heads[:, first] - heads[:, second], dim=2)  # [B, m (m - 1) / 2]
    return torch.relu(2 - apart.mean())


def similarity_diversity(heads: Tensor) -> Tensor:
    """Centred kernel alignment of the heads' similarity matrices, `max(0, CKA(K_i, K_j))` averaged over the pairs of heads.

    `K = x x^T` of a head within the batch; `CKA = <K, L> / (|K| |L|)` of matrices without diagonal that are centred so that
    the product is an unbiased estimate: heads that have nothing in common give 0 on average at any batch size, where the
    biased form grows with `d / B`. Turning, mirroring or scaling a head changes nothing. All heads see the same classes, so
    good heads are never unrelated; a large weight works against the losses.

    Args:
        heads: `[B, m, d]` floating point, unit norm, `m >= 2`.

    Returns:
        Scalar in [0, 1], float32 at least: 1 where all heads order and space the batch alike. 0, with zero gradient, below 4
        samples, where the estimate is not defined. A head whose vectors all coincide counts as unrelated.

    Raises:
        ConfigError: another number of dimensions, or fewer than 2 heads.

    Source: Kornblith, Norouzi, Lee, Hinton, "Similarity of Neural Network Representations Revisited", ICML 2019, section 3; the
    unbiased product: Song, Smola, Gretton, Bedo, Borgwardt, "Feature Selection via Dependence Maximization", JMLR 2012, eq. 5,
    used for CKA by Nguyen, Raghu, Kornblith, ICLR 2021, eq. 3. Deviation: negative estimates count as 0.
    """
    heads = _checked(heads)
    count = len(heads)
    if count < 4:
        return heads.sum() * 0
    with torch.autocast(heads.device.type, enabled=False):
        rounding = (8 * torch.finfo(heads.dtype).eps) ** 2 * heads.detach().square().sum((0, 2))  # [m]
        points = (heads - heads.mean(0)).transpose(0, 1)  # [m, B, d]
        off_diagonal = 1 - torch.eye(count, dtype=heads.dtype, device=heads.device)
        gram = (points @ points.transpose(1, 2)) * off_diagonal  # [m, B, B]
        rows = gram.sum(2) / (count - 2)  # [m, B]
        total = gram.sum((1, 2)) / ((count - 1) * (count - 2))  # [m]
        centred = (gram - rows[:, :, None] - rows[:, None, :] + total[:, None, None]) * off_diagonal
        flat = centred.flatten(1)  # [m, B * B]
        norms = torch.linalg.vector_norm(flat, dim=1, keepdim=True)  # [m, 1]
        known = norms > rounding[:, None]
        flat = torch.where(known, flat / torch.where(known, norms, torch.ones_like(norms)), torch.zeros_like(flat))
        first, second = _pairs(heads)
        return torch.relu((flat @ flat.T)[first, second]).mean()
