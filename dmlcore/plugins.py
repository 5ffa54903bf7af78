"""Finding plugins and what they offer: one pluggy manager, one registry per kind, and whose fault a failure is. Kinds stand in
`kinds.py`, options in `config.py`, classes out of single files in `plugin_files.py`, what a kind means in its own package.

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
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from dmlcore import hookspecs, plugin_files
from dmlcore.errors import ConfigError, DmlcoreError, PluginError, suggestion
from dmlcore.kinds import KINDS

COMMANDS = "dmlcore_commands"


@dataclass(frozen=True)
class Entry:
    """One named component of a plugin.

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

    # Read from the class itself: a subclass is another component, with a paper and names of its own.
    @property
    def title(self) -> str:
        """Full name, as in the paper; empty where the class says none."""
        return vars(self.component).get("title", "")

    @property
    def paper(self) -> str:
        """Where it comes from: authors, venue, year; empty where the class says nothing."""
        return vars(self.component).get("paper", "")

    @property
    def aliases(self) -> tuple[str, ...]:
        """Other names by which it can be chosen, whatever their case: those of the paper and of other libraries."""
        return tuple(vars(self.component).get("aliases", ()))


def _builtin_modules() -> Iterator[ModuleType]:
    package = importlib.import_module("dmlcore_plugins")
    for module in pkgutil.walk_packages(package.__path__, "dmlcore_plugins."):
        if not module.ispkg:
            yield importlib.import_module(module.name)


def entry_points() -> list[metadata.EntryPoint]:
    """The installed plugins that `DMLCORE_PLUGINS` allows.

    Raises:
        ConfigError: it names one that is not installed.
    """
    points = list(metadata.entry_points(group="dmlcore"))
    limit = os.environ.get("DMLCORE_PLUGINS")
    if limit is None:
        return points
    allowed = [name.strip() for name in limit.split(",") if name.strip()]
    installed = {point.name for point in points}
    for name in allowed:
        if name not in installed:
            raise ConfigError(f"DMLCORE_PLUGINS names '{name}', which is not installed.{suggestion(name, installed)}")
    return [point for point in points if point.name in allowed]


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
            if any(hook.plugin is plugin and (hook.wrapper or hook.hookwrapper) for hook in caller.get_hookimpls()):
                raise ValueError(f"{caller.name} is a wrapper around other plugins' hooks, which dmlcore does not call")
    except (pluggy.PluginValidationError, ValueError) as error:
        raise PluginError(f"plugin '{owner}' is refused: {' '.join(str(error).split())}") from error


def load(manager: pluggy.PluginManager, point: metadata.EntryPoint) -> None:
    """Import an installed plugin and register it.

    Raises:
        PluginError: it cannot be imported or breaks the hook contract.
    """
    try:
        plugin = point.load()
    except Exception as error:
        raise PluginError(
            f"plugin '{point.name}' of {_distribution(point)} cannot be imported ({point.value}):"
            f" {type(error).__name__}: {error}. Repair or uninstall it,"
            f" or set DMLCORE_PLUGINS to the plugins to load (empty: none)."
        ) from error
    register(manager, plugin, registered_name(point))


def registered_name(point: metadata.EntryPoint) -> str:
    """The name under which a manager has an installed plugin."""
    return f"{_distribution(point)}:{point.name}"


def _distribution(point: metadata.EntryPoint) -> str:
    return point.dist.name if point.dist else point.name


@functools.cache
def manager() -> pluggy.PluginManager:
    """The process-wide manager, with the built-in and the installed plugins loaded.

    Raises:
        PluginError: an installed plugin cannot be imported or breaks the hook contract.
        ConfigError: `DMLCORE_PLUGINS` names a plugin that is not installed.
    """
    complete = new_manager()
    for module in _builtin_modules():
        register(complete, module, module.__name__)
    for point in entry_points():
        load(complete, point)
    return complete


def defaults() -> Any:
    """The names of the components that a run uses where it names none, as constants. No plugin is loaded for it."""
    return importlib.import_module("dmlcore_plugins.defaults")


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
    hook = KINDS[kind].hook
    for implementation in getattr(manager.hook, hook).get_hookimpls():
        owner, version = _owner(implementation.plugin_name)
        try:
            offered = list(implementation.function())
        except Exception as error:
            raise PluginError(f"{hook} of {owner} failed: {type(error).__name__}: {error}; it must return classes") from error
        for component in offered:
            name = getattr(component, "name", None)
            if not isinstance(name, str) or not name:
                raise PluginError(f"{kind} {component!r} of {owner} has no 'name'")
            if name in entries:
                raise PluginError(f"two plugins claim the {kind} '{name}': {entries[name].owner} and {owner}. Uninstall one.")
            entries[name] = Entry(kind, name, component, owner, version)
    _by_alias(entries)
    return dict(sorted(entries.items()))


def _by_alias(entries: dict[str, Entry]) -> dict[str, Entry]:
    """Entries by their aliases and their names in lower case.

    Raises:
        PluginError: an alias is the name or an alias of another entry too.
    """
    names = {name.casefold(): entry for name, entry in entries.items()}
    aliases: dict[str, Entry] = {}
    for entry in entries.values():
        for alias in entry.aliases:
            key = alias.casefold()
            owner = names.get(key) or aliases.get(key)
            if owner is not None and owner is not entry:
                raise PluginError(
                    f"two plugins claim the {entry.kind} '{alias}': {owner.owner} (by '{owner.name}') and {entry.owner}"
                    f" (by '{entry.name}'). Uninstall one."
                )
            aliases[key] = entry
    return {**names, **aliases}


