"""A complete description of a run: its settings and the options of the components they choose, checked and merged from their
sources. How components are built from it is in `building.py`.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dmlcore import plugins, trust
from dmlcore.config import build_options
from dmlcore.errors import ConfigError, suggestion
from dmlcore.files import expanded
from dmlcore.training import recipes
from dmlcore.training.components import KIND_OF, Component, choose, why_not_chosen, with_own_names
from dmlcore.training.implied import default_model, resolved
from dmlcore.training.objects import Objects
from dmlcore.training.settings import GROUPS, PLACES, Settings
from dmlcore.training.sources import FORMAT, Source, build_from, with_implied

ALWAYS_WRITTEN = (
    "data",
    "model",
    "weighting",
    "classifier",
    "diversity",
    "embedding_dim",
    "compress",
    "eval_every",
    "head_start",
    "learning_rate",
    "serve",
    "steps",
)
"""Settings that may be left open, and that `RunConfig.completed` writes out."""


@dataclass(frozen=True)
class RunConfig:
    """A complete, checked description of a run.

    Attributes:
        settings: the settings.
        components: the chosen components, by table.
        options: the options given to each component, by table; complete once `completed` was called.
        objects: what a Python program gave in place of names; no file keeps them.
    """

    settings: Settings = field(default_factory=Settings)
    components: dict[str, Component] = field(default_factory=dict)
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    objects: Objects = field(default_factory=Objects, compare=False, repr=False)

    @classmethod
    def create(cls, **values: Any) -> RunConfig:
        """From keyword arguments: settings, and a dict per component, e.g. `create(plugins="ms", ms={"alpha": 4})`."""
        return cls.resolve([Source.of(values)])

    @classmethod
    def read(cls, path: str | Path) -> RunConfig:
        """From a TOML file."""
        return cls.resolve([Source.read(path)])

    @classmethod
    def read_run(cls, path: Path, folder: trust.Folder) -> RunConfig:
        """From the `config.toml` of a run.

        Args:
            path: of the file.
            folder: which of the components in files are needed, and whether the user consents to run these.

        Raises:
            ConfigError: another version of dmlcore wrote it; it names a file of code that the user did not consent to.
        """
        with trust.reading(folder):
            config = cls.resolve([Source.read_run(path)])
        values = config.settings.values()
        missing = [key for key in ALWAYS_WRITTEN if values[key] is None]
        if missing:
            raise ConfigError(f"{path} has no '{missing[0]}', which every run writes: it was changed since. Put it back")
        return config

    @classmethod
    def resolve(cls, sources: list[Source]) -> RunConfig:
        """Check and merge sources; later ones win.

        Raises:
            ConfigError: an unknown key, a value of the wrong type or out of range, options of something that is not chosen;
                the message names the file where the value came from one.
        """
        sources = with_implied(sources)
        for source in sources:
            for key in source.values:
                if key not in PLACES:
                    raise source.error(f"unknown key '{key}'.{suggestion(key, PLACES)}")
        settings = with_own_names(build_from(Settings.of, [(source, source.values) for source in sources]))
        _, components = choose(sources)
        sources = [_without_idle_tables(source, components) for source in sources]
        for source in sources:
            _check_tables(source, components)
        options = {}
        for table, component in components.items():
            parts = [(source, source.tables.get(table, {})) for source in sources]
            if component.options is not None and any(values for _, values in parts):
                build = functools.partial(build_options, component.options, owner=table)
                complete = build_from(build, [(Source("", {}), component.implied), *parts])
                options[table] = {key: getattr(complete, key) for _, values in parts for key in values}
        return cls(settings, components, options)

    def completed(self, kind: str, steps: int, sample_shape: tuple[int, ...]) -> RunConfig:
        """The same with nothing left open: the model named, steps counted, paths absolute, every option written out.

        Args:
            kind: `images`, `features` or `texts`, from the data.
            steps: number of steps, counted from the epochs where those were given.
            sample_shape: of one sample, which a trunk's preset may depend on.

        Raises:
            ConfigError: options were given for the default model of another kind of data, or for a compressor that is not used.
        """
        trunk = self.settings.model.trunk or default_model(self.settings, kind)
        components = {table: c for table, c in self.components.items() if c.kind != "model" or c.name == trunk}
        for table in self.options:
            if table not in components:
                raise ConfigError(
                    f"options of '{table}' are given, but the model for {kind} is '{trunk}'."
                    f" Say --model {table}, or leave them out."
                )
        settings = resolved(self.settings, self._preset(components, sample_shape)).replace(
            model=trunk, steps=steps, epochs=None, start="preset"
        )
        settings = _with_absolute_paths(settings, components)
        components = {
            table: dataclasses.replace(c, name=plugins.plugin_files.absolute(c.name)) for table, c in components.items()
        }
        options = {}
        if not settings.model.compress:
            components = {table: c for table, c in components.items() if c.kind != "compressor"}
        for table in self.options:
            if table not in components:
                raise ConfigError(
                    f"options of '{table}' are given, but nothing is compressed. Say --compress, or leave them out."
                )
        for table, component in components.items():
            if component.options is not None:
                complete = build_options(component.options, {**component.implied, **self.options.get(table, {})}, table)
                options[table] = {name: getattr(complete, name) for name in component.option_names()}
        return RunConfig(settings, components, options, self.objects)

    def with_absolute_paths(self) -> RunConfig:
        """The same, but meant from any working folder."""
        return dataclasses.replace(self, settings=_with_absolute_paths(self.settings, self.components))

    def with_objects(self, objects: Objects) -> RunConfig:
        """The same with what a Python program gave."""
        return dataclasses.replace(self, objects=objects)

    def names(self) -> dict[str, tuple[str, ...]]:
        """The names of the chosen components by kind."""
        return {kind: tuple(component.name for component in self.of_kind(kind).values()) for kind in plugins.KINDS}

    def _preset(self, components: dict[str, Component], sample_shape: tuple[int, ...]) -> dict[str, Any]:
        from dmlcore.models import find_trunk

        if self.objects.model is not None:
            return {}
        ((table, component),) = ((table, c) for table, c in components.items() if c.kind == "model")
        options = None
        if component.options is not None:
            options = build_options(component.options, {**component.implied, **self.options.get(table, {})}, table)
        return find_trunk(component.name, "images")[0].preset(options, tuple(sample_shape))

    def of_kind(self, kind: str) -> dict[str, Component]:
        """The chosen components of a kind, by table."""
        return {table: component for table, component in self.components.items() if component.kind == kind}

    def options_of(self, kind: str) -> dict[str, Any]:
        """Options given to the one component of a kind."""
        return next((self.options.get(table, {}) for table in self.of_kind(kind)), {})

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as `create` takes them: None is left out where it is the default, else `"none"`."""
        defaults = {key: place.default for key, place in PLACES.items()}
        return {**_plain(self.settings.values(), defaults), **self._plain_options()}

    def toml(self) -> str:
        """The text of `config.toml`: the same, with the settings in the tables of their groups."""
        import tomli_w

        values = _plain(self.settings.values(), {key: place.default for key, place in PLACES.items()})
        groups = {group: {key: values[key] for key in values if PLACES[key].group == group} for group in GROUPS}
        return tomli_w.dumps({"format": FORMAT, **groups, **self._plain_options()})

    def _plain_options(self) -> dict[str, Any]:
        plain = {}
        for table, values in self.options.items():
            options = self.components[table].options
            if options is not None and values:
                plain[table] = _plain(values, {f.name: f.default for f in dataclasses.fields(options)})
        return plain


