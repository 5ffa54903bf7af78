"""The refusal of settings with which nothing could be trained, or not as they say."""

from __future__ import annotations

from dmlcore.errors import ConfigError
from dmlcore.training.optimiser import Optimizer
from dmlcore.training.schedule import Schedule
from dmlcore.training.settings import Settings


def check_is_trainable(settings: Settings, batch_size: int, optimizer: Optimizer, schedule: Schedule) -> None:
    """Refuse what leaves nothing to train, or does not go together.

    Args:
        settings: completed.
        batch_size: samples of a batch.
        optimizer, schedule: of the run.

    Raises:
        ConfigError: it is so.
    """
    parts, frozen = settings.optimiser.accumulate, settings.rates.freeze
    if parts > 1 and parts > batch_size // 2:  # statistics of one sample would be no statistics
        raise ConfigError(f"accumulate is {parts}, but a batch has {batch_size} samples, so at most {batch_size // 2} parts")
    if settings.losses.shard_proxies and settings.optimiser.precision == "fp16":
        raise ConfigError("shard_proxies does not go with precision fp16, whose scale must be the same everywhere; take bf16")
    stages = settings.rates.trainable_stages
    if stages == 0 and settings.model.head == "none":
        raise ConfigError("trainable_stages is 0, but head is none: nothing of the model would be trained")
    if frozen and settings.model.head == "none":
        raise ConfigError(f"freeze is {frozen}, but head is none: nothing beside the trunk could train meanwhile")
    if schedule.needs_validation and settings.run.validation == "none":
        raise ConfigError(
            f"the schedule '{schedule.name}' goes by evaluations, but validation is none. Choose another --schedule"
        )
    if settings.model.shard_model:
        _check_divisible(settings, optimizer)


def _check_divisible(settings: Settings, optimizer: Optimizer) -> None:
    """Refuse what a divided model cannot do."""
    reasons = {
        "precision fp16, whose scale must be the same everywhere; take bf16": settings.optimiser.precision == "fp16",
        "compile": settings.model.compile,
        "channels_last, since rows of such weights are not contiguous": settings.model.channels_last,
        f"the optimizer '{optimizer.name}', which moves whole weights for its second gradient": optimizer.climbs,
    }
    for reason, holds in reasons.items():
        if holds:
            raise ConfigError(f"shard_model does not go with {reason}. Leave one of them out")
