"""Recipes: settings and options under a name, as a publication trains, with what they reach and where they still differ. Each
is a TOML file in the folder `recipes` of the built-in plugins, or a file of the user's. No torch here.
"""

from __future__ import annotations

import importlib.resources
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dmlcore.errors import ConfigError, suggestion
from dmlcore.training.toml_files import load_toml

PACKAGE = "dmlcore_plugins"
ABOUT = "recipe"  # the table of a file that says what it is
PICTURES = "pictures"  # the table of a file with options of whatever source of pictures the data come from
COMMANDS = ("train", "fewshot")


@dataclass(frozen=True)
class Recipe:
    """Settings under a name.

    Attributes:
        name: of its file, without the suffix.
        summary: what it trains, a line.
        source: authors, venue, year, and where the settings are from.
        reaches: what it should reach: the published figures and the data that they are of.
        differs: what remains different from the publication, a sentence each; empty: nothing that is known.
        needs: what has to be brought, such as weights, and how to run without.
        command: that it is for, `train` or `fewshot`.
        values: settings and tables of options, as in a configuration file; the flags of another command.
    """

    name: str
    summary: str
    source: str
    reaches: str
    differs: tuple[str, ...] = ()
    needs: str = ""
    command: str = "train"
    values: dict[str, Any] = field(default_factory=dict)


def names() -> list[str]:
    """The names of the built-in recipes, found by listing their folder."""
    return sorted(entry.name.removesuffix(".toml") for entry in _folder().iterdir() if entry.name.endswith(".toml"))


def find(name: str) -> Recipe:
    """A recipe by its name, or by the path of a file that ends in .toml.

    Raises:
        ConfigError: there is no such recipe, or its file is not a recipe.
    """
    if name.endswith(".toml"):
        return _read(Path(name).expanduser(), Path(name).stem)
    if name not in names():
        raise ConfigError(f"there is no recipe '{name}'.{suggestion(name, names())} `dmlcore recipes` lists them")
    with importlib.resources.as_file(_folder() / f"{name}.toml") as path:
        return _read(path, name)


def _folder() -> Any:
    return importlib.resources.files(PACKAGE) / "recipes"


def _read(path: Path, name: str) -> Recipe:
    nested = load_toml(path)
    about = nested.pop(ABOUT, None)
    required = ("summary", "source", "reaches")
    if not isinstance(about, dict) or any(not isinstance(about.get(key), str) for key in required):
        raise ConfigError(f"{path} is no recipe: its table [{ABOUT}] must say {', '.join(required)}")
    unknown = [key for key in about if key not in (*required, "differs", "needs", "command")]
    if unknown:
        raise ConfigError(f"{path}: a recipe says nothing called '{unknown[0]}'")
    if not isinstance(about.get("needs", ""), str):
        raise ConfigError(f"{path}: needs is {about['needs']!r}, but must be a text")
    differs = about.get("differs", [])
    if not isinstance(differs, list) or not all(isinstance(sentence, str) for sentence in differs):
        raise ConfigError(f"{path}: differs is {differs!r}, but must be a list of sentences")
    command = about.get("command", COMMANDS[0])
    if command not in COMMANDS:
        raise ConfigError(f"{path}: command is '{command}', but must be one of {', '.join(COMMANDS)}")
    summary, source, reaches = (about[key] for key in required)
    return Recipe(name, summary, source, reaches, tuple(differs), about.get("needs", ""), command, nested)
