"""Settings of the losses of a run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from dmlcore.config import check_range
from dmlcore.errors import ConfigError
from dmlcore.plugins import defaults
from dmlcore.training.setting_groups.fields import check_each, setting

AUTO = ("auto",)  # as losses: they are chosen on the validation classes


@dataclass(frozen=True)
class LossSettings:
    """Losses, and what they are compared with."""

    names: tuple[str, ...] = setting("plugins", defaults().LOSSES)
    """Losses to train with, separated by commas. A loss named twice is used twice; its second options are `NAME_2`. `auto`
    tries losses and values of their main option on the validation classes first and takes those near the best."""
    auto_losses: tuple[str, ...] | None = None
    """Losses that `auto` tries (default: all that declare values to try)."""
    auto_trials: int = 4
    """Trials of each loss, over values of its main option."""
    auto_steps: int | None = None
    """Optimiser steps of a trial (default: half of the run's)."""
    auto_within: float = 0.02
    """How far below the best validation MAP@R a member may lie."""
    auto_most: int = 4
    """Members at most."""
    memory: int = 0
    """Embeddings of the last batches that losses between samples compare a batch with, a batch or more; 0: the batch itself."""
    memory_warmup: int = 0
    """Steps before the memory is used; it fills meanwhile."""
    shard_proxies: bool = False
    """With several processes: divide the classes of losses with proxies among them, for more classes than fit into one. The
    numbers are the same."""
    shard_memory: bool = False
    """With several processes: divide the entries of the memory among them. The run stays the same, up to rounding."""
    sampled_classes: float = 1.0
    """Share of the classes that losses with proxies compare a batch with, beside those of its samples, in (0, 1]. Below 1 it is
    an estimate, which makes the products with many proxies cheaper."""

    def __post_init__(self) -> None:
        if not any(self.names):
            raise ConfigError("plugins is empty, but must name at least one loss, e.g. ms,triplet")
        if not all(self.names):
            raise ConfigError(f"plugins is '{','.join(self.names)}', where a name is missing between two commas or at an end")
        if "auto" in self.names and not self.is_automatic:
            raise ConfigError("plugins has auto among other names; give it alone, and what it may choose from as auto_losses")
        if not self.is_automatic:
            defaults_of_auto = {f.name: f.default for f in dataclasses.fields(self) if f.name.startswith("auto_")}
            idle = [name for name, default in defaults_of_auto.items() if getattr(self, name) != default]
            if idle:
                raise ConfigError(f"{idle[0]} is given, but it is for plugins = auto, and plugins is {','.join(self.names)}")
        check_range("auto_within", self.auto_within, least=0)
        check_each(self, ("auto_trials", "auto_steps", "auto_most"), least=1)
        check_range("memory", self.memory, least=0, most=2**31)
        check_range("sampled_classes", self.sampled_classes, above=0, most=1)
        check_range("memory_warmup", self.memory_warmup, least=0)
        if self.shard_memory and self.memory == 0:
            raise ConfigError("shard_memory divides the entries of a memory, and memory is 0; set memory too")

    @property
    def is_automatic(self) -> bool:
        """Whether the losses are still to be chosen, on the validation classes."""
        return self.names == AUTO
