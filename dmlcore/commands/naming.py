"""From what an author types to a component: a name or an alias, a class in a file, or the folder of a package."""

from __future__ import annotations

from dmlcore import plugin_files, plugins
from dmlcore.errors import ConfigError, suggestion
from dmlcore.files import expanded
from dmlcore.kinds import KINDS

NOT_HERE = ("does not derive from", "holds none")  # refusals that only mean: of another kind


def component_of(name: str, kinds: list[str]) -> plugins.Entry:
    """The one component that is meant, of any of the kinds.

    Raises:
        ConfigError: there is none, or there are several.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(f"kind is '{kind}', but must be one of {', '.join(KINDS)}")
    if plugin_files.is_reference(name):
        return _of_files(name, [name], kinds)
    if expanded(name).is_dir() and not _entries_called(name, kinds):
        files = plugin_files.package_modules(expanded(name))
        return _of_files(name, [str(file) for file in files], kinds)
    entries = _entries_called(name, kinds)
    if not entries:
        raise ConfigError(_why_not_named(name, kinds))
    if len(entries) > 1:
        meanings = " and ".join(f"a {entry.kind}" for entry in entries)
        raise ConfigError(f"'{name}' is the name of {meanings}; say which by --kind")
    return entries[0]


def _entries_called(name: str, kinds: list[str]) -> list[plugins.Entry]:
    """Those with this name, or else with this alias."""
    entries = [plugins.registry(kind)[name] for kind in kinds if name in plugins.registry(kind)]
    if entries:
        return entries
    shorts = {kind: plugins.recorded_name(kind, name) for kind in kinds}
    return [plugins.registry(kind)[short] for kind, short in shorts.items() if short in plugins.registry(kind)]


def _why_not_named(name: str, kinds: list[str]) -> str:
    if "/" in name or name.startswith("."):
        return (
            f"there is no file or folder '{name}'. Name a file and its class (FILE.py:CLASS), the folder of a package that"
            f" `dmlcore plugins new` wrote, or what `dmlcore plugins` lists."
        )
    names = {entry for kind in kinds for entry in plugins.registry(kind)}
    what = kinds[0] if len(kinds) == 1 else "plugin"
    return f"there is no {what} '{name}'.{suggestion(name, names)} `dmlcore plugins` lists them all."


def _of_files(typed: str, references: list[str], kinds: list[str]) -> plugins.Entry:
    entries: list[plugins.Entry] = []
    refusals: list[ConfigError] = []
    for reference in references:
        for kind in kinds:
            try:
                entries.append(plugins.find(kind, reference))
            except ConfigError as error:
                refusals.append(error)
    if len(entries) == 1:
        return entries[0]
    if entries:
        names = ", ".join(f"{entry.owner}" for entry in entries)
        raise ConfigError(f"{typed} holds {len(entries)} components; say which: {names}")
    serious = [error for error in refusals if not any(words in str(error) for words in NOT_HERE)]
    if serious:
        raise serious[0]
    if len(kinds) == 1:
        raise refusals[0]
    raise ConfigError(f"{typed} names nothing that a plugin can offer: {', '.join(KINDS)}")
