"""The settings of a run, in groups. Each group is a group of the help and a table of a configuration file. Where settings stand
without their groups (on the command line, in Python, at the top level of a file), each goes by its key. No torch here.

The groups are in `setting_groups`. What the settings choose is in `components.py`, what follows from settings left open in
`implied.py`.
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass, field
from typing import Any

from dmlcore.config import convert
from dmlcore.errors import ConfigError
from dmlcore.training.setting_groups.data import DataSettings
from dmlcore.training.setting_groups.ensemble import EnsembleSettings
from dmlcore.training.setting_groups.losses import LossSettings
from dmlcore.training.setting_groups.model import ModelSettings
from dmlcore.training.setting_groups.optimiser import OptimiserSettings
from dmlcore.training.setting_groups.rates import RateSettings
from dmlcore.training.setting_groups.run import RunSettings


@dataclass(frozen=True)
class Settings:
    """The settings of a run, apart from the options of its losses, model and data."""

    losses: LossSettings = field(default_factory=LossSettings)
    ensemble: EnsembleSettings = field(default_factory=EnsembleSettings)
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)
    rates: RateSettings = field(default_factory=RateSettings)
    run: RunSettings = field(default_factory=RunSettings)

    def __post_init__(self) -> None:
        if self.losses.is_automatic and self.run.validation == "none":
            raise ConfigError("plugins = auto chooses by validation, but validation is none. Name the losses")
        if self.data.views is not None and self.losses.is_automatic:
            raise ConfigError("plugins is auto, which tries losses with classes, but views learns without: name losses")
        if self.model.start == "race" and (reason := self._why_no_race()):
            raise ConfigError(f"start is race, but {reason}: it compares one embedding by steps. Leave one of them out")
        if self.ensemble.heads_see == "blocks" and self.model.head_start == "principal":
            raise ConfigError("head_start is principal, but heads_see is blocks: only heads that see all features begin so")
        names, weights = self.losses.names, self.ensemble.weights
        if weights is None:
            return
        if self.losses.is_automatic:
            raise ConfigError("weights are given, but plugins is auto: how many losses there will be is not known")
        if len(weights) != len(names):
            raise ConfigError(f"weights has {len(weights)} numbers for {len(names)} losses ({', '.join(names)})")

    @property
    def may_race(self) -> bool:
        """Whether a run may begin with a race: it says so, or it leaves open all that a race on features decides."""
        if self.model.start is not None:
            return self.model.start == "race"
        fields = [f for f in dataclasses.fields(self.model) if f.name != "shard_model"]  # which says only where weights lie
        is_open = all(getattr(self.model, f.name) == f.default for f in fields) and not self.run.loggers
        is_open &= self.run.steps is None and self.optimiser.learning_rate is None
        return is_open and self._why_no_race() is None

    def _why_no_race(self) -> str | None:
        """Why one embedding cannot be compared by steps."""
        beside = {
            "plugins is auto": self.losses.is_automatic,
            "validation is none": self.run.validation == "none",
            "epochs is given": self.run.epochs is not None,
            "stop_after is given": self.run.stop_after is not None,
            "views is given": self.data.views is not None,
            f"ensemble is {self.ensemble.kind}": self.ensemble.kind != "shared",
        }
        return next((name for name, holds in beside.items() if holds), None)

    @classmethod
    def of(cls, values: dict[str, Any]) -> Settings:
        """From values by key; texts are converted as on the command line.

        Raises:
            ConfigError: a value of the wrong type or out of range.
        """
        groups: dict[str, dict[str, Any]] = {name: {} for name in GROUPS}
        for key, value in values.items():
            place = PLACES[key]
            groups[place.group][place.name] = convert(value, place.type, key)
        return cls(**{name: GROUPS[name](**fields) for name, fields in groups.items()})

    def values(self) -> dict[str, Any]:
        """All settings by key."""
        return {key: getattr(getattr(self, place.group), place.name) for key, place in PLACES.items()}

    def replace(self, **values: Any) -> Settings:
        """The same with other values of some keys."""
        return Settings.of({**self.values(), **values})


@dataclass(frozen=True)
class Place:
    """Where the setting of a key stands.

    Attributes:
        group: name of the group, a field of `Settings`.
        name: of the field in the group.
        type: of the value.
        default: of the value.
    """

    group: str
    name: str
    type: Any
    default: Any


def _places() -> dict[str, Place]:
    places: dict[str, Place] = {}
    for group, fields in GROUPS.items():
        types = typing.get_type_hints(fields)
        for f in dataclasses.fields(fields):
            key = f.metadata.get("key", f.name)
            assert key not in places, key
            places[key] = Place(group, f.name, types[f.name], f.default)
    return places


GROUPS: dict[str, type] = {
    "losses": LossSettings,
    "ensemble": EnsembleSettings,
    "data": DataSettings,
    "model": ModelSettings,
    "optimiser": OptimiserSettings,
    "rates": RateSettings,
    "run": RunSettings,
}
PLACES = _places()
"""Every setting by its key."""
