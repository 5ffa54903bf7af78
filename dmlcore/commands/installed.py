"""The installed plugins that may add commands, found without importing the others: `dmlcore --help` does not wait for torch."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pluggy

from dmlcore import plugins
from dmlcore.errors import ConfigError, PluginError
from dmlcore.plugins import COMMANDS


def command_manager(failed: Callable[[str, Exception], None]) -> pluggy.PluginManager:
    """A manager of the installed plugins that may add commands, and of no others, so that `--help` need not wait for torch.

    Args:
        failed: gets the name of an entry point that cannot be loaded, and the exception. The others are loaded all the same.
    """
    quick = plugins.new_manager()
    _load(quick, failed, _may_add_commands)
    return quick


def load_all(quick: pluggy.PluginManager, failed: Callable[[str, Exception], None]) -> None:
    """Load the installed plugins that `command_manager` left out, and take those that this process has registered by itself.

    Args:
        quick: its manager, which gets them.
        failed: as there.
    """
    names = {name for name, _ in quick.list_name_plugin()}
    _load(quick, failed, lambda point: plugins.registered_name(point) not in names)
    if plugins.manager.cache_info().currsize:
        names = {name for name, _ in quick.list_name_plugin()}
        for name, plugin in plugins.manager().list_name_plugin():
            if plugin is not None and name not in names and hasattr(plugin, COMMANDS):
                plugins.register(quick, plugin, name)


def _load(
    manager: pluggy.PluginManager, failed: Callable[[str, Exception], None], is_due: Callable[[metadata.EntryPoint], bool]
) -> None:
    try:
        points = plugins.entry_points()
    except ConfigError as error:
        failed("", error)
        return
    for point in points:
        try:
            if is_due(point):
                plugins.load(manager, point)
        except PluginError as error:
            failed(point.name, error)


def _may_add_commands(point: metadata.EntryPoint) -> bool:
    """Whether the module of an entry point names the hook of commands. Its source is read, it is not imported."""
    if point.module in sys.modules:
        return hasattr(sys.modules[point.module], COMMANDS)
    try:
        spec = importlib.util.find_spec(point.module)  # of a module inside a package, this imports the package
        return spec is not None and spec.origin is not None and COMMANDS.encode() in Path(spec.origin).read_bytes()
    except Exception:  # whoever needs the plugin is told what is wrong with it
        return False
