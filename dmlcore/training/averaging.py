"""A running average of a model's weights, which is evaluated and served in their place."""

from __future__ import annotations

import copy

import torch

from dmlcore.models import EmbeddingModel


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

    @torch.no_grad()
    def update(self, model: EmbeddingModel, step: int) -> None:
        """Take the weights after a step, counted from 1, into the average."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        news = model.state_dict()
        for name, average in self.model.state_dict().items():
            if average.is_floating_point():
                average.lerp_(news[name], share)
            else:
                average.copy_(news[name])
