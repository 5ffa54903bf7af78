"""The model before its first step: with a head that keeps what the trunk knows, and as a baseline of the trained one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dmlcore.evaluation import evaluating
from dmlcore.training.building import build_run_model
from dmlcore.training.extras import FITTED, Compression

if TYPE_CHECKING:
    from dmlcore.data import LabelledDataset
    from dmlcore.models import EmbeddingModel
    from dmlcore.training.configuration import RunConfig


def first_model(
    config: RunConfig, sample_shape: tuple[int, ...], kind: str, device: torch.device, train: LabelledDataset | None
) -> EmbeddingModel | None:
    """The model of a run before its first step, without what is fitted for a compressor.

    Args:
        config: completed.
        sample_shape: of one sample.
        kind: of the data.
        device: where it goes.
        train: the training data, or None where they are not there.

    Returns:
        The model. None: its head begins from training data that are not there.
    """
    model = build_run_model(config, sample_shape, kind).to(device)
    if config.settings.model.head_start == "principal":
        if not model.needs_features_to_start:
            model.start_head(None)
        elif train is None:
            return None
        else:
            model.start_head(evaluating.embed(model.trunk, train.spread(FITTED), workers=config.settings.data.workers))
    return model


def baseline_model(
    config: RunConfig, sample_shape: tuple[int, ...], kind: str, device: torch.device, train: LabelledDataset | None
) -> EmbeddingModel | None:
    """`first_model` as the trained one is compared with it: compressed to the same length, where a compressor is fitted."""
    model = first_model(config, sample_shape, kind, device, train)
    if model is None:
        return None
    compression = Compression(model, config.settings.run.seed)
    if compression.is_fitted and train is not None:
        compression.fit(train, config.settings.data.workers)
    elif model.compressor is not None:
        model.served = "whole"  # what it could be compressed to was never fitted
    return model
