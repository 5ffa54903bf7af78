"""The built-in rules for composing training batches."""

from __future__ import annotations

import dmlcore


@dmlcore.hookimpl
def dmlcore_samplers() -> list[type]:
    """Rules `--sampler` can name."""
    from dmlcore.data import ClassBalancedSampler, ShuffledSampler

    return [ClassBalancedSampler, ShuffledSampler]
