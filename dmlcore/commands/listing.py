"""What `dmlcore plugins` shows: everything plugins offer, a table for each kind, or one component with its options."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dmlcore import console
from dmlcore.errors import ConfigError, nearest, suggestion
from dmlcore.kept_descriptions import described_components
from dmlcore.kinds import KINDS

SUB_COMMANDS = ("new", "check", "bench", "hooks", "papers")


def show(name: str | None, *, json: bool, debug: bool) -> int:
    """List everything, or what is called `name` by its name or an alias."""
    entries = described_components()
    if name is not None:
        names = {other for entry in entries for other in (entry["name"], *entry["aliases"])}
        entries = [entry for entry in entries if _is_called(entry, name)]
        if not entries:
            raise ConfigError(f"there is nothing called '{name}'.{_hint(name, names)} `dmlcore plugins` lists everything.")
    if json:
        console.show_json({"plugins": entries})
    elif name is None:
        show_components(entries)
    else:
        for entry in entries:
            show_component(entry)
    return 0


def _hint(name: str, names: Iterable[str]) -> str:
    # A word behind `plugins` that is no sub-command is taken for a name, so a mistyped sub-command ends here.
    near = nearest(name, SUB_COMMANDS)
    return f" Did you mean `dmlcore plugins {near}`?" if near else suggestion(name, names)


def _is_called(entry: dict[str, Any], name: str) -> bool:
    return entry["name"] == name or name.casefold() in [alias.casefold() for alias in entry["aliases"]]


def show_components(entries: list[dict[str, Any]]) -> None:
    """Everything plugins offer: a table for each kind, a line for each component."""
    for kind in KINDS.values():
        of_kind = [entry for entry in entries if entry["kind"] == kind.name]
        if of_kind:
            console.show(kind.summary)
            _show_kind(kind.name, of_kind)
    console.show("Options of one: dmlcore plugins NAME")


def _show_kind(kind: str, entries: list[dict[str, Any]]) -> None:
    has_papers = any(entry["paper"] for entry in entries)
    has_guests = any(entry["owner"] != "dmlcore" for entry in entries)
    columns = ["name", "what it is"] + ["paper"] * has_papers + ["fused"] * (kind == "loss") + ["from"] * has_guests
    rows = []
    for entry in entries:
        row = [entry["name"], entry["title"] or entry["summary"]] + [entry["paper"]] * has_papers
        row += [_fused_on(entry)] * (kind == "loss") + [f"{entry['owner']} {entry['version']}".strip()] * has_guests
        rows.append(row)
    console.show_table(columns, rows, has_names=True)


def _fused_on(entry: dict[str, Any]) -> str:
    return ", ".join(entry.get("fused_on", [])) or "no"


def show_component(entry: dict[str, Any]) -> None:
    """One component with its options."""
    console.show(f"{entry['name']} ({entry['kind']} of {entry['owner']} {entry['version']})")
    if entry["title"]:
        console.show(", ".join(filter(None, (entry["title"], entry["paper"]))))
    if entry["aliases"]:
        console.show(f"Also called: {', '.join(entry['aliases'])}")
    console.show(entry["help"], is_page=True)
    if entry.get("is_fused") is not None:
        console.show(f"fused: {_fused_on(entry)}" + ("" if entry["is_fused"] else f", {entry['why_not_fused']}"))
    if not entry["options"]:
        console.show("It has no options.")
        return
    is_miner = entry["kind"] == "miner"
    prefix = "" if is_miner else f"--{entry['name']}."
    rows = [
        (prefix + option["name"], option["type"], _value(option["default"]), " ".join(option["help"].split()))
        for option in entry["options"]
    ]
    console.show_table(["option", "type", "default", "what it does"], rows)
    if is_miner:
        console.show(f"Given with its name to a loss: --LOSS.miner '{entry['name']}({entry['options'][0]['name']}=VALUE)'")


def _value(value: Any) -> str:
    return "none" if value is None else ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
