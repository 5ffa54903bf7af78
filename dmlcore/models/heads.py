"""What stands between a trunk and an embedding: one head on all features, or heads that each see another block of the trunk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from dmlcore.errors import ConfigError

HeadNorm = Literal["none", "layer", "batch"]


def make_head(features: int, length: int, norm: HeadNorm, hidden: int) -> nn.Module:
    """A linear map, behind what else there is: a normalisation, and a hidden ReLU layer.

    Args:
        features: F, columns that the head sees.
        length: of what it gives.
        norm: of the features.
        hidden: units of the hidden layer; 0: none.
    """
    layers: list[nn.Module] = []
    if norm != "none":
        layers.append(nn.LayerNorm(features) if norm == "layer" else nn.BatchNorm1d(features))
    if hidden:
        layers += [nn.Linear(features, hidden), nn.ReLU()]
    last = nn.Linear(hidden or features, length)
    return nn.Sequential(*layers, last) if layers else last


class BlockHeads(nn.Module):
    """Heads side by side, each on the features of one block of a trunk.

    The first head sees the deepest block, the second the one before it, and so on. Where there are more heads than blocks, the
    next one sees the deepest block again.

    Args:
        columns: of each block in the trunk's features, the deepest last.
        heads: m, at least as many as there are blocks.
        length: D, of each head.
        norm, hidden: as of `make_head`.
        model: name of the trunk, for messages.

    Raises:
        ConfigError: there are fewer than two blocks, or a block that no head would see.
    """

    def __init__(self, columns: Sequence[int], heads: int, length: int, norm: HeadNorm, hidden: int, model: str) -> None:
        super().__init__()
        if len(columns) < 2:
            raise ConfigError(
                f"heads_see is blocks, but the model '{model}' gives its features as one piece. Name a model that gives"
                f" those of several blocks, such as conv with --conv.pooled-blocks 3"
            )
        if len(columns) > heads:
            raise ConfigError(
                f"heads_see is blocks, but the model '{model}' gives {len(columns)} blocks to {heads} heads, so that some are"
                f" seen by none. Name more losses, or let the model give fewer blocks"
            )
        self.columns = list(columns)
        self.of_head = [len(columns) - 1 - number % len(columns) for number in range(heads)]
        self.heads = nn.ModuleList(make_head(columns[block], length, norm, hidden) for block in self.of_head)

    def forward(self, features: Tensor) -> Tensor:
        """Outputs [B, m D] of the trunk's features [B, F]."""
        blocks = features.split(self.columns, 1)
        return torch.cat([head(blocks[block]) for head, block in zip(self.heads, self.of_head, strict=True)], 1)
