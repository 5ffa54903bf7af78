"""Principal component analysis after whitening within classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.ensemble import Projection, principal_axes
from dmlcore.ensemble.principal import PIECE_ROWS, axes_of


class Wccn(Projection):
    """`(z - mean) @ W @ axes.T` with `W = ((1 - a) S + a tr(S) / D I)^(-1/2)`, `S` the covariance within the training classes,
    `a` the shrinkage, and `axes` the `out` principal axes of `(z - mean) @ W`.

    Directions in which samples of one class differ count less, so that what is left tells classes apart. Classes of a single
    sample say nothing about `S`. Where all are of that kind, it is plain PCA. Scaling all embeddings changes no cosine of the
    results.

    Source: within-class covariance normalisation, Hatch, Kajarekar, Stolcke, "Within-Class Covariance Normalization for
    SVM-based Speaker Recognition", Interspeech 2006. The shrinkage: Ledoit, Wolf, "A Well-Conditioned Estimator for
    Large-Dimensional Covariance Matrices", Journal of Multivariate Analysis, 2004. Deviation: its intensity is an option.
    """

    name = "wccn"
    uses_labels = True

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options of `wccn`."""

        shrinkage: float = 0.1
        """How far the covariance moves towards a multiple of the identity, in (0, 1]: 1 is plain PCA."""

        def __post_init__(self) -> None:
            check_range("shrinkage", self.shrinkage, above=0, most=1)

    def learn(self, embeddings: Tensor, labels: Tensor, seed: int) -> None:
        mean, axes, variances = principal_axes(embeddings)
        covariance = axes.T * variances @ axes  # [D, D]
        whitener = self._whitener(embeddings, labels)
        _, directions = axes_of(whitener @ covariance @ whitener)
        self.mean.copy_(mean)
        self.axes.copy_(directions[: self.out] @ whitener)

    def _whitener(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """`W` up to a factor, float64 `[D, D]` on the CPU."""
        classes = labels.unique(return_inverse=True)[1].cpu()
        sums = torch.zeros(int(classes.max()) + 1, self.width, dtype=torch.float64)  # CUDA would add in any order
        within = torch.zeros(self.width, self.width, dtype=torch.float64, device=embeddings.device)
        pieces = list(zip(embeddings.split(PIECE_ROWS), classes.split(PIECE_ROWS), strict=True))
        for rows, members in pieces:
            sums.index_add_(0, members, rows.double().cpu())
        means = (sums / classes.bincount()[:, None]).to(embeddings.device)
        for rows, members in pieces:
            centred = rows.double() - means[members.to(means.device)]
            within.addmm_(centred.T, centred)
        within = within.cpu()
        average = within.diagonal().mean()
        identity = torch.eye(self.width, dtype=torch.float64)
        if average <= 0:
            return identity
        shrunk = torch.lerp(within / average, identity, self.options.shrinkage)
        values, vectors = torch.linalg.eigh((shrunk + shrunk.T) / 2)
        return vectors * values.rsqrt() @ vectors.T


@dmlcore.hookimpl
def dmlcore_compressors() -> list[type]:
    return [Wccn]
