"""Which trunk a name means: its own, one that a trunk claims, a class in a file, or the default of a kind of data."""

from __future__ import annotations

import difflib
from typing import Any

from dmlcore import plugins
from dmlcore.errors import ConfigError, PluginError, suggestion
from dmlcore.models.trunks import Trunk


def default_trunk(kind: str) -> str:
    """The name of the trunk for a kind of data, where none is named.

    Args:
        kind: `images` or `features`.

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

    A name has one of three forms: the name of a trunk, such as `conv`; a class in a file, `FILE.py:CLASS`; or a name that a
    trunk claims, such as that of a network of another library, which the trunk wraps.

    Args:
        name: the name. None: the default trunk for the kind of data.
        kind: the kind of data, `images` or `features`.

    Returns:
        The class of the trunk, and the options that the name stands for.

    Raises:
        ConfigError: there is no such trunk, or the library that may have it is not installed.
        PluginError: two trunks claim the name.
    """
    entries = plugins.registry("model")
    name = name or default_trunk(kind)
    if name in entries:
        return entries[name].component, {}
    if plugins.plugin_files.is_reference(name) or plugins.is_stand_in("model", name):
        return plugins.find("model", name).component, {}
    claims: dict[str, dict[str, Any]] = {}
    failures: list[ConfigError] = []
    for entry in entries.values():
        if "claims" not in vars(entry.component):  # a subclass does not inherit the names: the two could not be told apart
            continue
        try:
            implied = entry.component.claims(name)
        except ConfigError as error:  # whether it is one of its names cannot be said: told only if no other trunk claims it
            failures.append(error)
            continue
        if implied is not None:
            claims[entry.name] = implied
    if len(claims) > 1:
        owners = " and ".join(f"'{owner}' of {entries[owner].owner}" for owner in claims)
        raise PluginError(f"two trunks claim the name '{name}': {owners}. Name the trunk itself, with its options")
    for owner, implied in claims.items():
        return entries[owner].component, implied
    raise ConfigError(_why_not_found(name, entries, failures))


def _why_not_found(name: str, entries: dict[str, plugins.Entry], failures: list[ConfigError]) -> str:
    if failures:
        near = difflib.get_close_matches(name, sorted(entries), n=1, cutoff=0.7)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        return f"there is no model '{name}' among {', '.join(sorted(entries))}.{hint} {' '.join(map(str, failures))}"
    further = [other for entry in entries.values() for other in entry.component.further_names()]
    names = [*entries, *further]
    # Only a near name out of the many that are claimed is worth showing; without one the trunks themselves are listed.
    is_near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    notes = [entry.component.names_note for entry in entries.values() if entry.component.names_note]
    return " ".join([f"there is no model '{name}'.{suggestion(name, names if is_near else entries)}", *notes])
