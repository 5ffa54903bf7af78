"""`dmlcore data` and its sub-commands: show, example. `data` does the work."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from cyclopts import App

from dmlcore import console
from dmlcore.commands.line import CommandLine
from dmlcore.commands.trained import data_options
from dmlcore.flags import COMMON, command, flag, new_app
from dmlcore.hookspecs import hookimpl
from dmlcore.training.components import data_component

_NAMED = 5  # classes named on a line


@hookimpl
def dmlcore_commands(app: App, line: CommandLine) -> None:
    data = new_app("data", "Look at data, and make some to try things on.")
    source = flag("source", str, "The data: a data set's name or a path.", is_positional=True)
    size = flag("image_size", int | None, "Side that images are resized to, pixels (default: what the data has).")
    text = "Show what data hold: samples, classes, sizes, and what is left out."
    data.command(command(_show, [source, size, *_option_flags(line), *COMMON], text), name="show")
    flags = [
        flag("folder", Path, "The folder to write, which is new or empty.", is_positional=True),
        flag("classes", int, "Classes.", 40),
        flag("samples", int, "Pictures of each class.", 12),
        flag("size", int, "Height and width of the pictures, pixels.", 96),
        flag("seed", int, "Seed of all that is drawn.", 0),
        *COMMON,
    ]
    text = "Write a small data set of colour photographs of signs, in one folder per class."
    data.command(command(_example, flags, text), name="example")
    app.command(data, name="data")


def _option_flags(line: CommandLine) -> list[inspect.Parameter]:
    """Flags of the source that `dmlcore data show SOURCE` names."""
    if line.command != "data" or "show" not in line.words:
        return []
    behind = line.words[line.words.index("show") + 1 :]
    named = behind[0] if behind and not behind[0].startswith("-") else None
    return line.add(data_component(named)) if named else []


def _show(source: str, *, image_size: int | None, json: bool, debug: bool, **tables: Any) -> int:
    from dmlcore.data.summary import summary

    facts = summary(source, data_options(tables), image_size)
    if json:
        console.show_json(facts)
        return 0
    classes = facts["classes"]
    shown = {
        "source": facts["source"],
        "kind": f"{facts['kind']} {' x '.join(map(str, facts['sample_shape']))}",
        "samples": f"{facts['samples']:,}" + ("" if facts["in_memory"] else ", decoded when they are needed"),
        "classes": f"{classes:,}" if classes else "none: the data have no labels",
    }
    noun = "label" if facts["labels"] else "class"
    if facts["labels"]:
        shown["labels"] = f"{facts['labels']:,}; samples have several"
        del shown["classes"]
    if classes:
        per_class = facts["samples_per_class"]
        if per_class["least"] == per_class["most"]:
            shown[f"samples per {noun}"] = f"{per_class['most']:,}"
        else:
            shown[f"samples per {noun}"] = f"{per_class['least']:,} to {per_class['most']:,}, median {per_class['median']:g}"
            shown["largest"] = ", ".join(f"{name} ({count:,})" for name, count in facts["largest"][:_NAMED])
            shown["smallest"] = ", ".join(f"{name} ({count:,})" for name, count in facts["smallest"][:_NAMED])
        parts = facts["split"]
        shown["split"] = (
            ", ".join(f"{part} {count:,}" for part, count in parts.items()) if parts else f"none: drawn by {noun} when training"
        )
    console.show_facts(shown)
    for note in facts["notes"]:
        console.show(f"note: {note}")
    return 0


def _example(folder: Path, *, classes: int, samples: int, size: int, seed: int, json: bool, debug: bool) -> int:
    from dmlcore.data.example_pictures import write_example

    about = write_example(folder, classes=classes, samples=samples, size=size, seed=seed)
    if json:
        console.show_json(about)
        return 0
    console.show(f"{about['pictures']:,} pictures of {about['classes']:,} classes in {folder}")
    console.show(f"Train on them by: dmlcore train --data {folder}")
    return 0
