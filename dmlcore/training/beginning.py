"""The model before its first step: with a head that keeps what the trunk knows, and as a baseline of the trained one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dmlcore.errors import ConfigError, TrainingError
from dmlcore.evaluation import evaluating
from dmlcore.training import checkpoints
from dmlcore.training.building import build_run_model, build_untrained_model
from dmlcore.training.extras import FITTED, Compression
from dmlcore.training.folder import RunFolder

if TYPE_CHECKING:
    from dmlcore.data import LabelledDataset
    from dmlcore.models import EmbeddingModel
    from dmlcore.training.configuration import RunConfig


def first_model(
    config: RunConfig,
    sample_shape: tuple[int, ...],
    kind: str,
    device: torch.device,
    train: LabelledDataset,
    folder: RunFolder,
) -> EmbeddingModel:
    """The model of a run before its first step, without what is fitted for a compressor.

    Args:
        config: completed.
        sample_shape: of one sample.
        kind: of the data.
        device: where it goes.
        train: the training data.
        folder: of the run, which may keep what its trunk was made of.

    Raises:
        ConfigError: there is no run to begin from, or it has another trunk.
        TrainingError: its checkpoint is damaged.
    """
    model = build_run_model(config, sample_shape, kind, folder.kept_trunk).to(device)
    settings = config.settings.model
    has_head = settings.init is not None and begin_from(model, settings.init)
    if settings.head_start == "principal" and not has_head:
        is_needed = model.needs_features_to_start
        workers = config.settings.data.workers
        model.start_head(evaluating.embed(model.trunk, train.spread(FITTED), workers=workers) if is_needed else None)
    return model


def begin_from(model: EmbeddingModel, folder: str) -> bool:
    """Give a model the best weights of an earlier run.

    Args:
        model: whose trunk must be the same. Its head may have another length.
        folder: of the run. No code of it is run.

    Returns:
        Whether the head was taken too.

    Raises:
        ConfigError: there is no run, or it has another trunk.
        TrainingError: its checkpoint is damaged.
    """
    own = model.state_dict()
    theirs = checkpoints.load(RunFolder.open(folder).checkpoints, "best")["model"]
    by_part = {part: {n: v for n, v in theirs.items() if n.startswith(f"{part}.")} for part in ("trunk", "head")}
    fits = {
        part: values.keys() == {n for n in own if n.startswith(f"{part}.")}
        and all(own[name].shape == value.shape for name, value in values.items())
        for part, values in by_part.items()
    }
    if not fits["trunk"]:
        raise ConfigError(
            f"the run in {folder} has another trunk than '{model.trunk.name}', so its weights cannot begin it."
            f" Choose the --model that {RunFolder(Path(folder)).config} names"
        )
    model.load_state_dict({**own, **by_part["trunk"], **(by_part["head"] if fits["head"] else {})})
    return fits["head"]


def baseline_model(
    config: RunConfig,
    sample_shape: tuple[int, ...],
    kind: str,
    device: torch.device,
    train: LabelledDataset | None,
    folder: RunFolder,
) -> EmbeddingModel | None:
    """`first_model` as the trained one is compared with it: compressed to the same length, where a compressor is fitted. None:
    what it began with is not there any more, the training data or an earlier run; or it is no other than the raw features."""
    if train is None:
        if config.settings.model.head_start == "principal" or config.settings.model.init is not None:
            return None
        model = build_untrained_model(config, folder, sample_shape, kind).to(device)
        model.served = "whole"  # what it could be compressed to was never fitted
        return model
    try:
        if config.objects.model is None:
            model = first_model(config, sample_shape, kind, device, train, folder)
        else:  # a module from Python may come with other weights now; the folder keeps those it began with
            model = build_untrained_model(config, folder, sample_shape, kind).to(device)
    except (ConfigError, TrainingError):
        return None
    compression = Compression(model, config.settings.run.seed)
    if compression.is_fitted:
        compression.fit(train, config.settings.data.workers)
    elif model.compressor is not None:
        model.served = "whole"
    return None if is_raw_features(config, model, kind) else model


def is_raw_features(config: RunConfig, model: EmbeddingModel, kind: str) -> bool:
    """Whether a model before its first step gives no other than the raw features."""
    has_bare_head = kind == "features" and model.compressor is None and next(model.trunk.parameters(), None) is None
    settings = config.settings.model
    begins_as_identity = settings.init is None and settings.head_start == "principal" and not model.needs_features_to_start
    return has_bare_head and begins_as_identity


def name_of_baseline(config: RunConfig) -> str:
    """What the model before its first step is called among the baselines."""
    return "before training" if config.settings.model.head_start == "principal" else "untrained network"
