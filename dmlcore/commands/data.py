"""`dmlcore data` and its sub-commands: show, check, example. `data` does the work."""

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
    text = "Read every sample and say what is recognised, what cannot be read, and what stands in two parts of the split."
    data.command(command(_check, [source, *_option_flags(line), *COMMON], text), name="check")
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
    """Flags of the source that `dmlcore data show SOURCE`, or `check`, names."""
    verb = next((word for word in line.words[1:2] if word in ("show", "check")), None)
    if line.command != "data" or verb is None:
        return []
    behind = line.words[2:]
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


def _check(source: str, *, json: bool, debug: bool, **tables: Any) -> int:
    from dmlcore.data.check import check_data

    facts = check_data(source, data_options(tables))
    if json:
        console.show_json(facts)
        return 0
    classes = facts["classes"]
    shown = {
        "source": facts["source"],
        "samples": f"{facts['samples']:,} {facts['kind']}",
        "classes": f"{classes:,}" if classes else "none: the data have no labels",
    }
    if len(facts["parts"]) == 1 and classes:
        shown["smallest class"] = _smallest(facts["smallest_class"])
    elif classes:
        for part, counts in facts["parts"].items():
            about = f"{counts['samples']:,} samples of {counts['classes']:,} classes"
            shown[part] = f"{about}, the smallest is {_smallest(counts['smallest_class'])}" if counts["samples"] else "nothing"
    if roles := facts.get("roles"):
        shown["test"] += f"; {roles['queries']:,} queries, a gallery of {roles['gallery']:,}"
    for side, (least, median, most) in (facts["sizes"] or {}).items():
        shown[f"{side}s"] = f"{least:,} to {most:,} pixels, median {median:,.0f}"
    if facts["kind"] == "images":
        names = [f"{name} ({reason})" for name, reason in facts["unreadable"].items()]
        shown["unreadable"] = f"{len(names):,}" + (f": {', '.join(names[:_NAMED])}" if names else "")
    for key, what in (("exact_copies", "the same content"), ("near_copies", "nearly the same")):
        if facts[key] is not None:
            shown[what] = _copies(facts[key])
    console.show_facts(shown)
    for key, what in (("exact_copies", "same"), ("near_copies", "near")):
        for one, other in (facts[key] or {"pairs": []})["pairs"][:_NAMED]:
            console.show(f"{what}: {_sample(one)} and {_sample(other)}")
    for note in facts["notes"]:
        console.show(f"note: {note}")
    return 0


def _smallest(of: dict[str, Any]) -> str:
    return f"{of['name']} ({of['samples']:,})"


def _sample(of: dict[str, str]) -> str:
    return f"{of['name']} ({of['class']}, {of['part']})" if of["class"] else of["name"]


def _copies(of: dict[str, Any]) -> str:
    if not of["samples"]:
        return "none"
    words = [f"{of['samples']:,} samples"]
    words += [f"{count:,} stand in both {parts}" for parts, count in of["between_parts"].items()]
    words += [f"{of['of_two_classes']:,} are in two classes"] if of["of_two_classes"] else []
    return "; ".join(words)


def _example(folder: Path, *, classes: int, samples: int, size: int, seed: int, json: bool, debug: bool) -> int:
    from dmlcore.data.example_pictures import write_example

    about = write_example(folder, classes=classes, samples=samples, size=size, seed=seed)
    if json:
        console.show_json(about)
        return 0
    console.show(f"{about['pictures']:,} pictures of {about['classes']:,} classes in {folder}")
    console.show(f"Train on them by: dmlcore train --data {folder}")
    return 0
