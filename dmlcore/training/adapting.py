"""What a configuration becomes for data whose samples have several labels, and what it may hold where labels are not used."""

from __future__ import annotations

from dmlcore import plugins
from dmlcore.data import Splits
from dmlcore.errors import ConfigError
from dmlcore.training.configuration import RunConfig


def for_label_sets(config: RunConfig, splits: Splits) -> RunConfig:
    """The configuration without the losses that take one label per sample, where it has the default losses; a note says so.

    Args:
        config: not completed yet.
        splits: of data whose samples have several labels; the note is added.

    Raises:
        ConfigError: losses that were chosen cannot take several labels.
    """
    losses = config.of_kind("loss")
    single = [table for table, component in losses.items() if plugins.find("loss", component.name).component.needs_classes]
    if not single:
        return config
    names = ", ".join(single)
    is_default = config.settings.losses.names == plugins.defaults().LOSSES and config.settings.ensemble.weights is None
    if not is_default:
        raise ConfigError(
            f"samples of '{splits.name}' have several labels, but {names} owns a proxy per class and takes one label per"
            f" sample. Choose losses between samples, or name none to have the default ones"
        )
    splits.notes.append(f"{names} is left out: it takes one label per sample, but these have several")
    return config.without_losses(single)


def check_losses(config: RunConfig) -> None:
    """Refuse losses that cannot learn from views of samples.

    Raises:
        ConfigError: a loss that owns something for each class.
    """
    losses = config.of_kind("loss")
    own = [table for table, component in losses.items() if plugins.find("loss", component.name).component.needs_classes]
    if own:
        raise ConfigError(
            f"{own[0]} owns a proxy per class, but views learns without classes. Choose losses between samples, such as"
            f" {plugins.defaults().LOSSES_OF_VIEWS[0]}"
        )
