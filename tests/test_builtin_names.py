"""The core names no built-in plugin: a quoted name in dmlcore/ is a docstring's example, or is listed here with a reason."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import dmlcore
from dmlcore import plugins

PACKAGE = Path(dmlcore.__file__).parent
# Names that are words of the code as well: a folder's, milliseconds, noise of a measurement, options of images, a form of an
# exported model, a setting of a run, a similarity, a form of an embedding head.
WORDS = {"cosine", "ms", "folder", "noise", "shift", "crop", "linear", "identity", "csv", "hf", "views", "mlp"}
# Protocols train what their publications say, and so have to name it.
PUBLISHED = {"margin", "distance_weighted", "class_balanced", "histogram", "prototypical"}
# What a room still names. Shrinks, never grows.
LEFT = {
    "training": {"torchvision"},  # the package, whose version a result holds
    "ensemble": {"fixed"},
    "testing": {"contrastive"},
    "protocols": {"equal_gradient_norms", "fixed"},
    "commands": {"conv"},
}


def builtin_names() -> set[str]:
    return {entry.name for kind in plugins.KINDS for entry in plugins.registry(kind).values() if entry.owner == "dmlcore"}


def quoted(path: Path) -> Iterator[tuple[int, str]]:
    """Line and content of every string of a file that is no docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value


def test_the_core_names_no_plugin() -> None:
    names = builtin_names() - WORDS
    assert {"glyphs", "conv", "trigrams", "class_balanced"} <= names
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        allowed = LEFT.get(room, set()) | (PUBLISHED if room == "protocols" else set())
        for line, text in quoted(path):
            if text in names - allowed:
                wrong.append(f"{path.relative_to(PACKAGE)}:{line} names '{text}'")
    assert not wrong, wrong


def test_what_is_listed_is_installed() -> None:
    listed = set().union(WORDS, PUBLISHED, *LEFT.values())
    assert listed <= builtin_names(), listed - builtin_names()
