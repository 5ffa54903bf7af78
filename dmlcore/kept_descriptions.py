"""The description of all components, kept on disk between processes: it is shown again without loading torch or any plugin.

It holds as long as no file that was loaded to make it has changed, and the same plugins are installed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dmlcore import plugins
from dmlcore.description import describe_components
from dmlcore.errors import DmlcoreError
from dmlcore.files import cache_folder, write_atomically


def described_components() -> list[dict[str, Any]]:
    """What `describe_components` returns, from the disk where that is certain to be the same."""
    if plugins.manager.cache_info().currsize:  # loaded already, so nothing is gained
        return describe_components()
    place, facts = _place(), _facts()
    entries = _read(place, facts)
    if entries is None:
        entries = describe_components()
        _keep(place, facts, entries)
    return entries


def _place() -> Path | None:
    """The file of this interpreter; None where there is no folder for it."""
    interpreter = hashlib.sha256(f"{sys.prefix} {sys.version}".encode()).hexdigest()[:16]
    try:
        return cache_folder() / f"plugins-{interpreter}.json"
    except DmlcoreError:
        return None


def _facts() -> list[Any]:
    """What the description depends on beside files: which plugins are installed, switches, the machine."""
    points = sorted(
        [point.name, point.value, point.dist.name if point.dist else "", point.dist.version if point.dist else ""]
        for point in plugins.entry_points()
    )
    switches = sorted([name, value] for name, value in os.environ.items() if name.startswith(("DML_", "DMLCORE_")))
    return [sys.path, os.uname().nodename, points, switches]


def _read(place: Path | None, facts: list[Any]) -> list[dict[str, Any]] | None:
    if place is None:
        return None
    try:
        seal, _, text = place.read_text(encoding="utf-8").partition("\n")
    except (OSError, ValueError):
        return None
    if hashlib.sha256(text.encode()).hexdigest() != seal:
        return None
    kept = json.loads(text)
    files, folders = kept["files"], kept["folders"]
    is_valid = kept["facts"] == facts and _stamps(files) == files and _names_in(folders) == folders
    return kept["entries"] if is_valid else None


def _keep(place: Path | None, facts: list[Any], entries: list[dict[str, Any]]) -> None:
    # Whether a plugin's functor compiles depends on more than files: on the compiler, for one.
    if place is None or any(entry["owner"] != "dmlcore" and entry.get("has_fused_form") for entry in entries):
        return
    sources = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    files = _stamps(source for source in sources if source)
    folders = _names_in({str(Path(file).parent) for file in files if "dmlcore_plugins" in Path(file).parts})
    text = json.dumps({"facts": facts, "files": files, "folders": folders, "entries": entries})
    seal = hashlib.sha256(text.encode()).hexdigest()
    with contextlib.suppress(DmlcoreError, OSError):  # a full disk or a foreign folder only costs the time again
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(place, f"{seal}\n{text}".encode())


def _stamps(files: Iterable[str]) -> dict[str, list[int]]:
    """Size and time of change of files; nothing for those that are gone."""
    stamps = {}
    for file in files:
        with contextlib.suppress(OSError):
            status = os.stat(file)
            stamps[file] = [status.st_size, status.st_mtime_ns]
    return stamps


def _names_in(folders: Iterable[str]) -> dict[str, list[str]]:
    """The names in the folders of built-in plugins, since a new file there is a new plugin."""
    return {folder: sorted(set(os.listdir(folder)) - {"__pycache__"}) for folder in folders if os.path.isdir(folder)}
