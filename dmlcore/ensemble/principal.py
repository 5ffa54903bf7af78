"""Principal axes of many embeddings, from sums over pieces of them, and what compresses by such axes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmlcore.ensemble.compressor import Compressor

PIECE_ROWS = 1 << 14  # 64 MB of float64 at 512 dimensions


class PrincipalAxes(NamedTuple):
    """Principal components, the largest variance first, float64 on the CPU.

    Attributes:
        mean: `[W]`.
        axes: `[W, W]` orthonormal rows; the entry of largest size of each is positive.
        variances: `[W]`, >= 0, along the axes; 0 along those that no embedding leaves.
    """

    mean: Tensor
    axes: Tensor
    variances: Tensor


@torch.no_grad()
def principal_axes(embeddings: Tensor, *, centre: bool = True) -> PrincipalAxes:
    """The eigenvectors of the covariance, whose matrix is summed in float64 over pieces: no `N x N` and no copy.

    Args:
        embeddings: `[N, W]` floating point, `N >= 1`; fewer than `W`, duplicates and a single one are allowed.
        centre: subtract the mean; False takes axes through the origin (uncentred second moments) and gives a mean of 0.

    Returns:
        Mean, axes and variances.
    """
    count, width = embeddings.shape
    mean = torch.zeros(width, dtype=torch.float64, device=embeddings.device)
    if centre:
        for piece in embeddings.split(PIECE_ROWS):
            mean += piece.double().sum(0)
        mean /= count
    covariance = torch.zeros(width, width, dtype=torch.float64, device=embeddings.device)
    for piece in embeddings.split(PIECE_ROWS):
        piece = piece.double() - mean
        covariance.addmm_(piece.T, piece)
    variances, axes = axes_of((covariance / count).cpu())  # eigenvectors on the CPU: the same bits every time
    resolution = width * torch.finfo(torch.float64).eps * variances[0]
    return PrincipalAxes(mean.cpu(), axes, torch.where(variances > resolution, variances, 0.0))


def axes_of(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Variances `[W]`, the largest first, and axes `[W, W]` of a covariance, as in `PrincipalAxes`.

    Args:
        covariance: `[W, W]` float64 on the CPU, symmetric but for rounding.
    """
    variances, columns = torch.linalg.eigh((covariance + covariance.T) / 2)
    variances, axes = variances.flip(0).clamp_min(0), columns.flip(1).T  # [W], [W, W]
    sign = axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()  # [W, 1]
    return variances, axes * sign


class Projection(Compressor):
    """`(z - mean) @ axes.T`. Subclasses learn both."""

    is_ordered = True
    mean: Tensor
    axes: Tensor

    def __init__(self, width: int, out: int, options: Any = None, **options_by_name: Any) -> None:
        super().__init__(width, out, options, **options_by_name)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("axes", torch.zeros(out, width))

    def forward(self, z: Tensor) -> Tensor:
        self.check_fitted()
        return (z.to(self.axes.dtype) - self.mean) @ self.axes.T  # [B, out]
