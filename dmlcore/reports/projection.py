"""Embeddings in the plane: principal axes, and UMAP where it is installed and asked for."""

from __future__ import annotations

import importlib.util

import numpy as np
import torch
from torch import Tensor

from dmlcore.ensemble.principal import principal_axes
from dmlcore.evaluation.plain import prepared

POINTS = 2_000


def projections(embeddings: Tensor, *, with_umap: bool = False) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Places in the plane for an even sample of at most `POINTS` embeddings.

    Args:
        embeddings: [N, D] floating point, N >= 1. Their directions are looked at.
        with_umap: also by UMAP, if it is installed, which takes seconds to load.

    Returns:
        int64 [n], the positions of the sample, and by name of the method float64 [n, 2], each column in 0..1.
    """
    positions = np.unique(np.linspace(0, len(embeddings) - 1, min(POINTS, len(embeddings))).round().astype(np.int64))
    units = prepared(embeddings.detach().float().cpu(), "cosine")
    fit = principal_axes(units)
    sample = units[torch.from_numpy(positions)]
    plane = ((sample.double() - fit.mean) @ fit.axes[:2].T).numpy()  # [n, 2]
    if plane.shape[1] == 1:
        plane = np.concatenate([plane, np.zeros_like(plane)], axis=1)
    share = float(fit.variances[:2].sum() / fit.variances.sum().clamp_min(1e-30))
    places = {f"principal axes, {share:.0%} of the variance": _in_square(plane)}
    if with_umap and len(positions) > 15 and importlib.util.find_spec("umap") is not None:
        places = {"UMAP": _in_square(_umap(sample.numpy())), **places}
    return positions, places


def _umap(sample: np.ndarray) -> np.ndarray:
    import warnings

    import umap  # pyright: ignore[reportMissingImports]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a seed means one thread
        return np.asarray(umap.UMAP(metric="cosine", random_state=0).fit_transform(sample), dtype=np.float64)


def _in_square(plane: np.ndarray) -> np.ndarray:
    low, size = plane.min(0), np.ptp(plane, axis=0)
    return (plane - low) / np.where(size > 0, size, 1)
