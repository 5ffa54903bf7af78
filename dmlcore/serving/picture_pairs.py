"""Near duplicates among pictures, by their pixels: recompressed, resized, brighter, cut at the edges, or mirrored.

Small grey pictures give candidates. Of these, larger ones are compared in several cuts.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dmlcore import progress
from dmlcore.data import LabelledDataset
from dmlcore.evaluation import evaluating
from dmlcore.serving.entries import unit

SIDE = 8  # pixels of the pictures that give candidates
CANDIDATE = 0.75  # their correlation
LARGE, COMPARED = 64, 24  # pixels of the pictures that are cut, and of the cuts
CUTS = (1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.82)  # sides of the cuts around the centre
PAIRS = 256  # at a time


def small_pictures(dataset: LabelledDataset) -> np.ndarray:
    """Grey pictures less their mean brightness, as unit vectors: float32 [N, SIDE^2]. Their products are correlations."""
    parts = [functional.adaptive_avg_pool2d(_grey(batch), SIDE).flatten(1) for batch in evaluating.samples(dataset)]
    pictures = torch.cat(parts)
    return unit((pictures - pictures.mean(1, keepdim=True)).numpy())


def mirrored(pictures: np.ndarray) -> np.ndarray:
    """The same pictures, left for right."""
    return np.ascontiguousarray(pictures.reshape(-1, SIDE, SIDE)[:, :, ::-1]).reshape(len(pictures), -1)


def likeness(dataset: LabelledDataset, pairs: np.ndarray, is_mirrored: np.ndarray) -> np.ndarray:
    """The highest correlation of two pictures over cuts of the one or the other, float32 [P].

    Args:
        dataset: of pictures.
        pairs: int64 [P, 2], positions.
        is_mirrored: bool [P], whether the second is looked at left for right.
    """
    values = np.empty(len(pairs), dtype=np.float32)
    for start in progress.track(range(0, len(pairs), PAIRS), "comparing pictures", len(pairs), PAIRS):
        part = slice(start, start + PAIRS)
        first, second = (functional.interpolate(_grey(dataset.batch(pairs[part, side])), LARGE, mode="area") for side in (0, 1))
        flips = torch.from_numpy(is_mirrored[part])
        second = torch.where(flips[:, None, None, None], second.flip(3), second)
        best = torch.full((len(first),), -1.0)
        for share in CUTS:
            for cut, whole in ((first, second), (second, first)):
                best = torch.maximum(best, (_compared(cut, share) * _compared(whole, 1.0)).sum(1))
        values[part] = best.numpy()
    return values


def _grey(batch: Tensor) -> Tensor:
    return batch.float().mean(1, keepdim=True)  # [b, 1, H, W]


def _compared(pictures: Tensor, share: float) -> Tensor:
    """A cut around the centre as unit vectors [b, COMPARED^2]."""
    edge = round(LARGE * (1 - share) / 2)
    cut = pictures[:, :, edge : LARGE - edge, edge : LARGE - edge]
    rows = functional.interpolate(cut, COMPARED, mode="bilinear", antialias=True, align_corners=False).flatten(1)
    return functional.normalize(rows - rows.mean(1, keepdim=True))
