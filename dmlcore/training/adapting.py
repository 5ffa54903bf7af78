"""What a configuration may hold where samples have several labels, or where labels are not used."""

from __future__ import annotations

from dmlcore import plugins
from dmlcore.data import Splits
from dmlcore.errors import ConfigError
from dmlcore.training.configuration import RunConfig


def check_losses_of_label_sets(config: RunConfig, splits: Splits) -> None:
    """Refuse losses that take one label per sample.

    Args:
        config: not completed yet.
        splits: of data whose samples have several labels.

    Raises:
        ConfigError: a loss that owns something for each class.
    """
    if single := _with_something_per_class(config):
        raise ConfigError(
            f"samples of '{splits.name}' have several labels, but {', '.join(single)} owns a proxy per class and takes"
            f" one label per sample. Choose losses between samples, or name none to have the default ones"
        )


def check_losses_of_views(config: RunConfig) -> None:
    """Refuse losses that cannot learn from views of samples.

    Raises:
        ConfigError: a loss that owns something for each class.
    """
    if own := _with_something_per_class(config):
        raise ConfigError(
            f"{own[0]} owns a proxy per class, but views learns without classes. Choose losses between samples, such as"
            f" {plugins.defaults().LOSSES_OF_VIEWS[0]}"
        )


def _with_something_per_class(config: RunConfig) -> list[str]:
    losses = config.of_kind("loss")
    return [table for table, component in losses.items() if plugins.find("loss", component.name).component.needs_classes]
