"""Finding plugins and what they offer: one pluggy manager, one registry per kind, and whose fault a failure is. Building
components from options lives in `config.py`; single files in `plugin_files.py`; what each kind means in its own package.

Built-in plugins are the modules of `dmlcore_plugins`, registered through the same hooks as any other. Others come from the
entry-point group `dmlcore`. The environment variable `DMLCORE_PLUGINS` limits the latter to a comma-separated list of
entry-point names; empty means built-ins only.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import pkgutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from dmlcore import hookspecs, plugin_files
from dmlcore.errors import ConfigError, DmlcoreError, PluginError, suggestion

KINDS = {
    "loss": "dmlcore_losses",
    "miner": "dmlcore_miners",
    "weighting": "dmlcore_weightings",
    "compressor": "dmlcore_compressors",
    "model": "dmlcore_models",
    "data": "dmlcore_datasets",
    "transform": "dmlcore_transforms",
    "sampler": "dmlcore_samplers",
    "metric": "dmlcore_metrics",
    "logger": "dmlcore_loggers",
}
BASES = {
    "loss": "dmlcore.losses.Loss",
    "miner": "dmlcore.losses.Miner",
    "weighting": "dmlcore.ensemble.Weighting",
    "compressor": "dmlcore.ensemble.Compressor",
    "model": "dmlcore.models.Trunk",
    "data": "dmlcore.data.DataSource",
    "transform": "dmlcore.data.Transform",
    "sampler": "dmlcore.data.BatchSampler",
    "metric": "dmlcore.evaluation.Metric",
    "logger": "dmlcore.training.Logger",
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
        for caller in manager.get_hookcallers(plugin) or []:
            if any(one.plugin is plugin and (one.wrapper or one.hookwrapper) for one in caller.get_hookimpls()):
                raise ValueError(f"{caller.name} is a wrapper around other plugins' hooks, which dmlcore does not call")
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
    """The component of a kind by its name, or by the file it stands in: `./my_loss.py:MyLoss`.

    Raises:
        ConfigError: no such name; the message has the nearest one. Or a file that cannot be used.
        PluginError: the file raises when it is imported.
    """
    if plugin_files.is_reference(name):
        return _in_a_file(kind, name)
    entries = registry(kind)
    if name not in entries:
        raise ConfigError(f"there is no {kind} '{name}'.{suggestion(name, entries)} `dmlcore plugins` lists them all.")
    return entries[name]


def _in_a_file(kind: str, reference: str) -> Entry:
    for entry in registry(kind).values():
        module = sys.modules.get(entry.component.__module__)
        if plugin_files.means(reference, getattr(module, "__file__", None), entry.component.__name__):
            return entry  # the file is an installed plugin: one class, whatever it is called by
    component = plugin_files.load(reference, kind, BASES[kind])
    known = registry(kind).get(component.name)
    if known is not None:
        raise ConfigError(
            f"{reference} is called '{component.name}', but {known.owner} has a {kind} of that name. Give it another `name`."
        )
    return Entry(kind, component.name, component, plugin_files.absolute(reference), "")


def call_event(event: str, failed: Callable[[str, Exception], None], **arguments: Any) -> None:
    """Tell every plugin of an event; one that fails does not keep the others from hearing of it.

    Args:
        event: the hook's name.
        failed: gets the owner of a hook that raised, and the exception. A `DmlcoreError` is raised instead: a plugin may stop a
            run by one.
        arguments: of the hook.
    """
    for implementation in reversed(getattr(manager().hook, event).get_hookimpls()):
        try:
            implementation.function(*[arguments[name] for name in implementation.argnames])
        except DmlcoreError:
            raise
        except Exception as error:
            failed(_owner(implementation.plugin_name)[0], error)


@contextlib.contextmanager
def blaming(consequence: Callable[[], str] | None = None) -> Iterator[None]:
    """Turn an exception that comes out of a plugin's component into a `PluginError` that names the plugin and its hook.

    What built-ins raise, and what dmlcore raises on purpose, passes as it is.

    Args:
        consequence: gives a sentence about what that means for what is being done.
    """
    try:
        yield
    except DmlcoreError:
        raise
    except Exception as error:
        try:
            who = _who_is_behind(error)
        except DmlcoreError:  # plugins that cannot be listed must not hide what happened
            who = ""
        if not who:
            raise
        raise PluginError(
            f"{who} failed: {type(error).__name__}: {error}. {consequence() + ' ' if consequence else ''}`--debug` shows where."
        ) from error


def _who_is_behind(error: Exception) -> str:
    """The component or plugin, not of dmlcore itself, whose code an exception passed through last, in words; empty: none."""
    foreign = [entry for kind in KINDS for entry in registry(kind).values() if entry.owner != "dmlcore"]
    foreign += [Entry(kind, c.name, c, absolute, "") for kind, absolute, c in plugin_files.loaded()]
    by_class = {entry.component: entry for entry in foreign}
    modules = {
        getattr(plugin, "__name__", ""): _owner(name)
        for name, plugin in manager().list_name_plugin()
        if not name.startswith("dmlcore_plugins.")
    }
    found, trace = "", error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        mine = frame.f_locals.get("self", frame.f_locals.get("cls"))
        bases = (mine if isinstance(mine, type) else type(mine)).__mro__
        entry = next((by_class[base] for base in bases if base in by_class), None)
        module = frame.f_globals.get("__name__", "")
        same_module = [other for other in foreign if other.component.__module__ == module]
        if entry is None and len(same_module) == 1:
            entry = same_module[0]
        if entry is not None:
            found = f"{entry.kind} '{entry.name}' of {' '.join([entry.owner, entry.version]).rstrip()} ({KINDS[entry.kind]})"
        elif module in modules:
            called = frame.f_code.co_name
            hook = called if called in vars(hookspecs) else "dmlcore_commands"  # the only hook whose functions users call
            found = f"plugin {' '.join(modules[module]).rstrip()} ({hook})"
        trace = trace.tb_next
    return found
