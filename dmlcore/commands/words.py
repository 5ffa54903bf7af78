"""Words behind a command that name a model, data, or an index, shared by the commands of search."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

from cyclopts import Parameter

from dmlcore.commands.line import CommandLine
from dmlcore.commands.trained import LOADING
from dmlcore.errors import ConfigError
from dmlcore.flags import flag
from dmlcore.training.components import data_component

OVERWRITE = flag("overwrite", bool, "Replace files that exist.", False)
LOADING_FLAGS = [entry.name for entry in LOADING]


def words_flag(text: str) -> inspect.Parameter:
    """Any number of words, in their order."""
    annotation = Annotated[str, Parameter(help=text)]
    return inspect.Parameter("words", inspect.Parameter.VAR_POSITIONAL, annotation=annotation)


def list_flag(name: str, text: str) -> inspect.Parameter:
    """A flag that may be given several times."""
    details = Parameter(help=text, negative=(), show_default=False)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[list[str] | None, details], default=None
    )


def data_flags(line: CommandLine, command: str, place: int) -> list[inspect.Parameter]:
    """Flags of the source that a word of this command names.

    Args:
        line: as typed.
        command: the command.
        place: of the word among those before the first flag, from 0; -1 is the last.
    """
    if line.command != command:
        return []
    words = line.words[line.words.index(command) + 1 :]
    count = next((at for at, word in enumerate(words) if word.startswith("-")), len(words))
    words = words[:count]
    if not -len(words) <= place < len(words):
        return []
    try:
        return line.add(data_component(words[place]))
    except ConfigError:  # a picture, a text, embeddings; or the command says what is wrong with it
        return []


def loading(values: dict[str, Any]) -> dict[str, Any]:
    """How to load a model, out of a command's flags."""
    return {name: values.pop(name) for name in LOADING_FLAGS if name in values}
