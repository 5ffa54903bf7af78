"""Finding plugins and what they offer: one pluggy manager, one registry per kind. Building components from options lives
in `config.py`; what each kind means lives in its own package.

Built-in plugins are the modules of `dmlcore_plugins`, registered through the same hooks as any other. Others come from the
entry-point group `dmlcore`. The environment variable `DMLCORE_PLUGINS` limits the latter to a comma-separated list of
entry-point names; empty means built-ins only.
"""

from __future__ import annotations

import functools
import importlib
import os
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from dmlcore import hookspecs
from dmlcore.errors import ConfigError, PluginError, suggestion

KINDS = {
    "loss": "dmlcore_losses",
    "miner": "dmlcore_miners",
    "weighting": "dmlcore_weightings",
    "compressor": "dmlcore_compressors",
    "model": "dmlcore_models",
    "data": "dmlcore_datasets",
    "logger": "dmlcore_loggers",
}


@dataclass(frozen=True)
class Entry:
    """One named thing a plugin offers.

    Attributes:
        kind: a key of `KINDS`.
        name: what users write.
        component: the class.
        owner: the distribution (`dmlcore` for built-ins) or module that registered it.
        version: the owner's version, or an empty string.
    """

    kind: str
    name: str
    component: type
    owner: str
    version: str


def _builtin_modules() -> Iterator[ModuleType]:
    package = importlib.import_module("dmlcore_plugins")
    for found in pkgutil.walk_packages(package.__path__, "dmlcore_plugins."):
        if not found.ispkg:
            yield importlib.import_module(found.name)


def _entry_points() -> list[metadata.EntryPoint]:
    found = list(metadata.entry_points(group="dmlcore"))
    limit = os.environ.get("DMLCORE_PLUGINS")
    if limit is None:
        return found
    wanted = [name.strip() for name in limit.split(",") if name.strip()]
    known = {point.name for point in found}
    for name in wanted:
        if name not in known:
            raise ConfigError(f"DMLCORE_PLUGINS names '{name}', which is not installed.{suggestion(name, known)}")
    return [point for point in found if point.name in wanted]


def new_manager() -> pluggy.PluginManager:
    """A manager that knows the hooks and has loaded nothing yet."""
    manager = pluggy.PluginManager("dmlcore")
    manager.add_hookspecs(hookspecs)
    return manager


def register(manager: pluggy.PluginManager, plugin: object, owner: str) -> None:
    """Register a plugin and refuse unknown hooks.

    Args:
        manager: from `new_manager`.
        plugin: a module or an object whose functions are marked with `@dmlcore.hookimpl`.
        owner: who is named in error messages.

    Raises:
        PluginError: an unknown hook name, or a hook with arguments it does not have.
    """
    try:
        manager.register(plugin, name=owner)
        manager.check_pending()
    except (pluggy.PluginValidationError, ValueError) as error:
        raise PluginError(f"plugin '{owner}' is refused: {' '.join(str(error).split())}") from error


@functools.cache
def manager() -> pluggy.PluginManager:
    """The process-wide manager, with the built-in and the installed plugins loaded.

    Raises:
        PluginError: an installed plugin cannot be imported or breaks the hook contract.
        ConfigError: `DMLCORE_PLUGINS` names a plugin that is not installed.
    """
    found = new_manager()
    for module in _builtin_modules():
        register(found, module, module.__name__)
    for point in _entry_points():
        owner = point.dist.name if point.dist else point.name
        try:
            plugin = point.load()
        except Exception as error:
            raise PluginError(
                f"plugin '{point.name}' of {owner} cannot be imported ({point.value}): {type(error).__name__}: {error}."
                f" Repair or uninstall it, or set DMLCORE_PLUGINS to the plugins to load (empty: none)."
            ) from error
        register(found, plugin, f"{owner}:{point.name}")
    return found


def _owner(registered: str) -> tuple[str, str]:
    owner = "dmlcore" if registered.startswith("dmlcore_plugins.") else registered.split(":")[0]
    try:
        return owner, metadata.version(owner)
    except metadata.PackageNotFoundError:
        return owner, ""


def collect(manager: pluggy.PluginManager, kind: str) -> dict[str, Entry]:
    """Everything of one kind, by name, in the order of names.

    Raises:
        PluginError: two plugins claim one name, or a component lacks `name`.
    """
    entries: dict[str, Entry] = {}
    for implementation in getattr(manager.hook, KINDS[kind]).get_hookimpls():
        owner, version = _owner(implementation.plugin_name)
        try:
            offered = list(implementation.function())
        except Exception as error:
            raise PluginError(
                f"{KINDS[kind]} of {owner} failed: {type(error).__name__}: {error}; it must return classes"
            ) from error
        for component in offered:
            name = getattr(component, "name", None)
            if not isinstance(name, str) or not name:
                raise PluginError(f"{kind} {component!r} of {owner} has no 'name'")
            if name in entries:
                raise PluginError(f"two plugins claim the {kind} '{name}': {entries[name].owner} and {owner}. Uninstall one.")
            entries[name] = Entry(kind, name, component, owner, version)
    return dict(sorted(entries.items()))


def kernel_headers(manager: pluggy.PluginManager) -> dict[Path, str]:
    """The headers that the hook `dmlcore_kernel_headers` offers, and their owners.

    Raises:
        PluginError: a path that is no file `NAME.h`.
    """
    found: dict[Path, str] = {}
    for implementation in manager.hook.dmlcore_kernel_headers.get_hookimpls():
        owner, _ = _owner(implementation.plugin_name)
        try:
            offered: Any = implementation.function()
            paths = [Path(path) for path in offered]
        except Exception as error:
            raise PluginError(f"dmlcore_kernel_headers of {owner} failed: {type(error).__name__}: {error}") from error
        for path in paths:
            if path.suffix != ".h" or not path.is_file():
                raise PluginError(f"dmlcore_kernel_headers of {owner} names {path}, which is no file NAME.h")
            found[path.resolve()] = owner
    return found


@functools.cache
def registry(kind: str) -> dict[str, Entry]:
    """Everything of one kind that is installed, by name."""
    return collect(manager(), kind)


def find(kind: str, name: str) -> Entry:
    """The component of a kind by its name.

    Raises:
        ConfigError: no such name; the message has the nearest one.
    """
    entries = registry(kind)
    if name not in entries:
        raise ConfigError(f"there is no {kind} '{name}'.{suggestion(name, entries)} `dmlcore plugins` lists them all.")
    return entries[name]
