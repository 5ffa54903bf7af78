"""A game that keeps the heads of an ensemble apart: networks map heads to one another, and the heads make that hard."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dmlcore.config import check_range
from dmlcore.ensemble.diversity import checked


class _Reversed(torch.autograd.Function):
    """Its input as it is, with the gradient turned round."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor) -> Tensor:
        return vectors.view_as(vectors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return -gradients[0]


class AdversarialDiversity(nn.Module):
    """`-sum_{k>1} mean_{b,j} (x_b1j f_k(x_bk)_j)^2`, where the network `f_k` maps head `k` to unit vectors, as the first has.

    The networks learn to make the products large. The gradient of the heads is turned round, so they learn to make them small.
    In the end the other heads tell little of what the first one tells. A turn of one of them gains nothing, since its network
    learns the turn.

    Args:
        heads: `m >= 2`.
        length: `d` of each.
        hidden: units of each network's hidden layer, at least 1.

    Source: Milbich, Roth, Bharadhwaj, Sinha, Bengio, Ommer, Cohen, "DiVA: Diverse Visual Feature Aggregation for Deep Metric
    Learning", ECCV 2020, the separation of embeddings, as in the authors' code. The first head is their discriminative one.
    """

    def __init__(self, heads: int, length: int, hidden: int = 512) -> None:
        super().__init__()
        check_range("heads", heads, least=2)
        check_range("hidden", hidden, least=1)
        self.maps = nn.ModuleList(
            nn.Sequential(nn.Linear(length, hidden), nn.ReLU(), nn.Linear(hidden, length)) for _ in range(heads - 1)
        )

    def forward(self, heads: Tensor) -> Tensor:
        """The term.

        Args:
            heads: `[B, m, d]` floating point, unit norm.

        Returns:
            Scalar in `[1 - m, 0]`, float32 at least; 0 without samples.

        Raises:
            ConfigError: another number of dimensions, or fewer than 2 heads.
        """
        heads = checked(heads)
        if len(heads) == 0:
            return heads.sum()
        first, *rest = _Reversed.apply(heads).unbind(1)  # [B, d] each
        products = [first * functional.normalize(to_first(x), dim=1) for to_first, x in zip(self.maps, rest, strict=True)]
        return -torch.stack([product.square().mean() for product in products]).sum()
