"""Alignment and uniformity."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.evaluation import Metric
from dmlcore.losses import unit

SIMILARITIES = 1 << 22  # held at a time


class Uniformity(Metric):
    """How close samples of one class lie and how evenly all of them fill the sphere; for both, lower is better.

    `alignment = mean over pairs of one class of |x - y|^2`, `uniformity = log(mean over all pairs of exp(-t |x - y|^2))`, x and
    y of unit norm, never a sample with itself. O(N^2 D) time, bounded memory.

    Source: Wang, Isola, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the
    Hypersphere", ICML 2020, section 4.1, with alpha = 2.
    """

    name = "uniformity"

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options of `uniformity`."""

        t: float = 2.0
        """Sharpness of the kernel, > 0."""

        def __post_init__(self) -> None:
            check_range("t", self.t, above=0)

    def __call__(self, embeddings: Tensor, labels: Tensor) -> dict[str, float]:
        x = unit(embeddings)  # [N, D]
        count = len(x)
        classes, dense, sizes = torch.unique(labels, return_inverse=True, return_counts=True)
        sums = torch.zeros(len(classes), x.shape[1], dtype=torch.float64, device=x.device).index_add(0, dense, x.double())
        norms = x.double().square().sum()  # a zero vector stays zero
        pairs = int((sizes * (sizes - 1)).sum())
        products = float(sums.square().sum() - norms)  # over ordered pairs of one class
        squares = 2 * float((x.double().square().sum(1) * (sizes[dense] - 1)).sum())
        total = 0.0
        for part in x.split(max(1, SIMILARITIES // max(count, 1))):
            distances = part.square().sum(1)[:, None] + x.square().sum(1) - 2 * part @ x.T  # [c, N]
            total += float(torch.exp(-self.options.t * distances.clamp_min(0)).double().sum())
        distinct = total - count  # a sample with itself gave 1
        undefined = float("nan")
        return {
            "alignment": (squares - 2 * products) / pairs if pairs else undefined,
            "uniformity": float(torch.tensor(distinct / (count * (count - 1))).log()) if count > 1 else undefined,
        }


@dmlcore.hookimpl
def dmlcore_metrics() -> list[type]:
    return [Uniformity]
