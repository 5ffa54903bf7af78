"""Density of the embedding space, and the decay of its spectrum."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.evaluation import Metric
from dmlcore.losses import unit

ROWS = 1 << 12  # of distances that are held at a time, for each of which there is one to every other


class Density(Metric):
    """How tightly classes lie beside how far apart they are, and in how many directions embeddings spread.

    `intra_distance` is the mean Euclidean distance of two samples of a class, over all such pairs. `inter_distance` is that of
    the means of two classes. `density` is the first over the second. `spectral_decay = KL(uniform || s)` compares the singular
    values `s` of the embeddings `[N, D]`, scaled to sum 1 after the `skipped` largest, with equal ones: 0 where all directions
    are used alike, larger where few are. Embeddings have unit norm. Networks that transfer well tend to have a low decay.

    O(n^2 D) time in each class of n samples, O(C^2 D) between the C classes, O(N D^2) for the spectrum.

    Source: Roth, Milbich, Sinha, Gupta, Ommer, Cohen, "Revisiting Training Strategies and Generalization Performance in Deep
    Metric Learning", ICML 2020, section 5; used for ooDML (Milbich et al., NeurIPS 2021).
    """

    name = "density"

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options of `density`."""

        skipped: int = 1
        """Largest singular values that the decay leaves out, as the mean direction is of no interest, >= 0."""

        def __post_init__(self) -> None:
            check_range("skipped", self.skipped, least=0)

    def __call__(self, embeddings: Tensor, labels: Tensor) -> dict[str, float]:
        x = unit(embeddings).double()  # [N, D]
        _, dense, sizes = torch.unique(labels, return_inverse=True, return_counts=True)
        order = dense.argsort(stable=True)
        inside, pairs = 0.0, 0
        for own in x[order].split(sizes.tolist()):
            inside += _summed_distances(own)
            pairs += len(own) * (len(own) - 1)
        means = torch.zeros(len(sizes), x.shape[1], dtype=x.dtype, device=x.device).index_add(0, dense, x) / sizes[:, None]
        between = _summed_distances(means)
        count = len(means) * (len(means) - 1)
        intra, inter = (inside / pairs if pairs else torch.nan), (between / count if count else torch.nan)
        return {
            "intra_distance": intra,
            "inter_distance": inter,
            "density": intra / inter if inter else torch.nan,
            "spectral_decay": self._decay(x),
        }

    def _decay(self, x: Tensor) -> float:
        values = torch.linalg.eigvalsh(x.T @ x).clamp_min(0).sqrt().flip(0)  # [D], the singular values of x
        values = values[: min(x.shape)][self.options.skipped :]
        if not len(values) or not values.sum() > 0:
            return torch.nan
        shares = values / values.sum()
        return float((-(shares * len(shares)).log()).mean())  # infinite where a direction is not used at all


def _summed_distances(points: Tensor) -> float:
    """Euclidean distances of all ordered pairs of points `[n, D]` together."""
    total = 0.0
    for part in points.split(max(1, ROWS * ROWS // max(len(points), 1))):
        total += float(torch.cdist(part, points, compute_mode="donot_use_mm_for_euclid_dist").sum())
    return total


@dmlcore.hookimpl
def dmlcore_metrics() -> list[type]:
    return [Density]
