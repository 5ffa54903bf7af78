"""The embedding head, and a trunk with its head as one model."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from dmlcore.models.trunks import Trunk


class EmbeddingModel(nn.Module):
    """A trunk and a linear head: `functional.normalize(head(trunk(samples)))`.

    Args:
        trunk: samples to features.
        embedding_dim: D >= 1.
        normalize: give the embeddings unit norm; False for losses that need their norms.
        head_norm: `layer` puts a LayerNorm between trunk and head, `none` nothing.
    """

    def __init__(
        self, trunk: Trunk, embedding_dim: int, *, normalize: bool = True, head_norm: Literal["none", "layer"] = "none"
    ) -> None:
        super().__init__()
        self.trunk = trunk
        linear = nn.Linear(trunk.features, embedding_dim)
        self.head = nn.Sequential(nn.LayerNorm(trunk.features), linear) if head_norm == "layer" else linear
        self.embedding_dim = embedding_dim
        self.normalize = normalize

    def forward(self, samples: Tensor) -> Tensor:
        """Embeddings [B, D] of samples [B, ...]; unit norm if `normalize`, else raw."""
        embeddings = self.head(self.trunk(samples))  # [B, D]
        if not self.normalize:
            return embeddings
        # Float32 norms: in half precision the square of a large component overflows.
        return functional.normalize(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)))
