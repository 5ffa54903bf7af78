"""A running average of a model's weights, which is evaluated and served in their place."""

from __future__ import annotations

import copy

import torch
from torch import nn

from dmlcore.models import EmbeddingModel
from dmlcore.training.model_shards import own_state


class AveragedWeights:
    """An exponential moving average of the weights and buffers of a model.

    After step n the average moves by `1 - min(decay, (1 + n) / (10 + n))` towards the model, so that a short run does not
    average its first steps only.

    Args:
        model: whose weights are averaged.
        decay: in (0, 1).

    Attributes:
        model: a copy with the average; it is not trained.
    """

    def __init__(self, model: EmbeddingModel, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay

    def update(self, model: EmbeddingModel, step: int) -> None:
        """Take the weights after a step, counted from 1, into the average."""
        move(self.model, model, 1 - min(self.decay, (1 + step) / (10 + step)))


@torch.no_grad()
def move(average: nn.Module, model: nn.Module, share: float) -> None:
    """Move the weights and buffers of one module by a share of the way towards those of another; whole numbers are copied."""
    news = own_state(model)
    for name, weight in own_state(average).items():
        if weight.is_floating_point():
            weight.lerp_(news[name], share)
        else:
            weight.copy_(news[name])
