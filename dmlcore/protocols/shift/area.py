"""One number for a curve of Recall@1 over shifts of growing size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dmlcore.errors import ConfigError


def area_under_shift(fids: Sequence[float], values: Sequence[float]) -> float:
    """Area under values against Fréchet distances that are scaled to [0, 1], by the trapezoid rule: a mean over the range of
    shifts.

    Args:
        fids: of the splits, in any order, two different ones at least. Equal ones are averaged.
        values: such as Recall@1, one per split.

    Raises:
        ConfigError: fewer than two different distances, or numbers that are not finite.

    Source: Milbich et al., NeurIPS 2021, AUC of Recall@1 over the min-max-scaled FID. Averaging equal distances is ours.
    """
    x, y = np.asarray(fids, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1 or not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ConfigError(f"an area needs as many finite values as distances, got shapes {y.shape} and {x.shape}")
    points, place = np.unique(x, return_inverse=True)
    if len(points) < 2:
        raise ConfigError(f"an area needs two different distances at least, got {len(points)}")
    means = np.bincount(place, y) / np.bincount(place)
    return float(np.trapezoid(means, (points - points[0]) / (points[-1] - points[0])))
