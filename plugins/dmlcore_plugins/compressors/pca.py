"""Principal component analysis."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

import dmlcore
from dmlcore.ensemble import Projection, principal_axes


class Pca(Projection):
    """`(z - mean) @ axes.T` with the `out` directions of largest variance: of all linear maps to `out` dimensions the one that
    loses least of the squared distances. The baseline that other compressors have to beat.

    Scaling all embeddings changes no cosine of the results. With fewer embeddings than `out` the remaining axes are some
    orthonormal directions.

    Source: Pearson, "On Lines and Planes of Closest Fit", Philosophical Magazine, 1901; Jolliffe, "Principal Component
    Analysis", 2002, chapter 2.
    """

    name = "pca"

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options of `pca`."""

        centre: bool = True
        """Subtract the mean of the training embeddings first. Without it the axes pass through the origin, which keeps cosines
        instead of distances as they are."""

    def learn(self, embeddings: Tensor, labels: Tensor, seed: int) -> None:
        principal = principal_axes(embeddings, centre=self.options.centre)
        self.mean.copy_(principal.mean)
        self.axes.copy_(principal.axes[: self.out])


@dmlcore.hookimpl
def dmlcore_compressors() -> list[type]:
    return [Pca]
