"""How alike the heads of an ensemble are, as a term to add to its loss."""

from __future__ import annotations

import torch
from torch import Tensor

from dmlcore.errors import ConfigError


def checked(heads: Tensor) -> Tensor:
    """Heads `[B, m, d]` in float32 at least.

    Raises:
        ConfigError: another number of dimensions, or fewer than 2 heads.
    """
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
    heads = checked(heads)
    if len(heads) == 0:
        return heads.sum()
    first, second = _pairs(heads)
    apart = torch.linalg.vector_norm(heads[:, first] - heads[:, second], dim=2)  # [B, m (m - 1) / 2]
    return torch.relu(2 - apart.mean())
