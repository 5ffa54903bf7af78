"""The hook reference of the docs, generated from the hooks themselves: `dmlcore plugins hooks`."""

from __future__ import annotations

import inspect
import re
import textwrap
from pathlib import Path

from dmlcore import hookspecs, plugins
from dmlcore.authoring.pages import write_between

BEGIN, END = "<!-- hooks: begin -->", "<!-- hooks: end -->"
_EVENTS = ("training_started", "step_ended", "evaluated", "checkpoint_saved", "training_ended")


def hook_names() -> list[str]:
    """All hooks, in the order in which they are declared."""
    return [name for name, value in vars(hookspecs).items() if name.startswith("dmlcore_") and callable(value)]


def hook_reference() -> str:
    """The reference as Markdown: a paragraph per hook with its arguments, what it returns, and what offers it already."""
    return "\n\n".join(_paragraph(name) for name in hook_names()) + "\n"


def write_reference(path: str | Path) -> None:
    """Put the reference between the marks of a Markdown file, in place of what stands there.

    Raises:
        ConfigError: the file cannot be read, or lacks the marks.
    """
    write_between(path, BEGIN, END, hook_reference())


def _paragraph(name: str) -> str:
    hook = getattr(hookspecs, name)
    arguments = ", ".join(inspect.signature(hook).parameters)
    text = inspect.cleandoc(hook.__doc__ or "")
    parts = [f"### `{name}({arguments})`"]
    summary, *sections = re.split(r"\n\n(?=Args:|Returns:)", text)
    parts.append(" ".join(summary.split()) if "\n\n" not in summary else summary)
    for section in sections:
        heading, _, body = section.partition("\n")
        body = inspect.cleandoc(body)
        if heading == "Returns:":
            parts.append(f"Returns: {_flowing(body)[0].lower()}{_flowing(body)[1:]}")
        else:
            items = re.split(r"\n(?=\w+: )", body)
            parts.append("\n".join(f"- `{item.partition(':')[0]}`: {_flowing(item.partition(':')[2])}" for item in items))
    kind = next((kind.name for kind in plugins.KINDS.values() if kind.hook == name), None)
    if kind is not None:
        builtin = [f"`{entry.name}`" for entry in plugins.registry(kind).values() if entry.owner == "dmlcore"]
        parts.append(f"Built in: {', '.join(builtin)}.")
    elif name.removeprefix("dmlcore_") in _EVENTS:
        parts.append("An event: a plugin that raises here is warned about once, and training goes on.")
    return "\n\n".join(_wrapped(part) for part in parts)


def _flowing(text: str) -> str:
    return " ".join(text.split())


def _wrapped(part: str) -> str:
    """Lines of the docs' width; a list keeps its items apart."""
    lines = part.splitlines() if part.startswith("- ") else part.split("\n\n")
    indent = "  " if part.startswith("- ") else ""
    filled = [
        textwrap.fill(_flowing(line), 128, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        for line in lines
    ]
    return ("\n" if indent else "\n\n").join(filled)
