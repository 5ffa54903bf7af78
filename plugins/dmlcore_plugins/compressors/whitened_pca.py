"""Principal component analysis with whitening."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.ensemble import Projection, principal_axes


class WhitenedPca(Projection):
    """`((z - mean) @ axes.T) / sqrt((1 - shrinkage) v + shrinkage mean(v))` with the `out` directions of largest variance `v`
    and `mean(v)` over all directions of the embedding.

    Whitening weighs directions alike, so that a few strong ones no longer decide every similarity. Dividing by tiny variances
    would weigh noise as much as signal; shrinking the variances towards their mean bounds that, and 1 gives plain PCA.
    A direction without any variance is left out where `shrinkage = 0`. Scaling all embeddings changes no cosine of the results.

    Source: Jégou, Chum, "Negative Evidences and Co-occurrences in Image Retrieval: The Benefit of PCA and Whitening", ECCV
    2012; the shrinkage: Ledoit, Wolf, "A Well-Conditioned Estimator for Large-Dimensional Covariance Matrices", Journal of
    Multivariate Analysis, 2004. Deviation: its intensity is an option, not estimated.
    """

    name = "whitened_pca"

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options of `whitened_pca`."""

        shrinkage: float = 0.1
        """How far variances move towards their mean, in [0, 1]: 0 whitens fully, 1 not at all."""

        def __post_init__(self) -> None:
            check_range("shrinkage", self.shrinkage, least=0, most=1)

    def learn(self, embeddings: Tensor, labels: Tensor, seed: int) -> None:
        mean, axes, variances = principal_axes(embeddings)
        average = variances.mean()
        shrunk = torch.lerp(variances, average, self.options.shrinkage)[: self.out] / torch.where(average > 0, average, 1.0)
        factors = torch.where(shrunk > 0, shrunk.rsqrt(), 0.0) if average > 0 else torch.ones(self.out, dtype=torch.float64)
        self.mean.copy_(mean)
        self.axes.copy_(axes[: self.out] * factors[:, None])


@dmlcore.hookimpl
def dmlcore_compressors() -> list[type]:
    return [WhitenedPca]
