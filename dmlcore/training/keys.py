"""Keys: embeddings of a second view of each sample of a batch, by a copy of the model that follows it slowly."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dmlcore.errors import ConfigError
from dmlcore.losses import Loss
from dmlcore.training.averaging import move

if TYPE_CHECKING:
    from dmlcore.data import Splits
    from dmlcore.models import EmbeddingModel
    from dmlcore.training.passage import Passage


class KeyEncoder:
    """A copy of a model that makes the keys, and moves by `1 - momentum` towards the model after each step.

    It computes as in an evaluation, so that batch statistics tell nothing of which samples are together.

    Args:
        model: that trains.
        momentum: in [0, 1).

    Attributes:
        model: the copy.

    Source: He, Fan, Wu, Xie, Girshick, "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020, section
    3.2. Deviation: batches are not shuffled among devices, since no batch statistics are taken.
    """

    def __init__(self, model: EmbeddingModel, momentum: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.momentum = momentum

    @torch.no_grad()
    def keys(self, inputs: Tensor, passage: Passage) -> Tensor:
        """The keys of samples `[B, ...]`: `[B, W]`, what the losses see of a model.

        Args:
            inputs: the second view of each.
            passage: how the model is computed: its precision, and how many samples at a time.
        """
        with torch.autocast(inputs.device.type, passage.dtype, enabled=passage.dtype is not None):
            outputs = torch.cat([self.model(part) for part in torch.tensor_split(inputs, passage.parts)])
        return self.model.losses_part(outputs.float())

    def follow(self, model: EmbeddingModel) -> None:
        """Take a share of the weights after a step."""
        move(self.model, model, 1 - self.momentum)


def key_encoder(names: Sequence[str], losses: Sequence[Loss], model: EmbeddingModel, splits: Splits) -> KeyEncoder | None:
    """What makes the keys of a run, or None where no loss takes any.

    Args:
        names: of the losses, for messages.
        losses: of the run.
        model: that trains.
        splits: the data.

    Raises:
        ConfigError: nothing changes the samples at random, or two losses want copies that follow unlike.
    """
    momenta = {name: loss.key_momentum for name, loss in zip(names, losses, strict=True) if loss.key_momentum is not None}
    if not momenta:
        return None
    if not splits.train.has_random_changes:
        raise ConfigError(
            f"{next(iter(momenta))} compares two views of a sample, but nothing changes the samples of '{splits.name}' at"
            f" random. Name changes by --transforms, or leave the loss out"
        )
    if len(set(momenta.values())) > 1:
        told = ", ".join(f"{name} {momentum:g}" for name, momentum in momenta.items())
        raise ConfigError(f"one copy of the model makes all keys, but its momentum differs: {told}. Give all the same")
    return KeyEncoder(model, next(iter(momenta.values())))