def _without_idle_tables(source: Source, components: dict[str, Component]) -> Source:
    """The source; one that gives way without tables of components that others chose away, and with what it says of pictures as
    options of the data, if these have such options."""
    if not source.gives_way:
        return source
    tables = {table: of for table, of in source.tables.items() if table in components}
    pictures = source.tables.get(recipes.PICTURES, {})
    for table, component in components.items():
        if component.kind == "data" and set(pictures) <= set(component.option_names()):
            tables[table] = {**pictures, **tables.get(table, {})}
    return dataclasses.replace(source, tables=tables)


def _check_tables(source: Source, components: dict[str, Component]) -> None:
    left_out = {c.table for c in components.values() if c.options is None and trust.is_left_out(c.kind)}
    for table, values in source.tables.items():
        if table in left_out or (table not in components and left_out):
            continue  # of a component whose options, or even name, nobody knows, since it is not needed
        if table not in components:
            raise source.error(why_not_chosen(table, components))
        names = components[table].option_names()
        for key in values:
            if key not in names:
                raise source.error(f"{table} has no option '{key}'.{suggestion(key, names) or ' It has none.'}")


def _absolute(path: str) -> str:
    return str(expanded(path).resolve())


def _with_absolute_paths(settings: Settings, components: dict[str, Component]) -> Settings:
    """Settings that name data, runs, splits and files of code by absolute paths, so that the run can be repeated from
    anywhere."""
    values, names = settings.values(), {}
    for key in KIND_OF:
        if isinstance(values[key], str):
            names[key] = plugins.plugin_files.absolute(values[key])
        elif isinstance(values[key], tuple):
            names[key] = tuple(plugins.plugin_files.absolute(name) for name in values[key])
    source = next(c for c in components.values() if c.kind == "data")
    names["data"] = _absolute(source.name) if source.implied else plugins.plugin_files.absolute(source.name)
    names |= {key: _absolute(values[key]) for key in ("init", "splits") if values[key] is not None}
    return settings.replace(**names)


def _plain(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    plain = {}
    for key, value in values.items():
        if value is None and defaults.get(key) is None:
            continue
        plain[key] = "none" if value is None else list(value) if isinstance(value, tuple) else value
    return plain
