"""Shares of an ensemble: weights that sum to 1 above a floor, and factors that put losses on one scale."""

from __future__ import annotations

import torch
from torch import Tensor

from dmlcore.ensemble.weighting import RunningMeans
from dmlcore.errors import ConfigError


def project_simplex(values: Tensor, floor: Tensor | float = 0.0) -> Tensor:
    """The nearest point, in Euclidean distance, of `{w >= floor, sum w = 1}`.

    Args:
        values: `[L]` finite.
        floor: a number, or `[L]`, with a sum below 1.

    Returns:
        `[L]`: `w = floor + max(values - floor - theta, 0)` with the `theta` that makes the sum 1.

    Source: Duchi et al., "Efficient Projections onto the l1-Ball", ICML 2008, fig. 1, shifted by the floor.
    """
    floor = floor.to(values).expand_as(values) if isinstance(floor, Tensor) else torch.full_like(values, floor)
    free = values - floor
    room = 1 - floor.sum()
    ordered = free.sort(descending=True).values
    excess = (ordered.cumsum(0) - room) / torch.arange(1, len(values) + 1, device=values.device)
    theta = excess.max()  # it rises as long as the next value is above it, so this is the last of the values that stay free
    return floor + (free - theta).clamp_min(0)


def floored_shares(prior: Tensor, floor: float | None) -> tuple[Tensor, float]:
    """Initial shares above a floor.

    Args:
        prior: `[L]`, sum 1.
        floor: the smallest share, or None for the published `1 / (4 L)`.

    Returns:
        The shares `[L]` and the floor.

    Raises:
        ConfigError: a share is not above the floor.
    """
    least = 1 / (4 * len(prior)) if floor is None else floor
    for index, share in enumerate(prior.tolist()):
        if not share > least:
            raise ConfigError(
                f"weight {index + 1} of {len(prior)} is a share of {share:.4g} of their sum, but must be above the"
                f" floor {least:.4g}; give it more, leave the loss out, or lower the option floor"
            )
    return prior.clone(), least


class Equaliser(RunningMeans):
    """Factors that bring losses to one scale: `lbar / lbar_i`, with `lbar_i` the mean of loss i over all batches so far, the
    current one included, and `lbar` the mean of the `lbar_i`. Constants for the gradient.

    A loss whose mean is not above `1e-6 lbar`, such as a hinge that has been 0 from the start, keeps the factor 1.

    Source: Zabihzadeh, Alitbi, Mousavirad, "Ensemble of Loss Functions to Improve Generalizability of Deep Metric Learning
    Methods", MTAP 2023 (arXiv 2107.01130): the equalised loss, after the authors' code. The guard against zero is ours.
    """

    def _level(self) -> tuple[Tensor, Tensor]:
        level = self.mean.clamp_min(0).mean()
        return level, self.mean > 1e-6 * level

    @property
    def factors(self) -> Tensor:
        """`[L]` `lbar / lbar_i`; ones before the first step."""
        level, usable = self._level()
        return torch.where(usable, level / torch.where(usable, self.mean, 1), 1)

    def relative(self, values: Tensor) -> Tensor:
        """`[L]` values in units of their own mean, `l_i / lbar_i`: without scale, and near 1 where a loss does not change."""
        level, usable = self._level()
        unit = torch.where(usable, self.mean, torch.where(level > 0, level, 1))
        return values.detach().to(self.mean) / unit


def gradient_only(objective: Tensor) -> Tensor:
    """0, with the gradient of the objective: adds a weighting's own objective without changing the value of the loss."""
    return objective - objective.detach()
