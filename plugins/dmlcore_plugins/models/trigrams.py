"""A small trunk for texts, which needs no other library and no published weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import dmlcore
from dmlcore.config import check_range
from dmlcore.data import count_trigrams
from dmlcore.models import Trunk

LONGEST = 1024  # of an embedding by default


@dataclass(frozen=True)
class TrigramOptions:
    """Options of the trunk of trigrams."""

    buckets: int = 2048
    """Numbers that trigrams are told apart by; some share one."""
    hidden: int = 256
    """Hidden units."""

    def __post_init__(self) -> None:
        check_range("buckets", self.buckets, least=1, most=2**20)
        check_range("hidden", self.hidden, least=1)


class Trigrams(Trunk):
    """Counts of all three bytes on end, which need not be whole words, with hidden ReLU units beside them."""

    name = "trigrams"
    Options = TrigramOptions
    accepts = frozenset(("texts",))
    default_for = frozenset(("texts",))

    def __init__(self, options: TrigramOptions, sample_shape: tuple[int, ...]) -> None:
        super().__init__(options, sample_shape)
        self.hidden = nn.Linear(options.buckets, options.hidden)
        self.features = options.hidden + options.buckets

    @classmethod
    def preset(cls, options: TrigramOptions, sample_shape: tuple[int, ...]) -> dict[str, Any]:
        """The embedding begins as the principal axes of what the trunk gives, so before the first step it ranks nearly as the
        counts do. `docs/reports/features.md` has the measurements."""
        length = min(LONGEST, options.hidden + options.buckets)
        return {"embedding_dim": length, "compress": 0, "head_start": "principal", "learning_rate": 5e-4, "eval_every": 25}

    def forward(self, samples: Tensor) -> Tensor:
        """Features [B, hidden + buckets] of texts uint8 [B, bytes]."""
        counts = count_trigrams(samples, self.options.buckets)  # [B, buckets]
        return torch.cat([self.hidden(counts).relu(), counts], 1)


@dmlcore.hookimpl
def dmlcore_models() -> list[type]:
    return [Trigrams]
