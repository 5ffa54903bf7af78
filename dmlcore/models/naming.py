"""Which trunk a name means: its own, a network of a library, a class in a file, or the default of a kind of data."""

from __future__ import annotations

from typing import Any

from dmlcore import plugins
from dmlcore.errors import ConfigError, PluginError, suggestion
from dmlcore.models.trunks import Trunk


def default_trunk(kind: str) -> str:
    """The name of the trunk for a kind of data, where none is named.

    Args:
        kind: `images`, `features` or `texts`.

    Raises:
        PluginError: no trunk is the default of this kind, or two are.
    """
    entries = plugins.registry("model").values()
    names = [entry.name for entry in entries if kind in vars(entry.component).get("default_for", ())]
    if len(names) != 1:
        raise PluginError(f"the default model for {kind} must be one trunk, but {' and '.join(names) or 'none'} says it is")
    return names[0]


def find_trunk(name: str | None, kind: str) -> tuple[type[Trunk], dict[str, Any]]:
    """Find the trunk that a name means.

    A name has one of three forms: the name of a trunk, such as `conv`; a class in a file, `FILE.py:CLASS`; or the name of a
    trunk, a slash, and a network of the library that the trunk wraps, such as `torchvision/resnet18`.

    Args:
        name: the name. None: the default trunk for the kind of data.
        kind: the kind of data, `images`, `features` or `texts`.

    Returns:
        The class of the trunk, and the options that the name stands for.

    Raises:
        ConfigError: there is no such trunk.
    """
    entries = plugins.registry("model")
    name = name or default_trunk(kind)
    if name in entries:
        return entries[name].component, {}
    if plugins.plugin_files.is_reference(name) or plugins.is_stand_in("model", name):
        return plugins.find("model", name).component, {}
    libraries = {f"{owner}/": entry.component for owner, entry in entries.items() if entry.component.names_option}
    # Names of trunks may hold slashes themselves: the longest that fits is meant.
    prefix = max((prefix for prefix in libraries if name.startswith(prefix)), key=len, default="")
    if prefix:
        return libraries[prefix], {libraries[prefix].names_option: name.removeprefix(prefix)}
    behind = (
        f" A network of a library stands behind the library's name: {', '.join(f'{own}NAME' for own in sorted(libraries))}."
    )
    raise ConfigError(f"there is no model '{name}'.{suggestion(name, entries)}{behind if libraries else ''}")
