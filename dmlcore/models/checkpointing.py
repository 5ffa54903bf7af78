"""Gradient checkpointing of networks that have none of their own: each stage keeps its input only."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from dmlcore.errors import ConfigError


def checkpoint_stages(network: nn.Module) -> None:
    """Let the stages of a network be computed again in the backward pass. Its parameters keep their names. Batch statistics are
    updated each time a stage is computed, so who trains puts them back.

    Args:
        network: whose stages are its outermost `nn.Sequential`s with weights, or the layers with weights of the only one.

    Raises:
        ConfigError: it has none.
    """
    rows = _outermost(network)
    stages = [child for child in rows[0] if next(child.parameters(), None) is not None] if len(rows) == 1 else rows
    if not stages:
        raise ConfigError("the network has no rows of layers, so its gradients cannot be checkpointed")
    for stage in stages:
        stage.__class__ = _computed_again(type(stage))  # a class, so that copies of the network are whole


def _outermost(module: nn.Module) -> list[Any]:
    if isinstance(module, nn.Sequential) and next(module.parameters(), None) is not None:
        return [module]
    return [row for child in module.children() for row in _outermost(child)]


@functools.cache
def _computed_again(kind: type[nn.Module]) -> type[nn.Module]:
    def forward(self: nn.Module, *inputs: Any) -> Any:
        return checkpoint(functools.partial(kind.forward, self), *inputs, use_reentrant=False)

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
