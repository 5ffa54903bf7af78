"""`dmlcore recipes`: settings under a name, as publications train, what they reach, and where they still differ."""

from __future__ import annotations

import shlex
from typing import Any

from cyclopts import App

from dmlcore import console
from dmlcore.flags import COMMON, command, flag
from dmlcore.hookspecs import hookimpl
from dmlcore.training import recipes
from dmlcore.training.recipes import Recipe


@hookimpl
def dmlcore_commands(app: App) -> None:
    flags = [flag("name", str | None, "One recipe, to see its settings (default: list them).", "", is_positional=True), *COMMON]
    app.command(command(_show, flags, "List recipes, or show one: settings as publications train."), name="recipes")


def _show(name: str, *, json: bool, debug: bool) -> int:
    if name:
        recipe = recipes.find(name)
        console.show_json(_as_dict(recipe)) if json else show_recipe(recipe, name)
        return 0
    known = [recipes.find(name) for name in recipes.names()]
    if json:
        console.show_json({"recipes": [_as_dict(recipe) for recipe in known]})
        return 0
    rows = [(recipe.name, recipe.summary, recipe.source, recipe.reaches) for recipe in known]
    console.show_table(["name", "what it trains", "source", "published"], rows, has_names=True)
    console.show("Settings of one, and where it differs from its publication: dmlcore recipes NAME")
    return 0


def show_recipe(recipe: Recipe, called: str) -> None:
    """Everything that a recipe says, its settings as a configuration file, and the command that runs it.

    Args:
        recipe: what is shown.
        called: what `--recipe` takes: its name, or the path of its file.
    """
    import tomli_w

    console.show_sentences(f"{recipe.name}: {recipe.summary}")
    console.show_sentences(f"Source: {recipe.source}")
    console.show_sentences(f"Published: {recipe.reaches}")
    if recipe.needs:
        console.show_sentences(f"Needs: {recipe.needs}")
    console.show("What remains different from the publication:" if recipe.differs else "Nothing is known to differ.")
    for sentence in recipe.differs:
        console.show_sentences(f"- {sentence}")
    console.show()
    for line in tomli_w.dumps(recipe.values).rstrip().splitlines():
        console.show(line)
    console.show()
    rest = "--data DATA" if recipe.command == "train" else "--data DATA --out FOLDER"
    console.show(f"Run it: dmlcore {recipe.command} --recipe {shlex.quote(called)} {rest}")


def _as_dict(recipe: Recipe) -> dict[str, Any]:
    return {
        "name": recipe.name,
        "command": recipe.command,
        "summary": recipe.summary,
        "source": recipe.source,
        "reaches": recipe.reaches,
        "needs": recipe.needs,
        "differs": list(recipe.differs),
        "settings": recipe.values,
    }
