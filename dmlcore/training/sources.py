"""Where the values of a configuration come from: a TOML file, the command line, keyword arguments. Nothing is checked here but
where a key stands. No torch here.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dmlcore.errors import ConfigError, suggestion
from dmlcore.plugins import defaults
from dmlcore.training import recipes
from dmlcore.training.setting_groups.rates import ONCE_OF_OPTIMISER
from dmlcore.training.settings import GROUPS, PLACES
from dmlcore.training.toml_files import load_toml

SPEAKING = ("recipe", "ensemble", "splits", "views")  # keys that stand for values of other keys
_OF_LOSSES = ("weights", "classifier_factor", "classifier_decay", "proxies_decay", "scalars_decay")
EXCLUDED = {"epochs": "steps", "steps": "epochs", "weights_decay": "ensemble", **dict.fromkeys(_OF_LOSSES, "plugins")}
"""Settings of a recipe that do not count where another one is given beside it."""
FORMAT = 2  # of the files of settings that runs write; 1 had no tables and no key `format`


@dataclass(frozen=True)
class Source:
    """Values from one place.

    Attributes:
        label: the file, put before messages; empty for the command line and for Python.
        values: settings by key.
        tables: options by name, by component.
        gives_way: tables of components that are not chosen are left out; elsewhere they are errors.
        is_of_a_run: it leaves nothing open, and stands for itself without its recipe.
    """

    label: str
    values: dict[str, Any]
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    gives_way: bool = False
    is_of_a_run: bool = False

    @classmethod
    def of(cls, nested: dict[str, Any], label: str = "") -> Source:
        """Part nested values into settings and tables of options; `-` in names is read as `_`.

        A dict that is called like a group of settings holds settings of that group.

        Raises:
            ConfigError: a key in the table of another group, or one that stands in two places.
        """
        source = cls(label, {_plain_name(key): value for key, value in nested.items() if not isinstance(value, dict)})
        for name, table in nested.items():
            if not isinstance(table, dict):
                continue
            entries = {_plain_name(key): value for key, value in table.items()}
            if name not in GROUPS:
                source.tables[name] = entries
                continue
            for key, value in entries.items():
                reason = _why_not_in(name, key, source.values)
                if reason:
                    raise source.error(reason)
                source.values[key] = value
        return source

    @classmethod
    def read(cls, path: str | Path) -> Source:
        """Read a TOML file.

        Raises:
            ConfigError: the file is missing or is no TOML.
        """
        nested = load_toml(path)
        if "format" not in nested and _is_of_a_run(Path(path)):
            raise _other_version(Path(path))
        if nested.pop("format", FORMAT) != FORMAT:
            raise ConfigError(f"{path} is of another format than {FORMAT}, which this version of dmlcore reads")
        return dataclasses.replace(cls.of(nested, str(path)), is_of_a_run=_is_of_a_run(Path(path)))

    @classmethod
    def read_run(cls, path: Path) -> Source:
        """Read the `config.toml` of a run.

        Raises:
            ConfigError: as `read`; or another version of dmlcore wrote it.
        """
        if load_toml(path).get("format") != FORMAT:
            raise _other_version(path)
        return dataclasses.replace(cls.read(path), is_of_a_run=True)

    def error(self, message: str) -> ConfigError:
        """An error that names the file."""
        return ConfigError(f"{self.label}: {message}" if self.label else message)


def with_implied(sources: list[Source]) -> list[Source]:
    """The sources, behind those that they speak of by the keys `SPEAKING`.

    Raises:
        DataError: as `_with_data_of_splits`.
        ConfigError: there is no such recipe.
    """
    return _with_views(_with_data_of_splits(_with_published_losses(_with_recipe(sources))))


def _named(key: str, sources: list[Source]) -> Any:
    """What the last source that speaks of a key says; None where none does, or that it is `none`."""
    value = next((source.values[key] for source in reversed(sources) if key in source.values), None)
    return None if value in (None, "none") else value


def _with_recipe(sources: list[Source]) -> list[Source]:
    """The sources, behind the recipe that one names, unless that is of a run, which holds all that followed from it."""
    name = _named("recipe", [source for source in sources if not source.is_of_a_run])
    if not isinstance(name, str):
        return sources
    recipe = recipes.find(name)
    if recipe.command != "train":
        raise ConfigError(f"the recipe '{name}' is for `dmlcore {recipe.command} --recipe {name}`")
    source = Source.of(recipe.values, f"recipe {name}")
    beside = {key for other in sources for key in other.values}
    values = {key: value for key, value in source.values.items() if EXCLUDED.get(key) not in beside}
    return [dataclasses.replace(source, values=values, gives_way=True), *sources]


def _with_published_losses(sources: list[Source]) -> list[Source]:
    """The sources, behind the losses of the published ensembles, where one of these is named and no losses are."""
    beside = {key for source in sources for key in source.values}
    if _named("ensemble", sources) not in ("wel", "wedl") or "plugins" in beside:
        return sources
    table = defaults().PUBLISHED_ENSEMBLE
    values = {"plugins": tuple(table), **({} if "weights" in beside else {"weights": tuple(row[0] for row in table.values())})}
    options = {name: dict(options) for name, (_, options) in table.items() if options}
    return [Source("", values, options, gives_way=True), *sources]


def _with_data_of_splits(sources: list[Source]) -> list[Source]:
    """The sources, behind one with the data that a file of splits was made of, where `splits` is given and no `data`.

    Raises:
        DataError: the file cannot be read, or its data are gone.
    """
    files = [source.values["splits"] for source in sources if source.values.get("splits") not in (None, "none")]
    files = [file for file in files if isinstance(file, str | Path)]  # settings refuse anything else
    if not files or any("data" in source.values for source in sources):
        return sources
    from dmlcore.data import SplitFile, find_source

    file = SplitFile.read(files[-1])
    file.check_data()
    tables = {find_source(file.data)[0].name: dict(file.options)} if file.options else {}
    return [Source(str(files[-1]), {"data": file.data}, tables), *sources]


def _with_views(sources: list[Source]) -> list[Source]:
    """The sources, behind one with what suits views of samples, where `views` is given: the sampler and the loss."""
    views = _named("views", sources)
    if not re.fullmatch("[0-9]+", str(views)):  # settings refuse what is no number
        return sources
    sampler, losses = defaults().SAMPLER_OF_VIEWS, defaults().LOSSES_OF_VIEWS
    return [Source("", {"sampler": sampler, "samples_per_class": views, "plugins": losses}), *sources]


def build_from(build: Callable[[dict[str, Any]], Any], parts: list[tuple[Source, dict[str, Any]]]) -> Any:
    """What `build` makes of the values of several sources, later ones winning.

    Raises:
        ConfigError: what `build` raises. The message names the file that the value to blame came from.
    """
    try:
        return build({key: value for _, values in parts for key, value in values.items()})
    except ConfigError as error:
        # The value that fails in the same way on its own is to blame.
        for source, values in reversed(parts):
            for key, value in values.items():
                try:
                    build({key: value})
                except ConfigError as alone:
                    if str(alone) == str(error):
                        raise source.error(str(error)) from None
        raise


def _is_of_a_run(path: Path) -> bool:
    """Whether a file is the `config.toml` that a run wrote into its folder."""
    return path.name == "config.toml" and ((path.parent / "metrics.jsonl").exists() or (path.parent / "checkpoints").exists())


def _other_version(path: Path) -> ConfigError:
    return ConfigError(
        f"the run in {path.parent} was made by another version of dmlcore ({path.name} has no `format = {FORMAT}`), and"
        f" this version cannot read it. Use that version, or train again."
    )


def _plain_name(key: str) -> str:
    return key.replace("-", "_")


def _why_not_in(group: str, key: str, values: dict[str, Any]) -> str:
    """Why a key cannot stand in the table of a group; empty: it can."""
    place = PLACES.get(key)
    if place is None:
        return f"unknown key '{key}' in [{group}].{suggestion(key, PLACES)}"
    if place.group != group and not (group == "optimiser" and key in ONCE_OF_OPTIMISER):
        return f"'{key}' is a setting of [{place.group}], but stands in [{group}]"
    return f"'{key}' is given twice, in [{group}] and without a table" if key in values else ""
