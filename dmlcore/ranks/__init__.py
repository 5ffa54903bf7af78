"""The processes that train together: who they are, and what crosses between them. What they compute of it stands with the
losses and the training."""

from __future__ import annotations

from dmlcore.ranks.group import GradientRule, Group, Transport, Work, inside, is_one_of_several, refuse_alone
from dmlcore.ranks.layout import Layout, exchange, meet
from dmlcore.ranks.merging import merged
from dmlcore.ranks.operators import (
    agreed,
    first_of,
    gathered,
    gathered_embeddings,
    same_everywhere,
    summed,
    summed_rows,
    total,
    whole,
)
from dmlcore.ranks.shards import Shard, sharding, sharding_group

__all__ = [
    "GradientRule",
    "Group",
    "Layout",
    "Shard",
    "Transport",
    "Work",
    "agreed",
    "exchange",
    "first_of",
    "gathered",
    "gathered_embeddings",
    "inside",
    "is_one_of_several",
    "meet",
    "merged",
    "refuse_alone",
    "same_everywhere",
    "sharding",
    "sharding_group",
    "summed",
    "summed_rows",
    "total",
    "whole",
]