def kernel_headers(manager: pluggy.PluginManager) -> dict[Path, str]:
    """The headers that the hook `dmlcore_kernel_headers` offers, and their owners.

    Raises:
        PluginError: a path that is no file `NAME.h`.
    """
    headers: dict[Path, str] = {}
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
            headers[path.resolve()] = owner
    return headers


@functools.cache
def registry(kind: str) -> dict[str, Entry]:
    """Everything of one kind that is installed, by name."""
    return collect(manager(), kind)


def find(kind: str, name: str) -> Entry:
    """The component of a kind by its name, by an alias, or by the file it stands in: `./my_loss.py:MyLoss`.

    Raises:
        ConfigError: no such name; the message has the nearest one. Or a file that cannot be used.
        PluginError: the file raises when it is imported.
    """
    if not isinstance(name, str):
        raise ConfigError(f"a {kind} is named by text, got {type(name).__name__}")
    if is_stand_in(kind, name):
        module, _, class_name = KINDS[kind].stand_in.rpartition(".")
        return Entry(kind, name, getattr(importlib.import_module(module), class_name), "dmlcore", "")
    if plugin_files.is_reference(name):
        return _in_a_file(kind, name)
    entries = registry(kind)
    if name in entries:
        return entries[name]
    aliases = _by_alias(entries)
    if name.casefold() in aliases:
        return aliases[name.casefold()]
    names = {*entries, *(alias for entry in entries.values() for alias in entry.aliases)}
    raise ConfigError(f"there is no {kind} '{name}'.{suggestion(name, names)} `dmlcore plugins` lists them all.")


def is_stand_in(kind: str, name: str) -> bool:
    """Whether a name stands for an object that a Python program gives: `python_data`, `python_model`, `python_loss`."""
    return bool(KINDS[kind].stand_in) and name == f"python_{kind}"


def recorded_name(kind: str, name: str) -> str:
    """The name by which a run records a component: its short name for an alias, an absolute path for a file.

    Names that are not registered, such as paths of data, stay as they are.
    """
    if plugin_files.is_reference(name):
        return plugin_files.absolute(name)
    entries = registry(kind)
    entry = None if name in entries else _by_alias(entries).get(name.casefold())
    return name if entry is None else entry.name


def _in_a_file(kind: str, reference: str) -> Entry:
    for entry in registry(kind).values():
        module = sys.modules.get(entry.component.__module__)
        if plugin_files.means(reference, getattr(module, "__file__", None), entry.component.__name__):
            return entry  # the file is an installed plugin: one class, whatever it is called by
    component = plugin_files.load(reference, kind, KINDS[kind].base)
    namesake = registry(kind).get(component.name)
    if namesake is not None:
        raise ConfigError(
            f"{reference} is called '{component.name}', but {namesake.owner} has a {kind} of that name. Give it another `name`."
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

    def tell(owner: str, error: Exception) -> None:
        if isinstance(error, DmlcoreError):
            raise error
        failed(owner, error)

    call_each(manager(), event, tell, **arguments)


def call_each(
    manager: pluggy.PluginManager,
    hook: str,
    failed: Callable[[str, Exception], None],
    *,
    but: Collection[object] = (),
    **arguments: Any,
) -> None:
    """Call a hook of each plugin by itself, so that one that raises does not stop the others.

    Args:
        manager: of the plugins.
        hook: its name.
        failed: gets the owner of a hook that raised, and the exception.
        but: plugins that are left out.
        arguments: of the hook.
    """
    for implementation in reversed(getattr(manager.hook, hook).get_hookimpls()):
        if any(implementation.plugin is plugin for plugin in but):  # plugins may be unhashable
            continue
        try:
            implementation.function(*[arguments[name] for name in implementation.argnames])
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
            culprit = _culprit(error)
        except DmlcoreError:  # plugins that cannot be listed must not hide what happened
            culprit = ""
        if not culprit:
            raise
        sentence = f"{consequence()} " if consequence else ""
        raise PluginError(f"{culprit} failed: {type(error).__name__}: {error}. {sentence}`--debug` shows where.") from error


def _culprit(error: Exception) -> str:
    """The component or plugin, not of dmlcore itself, whose code an exception passed through last, in words; empty: none."""
    foreign = [entry for kind in KINDS for entry in registry(kind).values() if entry.owner != "dmlcore"]
    foreign += [Entry(kind, c.name, c, absolute, "") for kind, absolute, c in plugin_files.loaded()]
    by_class = {entry.component: entry for entry in foreign}
    modules = {
        getattr(plugin, "__name__", ""): _owner(name)
        for name, plugin in manager().list_name_plugin()
        if not name.startswith("dmlcore_plugins.")
    }
    culprit, trace = "", error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        receiver = frame.f_locals.get("self", frame.f_locals.get("cls"))
        bases = (receiver if isinstance(receiver, type) else type(receiver)).__mro__
        entry = next((by_class[base] for base in bases if base in by_class), None)
        module = frame.f_globals.get("__name__", "")
        same_module = [candidate for candidate in foreign if candidate.component.__module__ == module]
        if entry is None and len(same_module) == 1:
            entry = same_module[0]
        if entry is not None:
            owner = f"{entry.owner} {entry.version}".rstrip()
            culprit = f"{entry.kind} '{entry.name}' of {owner} ({KINDS[entry.kind].hook})"
        elif module in modules:
            called = frame.f_code.co_name
            hook = called if called in vars(hookspecs) else COMMANDS  # the only hook whose functions users call
            culprit = f"plugin {' '.join(modules[module]).rstrip()} ({hook})"
        trace = trace.tb_next
    return culprit
