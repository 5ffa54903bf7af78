"""The Fréchet distance between two sets of vectors, each taken as a normal distribution. What the vectors are is not here."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dmlcore.errors import DataError

_BLOCK = 4096  # rows that are factorised at a time, so that a large set is never copied whole


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """How far two sets of vectors are apart, in mean and covariance.

        ||mu_a - mu_b||^2 + Tr(C_a + C_b - 2 (C_a C_b)^(1/2))

    The trace of the root is the nuclear norm of `A B^T` with the centred sets `A = (a - mu_a) / sqrt(n_a - 1)` and `B`, whose
    squared singular values are the eigenvalues of `C_a C_b`. A set of more rows than columns is first replaced by its
    triangular factor, so that the cost is O(min(n, F)^2 max(n, F)) and no matrix is larger than F x F or n x n.

    Args:
        a: [n_a, F] numbers, n_a >= 2. Taken as float64.
        b: [n_b, F], n_b >= 2.

    Returns:
        At least 0, and 0 for sets of the same mean and covariance, up to rounding (about 1e-15 of the variances).

    Raises:
        DataError: fewer than two rows, no or different columns, numbers that are not finite.

    Source: Dowson and Landau, "The Fréchet Distance between Multivariate Normal Distributions", J. Multivariate Anal. 1982.
    The published splits of ooDML add 1e-8 to both diagonals for their matrix root. Without a root there is no need.
    """
    a, b = _checked(a, "first"), _checked(b, "second")
    if a.shape[1] != b.shape[1]:
        raise DataError(f"the first set has {a.shape[1]} columns and the second {b.shape[1]}, but a distance needs the same")
    mean_a, mean_b = a.mean(0), b.mean(0)
    factor_a, factor_b = _factor(a, mean_a), _factor(b, mean_b)
    shift = mean_a - mean_b
    root = torch.linalg.svdvals(factor_a @ factor_b.T).sum()
    return max(0.0, float(shift @ shift) + float(factor_a.square().sum() + factor_b.square().sum() - 2 * root))


def _checked(rows: np.ndarray, which: str) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise DataError(f"the {which} set has shape {rows.shape}, but must be rows of numbers [n, F]")
    if len(rows) < 2:
        raise DataError(f"the {which} set has {len(rows)} row, but a covariance needs at least two")
    if not np.isfinite(rows).all():
        raise DataError(f"the {which} set holds NaN or infinite numbers")
    return rows


def _factor(rows: np.ndarray, mean: np.ndarray) -> Tensor:
    """`[min(n, F), F]` whose product with itself is the covariance.

    torch factorises, since numpy's threads wait for each other by spinning: a hundred times slower beside other processes.
    """
    count, columns = rows.shape
    if count <= columns:
        return torch.from_numpy((rows - mean) / np.sqrt(count - 1))
    triangle = torch.zeros(0, columns, dtype=torch.float64)
    for start in range(0, count, max(_BLOCK, columns)):
        block = torch.from_numpy(rows[start : start + max(_BLOCK, columns)] - mean)
        triangle = torch.linalg.qr(torch.cat([triangle, block]), mode="r").R  # [<= F, F]
    return triangle / np.sqrt(count - 1)
