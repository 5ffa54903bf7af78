"""The components that settings choose, and the tables that their options stand in."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from dmlcore import plugins, trust
from dmlcore.config import unique_names
from dmlcore.errors import ConfigError, suggestion
from dmlcore.training.implied import chosen, default_model, may_compress
from dmlcore.training.setting_groups.losses import AUTO
from dmlcore.training.settings import GROUPS, PLACES, Settings
from dmlcore.training.sources import Source, build_from

KIND_OF = {kind.setting: kind.name for kind in plugins.KINDS.values() if kind.setting in PLACES}
"""The kind of the components that a setting chooses, by the setting's key."""
DECIDING = ("ensemble", "weights", "embedding_dim", "student", "compress")  # whether a component is needed, and which
CHOOSING = (*KIND_OF, *DECIDING)


@dataclass(frozen=True)
class Component:
    """A chosen component.

    Attributes:
        table: name of the table of its options, as in `--TABLE.option`.
        kind: as in `plugins.KINDS`.
        name: as the settings choose it.
        options: its options class; None: it takes none, or is not needed from the folder that is read (`trust.is_left_out`).
        implied: options that the name itself gives, such as the path behind `--data`.
    """

    table: str
    kind: str
    name: str
    options: type | None
    implied: dict[str, Any] = field(default_factory=dict)

    def option_names(self) -> list[str]:
        """Options that can be given."""
        return (
            [f.name for f in dataclasses.fields(self.options) if f.name not in self.implied] if self.options is not None else []
        )


def data_component(name: str) -> Component:
    """The source that `--data` names, whose path is implied."""
    from dmlcore.data import find_source

    if trust.is_left_out("data"):  # nor need the data be there any more
        return Component(name, "data", name, None)
    source, implied = find_source(name)
    return Component(source.name, "data", name, source.Options, implied)


def model_component(name: str) -> Component:
    """The trunk that `--model` names."""
    from dmlcore.models import find_trunk

    if plugins.plugin_files.is_left_out("model", name):
        return Component(name, "model", name, None)
    trunk, implied = find_trunk(name, "images")
    return Component(trunk.name, "model", name, trunk.Options, implied)


def metric_component(name: str) -> Component:
    """A measure that `--metrics` names."""
    return _named("metric", name)


def components(settings: Settings) -> dict[str, Component]:
    """The components that settings choose, by the table of their options.

    Without a `model`, the default model of every kind of data is among them, since the kind is known only from the data.

    Raises:
        ConfigError: an unknown name, or two components whose options would share a table.
    """
    settings = chosen(settings)
    tables: dict[str, Component] = {}
    for component in [*_losses(settings), *_beside_losses(settings)]:
        table = component.table
        if table in tables:
            raise ConfigError(
                f"'{table}' is chosen twice, as {tables[table].kind} and as {component.kind};"
                f" their options cannot be told apart"
            )
        if table in GROUPS:
            raise ConfigError(f"the {component.kind} '{table}' is called like a group of settings; give it another name")
        tables[table] = component
    return tables


def _named(kind: str, name: str, table: str = "") -> Component:
    if plugins.plugin_files.is_left_out(kind, name):
        return Component(name, kind, name, None)  # its table would go by the name of the class in the file
    component = plugins.find(kind, name).component
    return Component(table or component.name, kind, name, getattr(component, "Options", None))


def _losses(settings: Settings) -> list[Component]:
    names = () if settings.losses.is_automatic else settings.losses.names
    # A loss that is chosen by the file it stands in has the table of its own name.
    tables = unique_names(plugins.find("loss", name).component.name for name in names)
    return [_named("loss", name, table) for table, name in zip(tables, names, strict=True)]


def _beside_losses(settings: Settings) -> list[Component]:
    from dmlcore.data import KINDS_OF_DATA

    assert settings.ensemble.weighting is not None and settings.data.source is not None
    trunk = settings.model.trunk
    return [
        _named("weighting", settings.ensemble.weighting),
        *([_named("compressor", settings.model.compressor)] if may_compress(settings) else []),
        *(model_component(name) for name in ([trunk] if trunk else [default_model(settings, kind) for kind in KINDS_OF_DATA])),
        data_component(settings.data.source),
        *(_named("transform", name) for name in settings.data.transforms or ()),
        _named("sampler", settings.data.sampler),
        _named("optimizer", settings.optimiser.optimizer),
        _named("schedule", settings.optimiser.schedule),
        *(_named("metric", name) for name in settings.run.metrics),
        *(_named("logger", name) for name in settings.run.loggers),
    ]


def with_own_names(settings: Settings) -> Settings:
    """Settings in which components that are named by aliases go by their own names, as a run records them."""
    values, names = settings.values(), {}
    for key, kind in {**KIND_OF, "auto_losses": "loss"}.items():
        if isinstance(values[key], str):
            names[key] = _own_name(kind, values[key])
        elif isinstance(values[key], tuple) and values[key] != AUTO:
            names[key] = tuple(_own_name(kind, name) for name in values[key])
    return settings.replace(**names)


def _own_name(kind: str, name: str) -> str:
    return name if plugins.plugin_files.is_reference(name) else plugins.recorded_name(kind, name)


def choose(sources: list[Source]) -> tuple[Settings, dict[str, Component]]:
    """Settings with only their choices of components taken from the sources, and those components.

    Raises:
        ConfigError: as `components`; the message names the file where the choice came from one.
    """
    parts = [(source, {key: source.values[key] for key in CHOOSING if key in source.values}) for source in sources]
    settings = with_own_names(build_from(Settings.of, parts))
    try:
        return settings, components(settings)
    except ConfigError as error:
        for key in CHOOSING:
            owner = next((source for source, values in reversed(parts) if key in values), None)
            if owner and owner.label and any(f"'{name}'" in str(error).partition(".")[0] for name in _names(owner.values[key])):
                raise type(error)(str(owner.error(f"{key}: {error}"))) from None
        raise


def _names(value: Any) -> list[str]:
    return value.split(",") if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else []


def why_not_chosen(table: str, components: dict[str, Component]) -> str:
    """Why a table of options is refused: it belongs to something that is not chosen, or to nothing at all."""
    if table in PLACES:
        return f"'{table}' is a setting, not a table of options"
    for kind in plugins.KINDS:
        if table in plugins.registry(kind):
            if kind == "miner":
                return f"'{table}' is a miner; its options stand behind its name: --LOSS.miner '{table}(option=value)'"
            selected = ", ".join(c.table for c in components.values() if c.kind == kind) or "none"
            setting = plugins.KINDS[kind].setting
            return (
                f"options of '{table}' are given, but that {kind} is not selected ({setting}: {selected})."
                f" Select it by --{setting}, or leave its options out."
            )
    for kind in plugins.KINDS:
        name = plugins.recorded_name(kind, table)
        if name != table and not plugins.plugin_files.is_reference(table):
            return f"options of '{table}' are given by its own name, '{name}'"
    return f"there is nothing called '{table}' to give options to.{suggestion(table, components)}"
