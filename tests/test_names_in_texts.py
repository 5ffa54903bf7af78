"""What docstrings, comments and pages name exists: dotted names of dmlcore, and files of the repository."""

from __future__ import annotations

import ast
import importlib
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ROOMS = ("dmlcore", "plugins", "benchmarks", "examples")
EXTENSIONS = {"dmlcore._cpu", "dmlcore._cuda"}
DOTTED = re.compile(r"(?<![\w./-])(dmlcore(?:_plugins)?(?:\.[A-Za-z_]\w*)+)(?![\w/-]|\.\w)")
PATH = re.compile(r"(?<![\w./~-])((?:\w[\w.-]*/)*\w[\w-]*\.(?:py|h|cpp|cu)|docs/[\w/-]*\w\.md)(?![\w/])")
HERE = sorted(
    {path.stem if path.suffix == ".py" else path.name for path in (ROOT / "dmlcore").iterdir()} - {"__init__", "data"}
)
SHORT = re.compile(rf"`((?:{'|'.join(HERE)})\.(?!py\b|toml\b|json|md\b|csv\b|npz\b|h\b)[a-z]\w*(?:\.\w+)*)`")
# Names of files that stand for those of readers, or are written by commands.
EXAMPLES = {"my_loss.py", "my_loss.h", "name.h", "spread_loss.py", "dmlcore_dcl"}


def sources() -> Iterator[Path]:
    for room in ROOMS:
        yield from (path for path in (ROOT / room).rglob("*.py") if "build" not in path.parts)
    yield from (ROOT / "docs").rglob("*.md")
    yield ROOT / "README.md"


def texts(path: Path) -> Iterator[str]:
    """The text of a page; docstrings and comments of a module."""
    content = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield content
        return
    for node in ast.walk(ast.parse(content)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value.value
    for token in tokenize.generate_tokens(io.StringIO(content).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


@cache
def exists(name: str) -> bool:
    """Whether a dotted name is a module, or something inside one."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[length:]:
            if not hasattr(value, attribute):
                return False
            value = getattr(value, attribute)
        return True
    return False


@cache
def file_names() -> frozenset[str]:
    ignored = {".git", "build", "__pycache__"}
    paths = (path for path in ROOT.rglob("*") if path.is_file() and not ignored & set(path.relative_to(ROOT).parts))
    parts = (path.relative_to(ROOT).parts for path in paths)
    return frozenset("/".join(names[start:]) for names in parts for start in range(len(names)))  # also from a room on


def wrong_names(text: str) -> Iterator[str]:
    for match in DOTTED.finditer(text):
        is_built = match[1] in EXTENSIONS  # `_cuda` is there only where a CUDA compiler was
        if not exists(match[1]) and not is_built and not match[1].startswith("dmlcore.egg"):
            yield match[1]
    for match in SHORT.finditer(text):  # a room without `dmlcore.` before it
        if not exists(f"dmlcore.{match[1]}"):
            yield match[1]
    for match in PATH.finditer(text):
        parts = match[1].split("/")
        is_example = not EXAMPLES.isdisjoint(parts) or parts[-1].partition(".")[0].isupper()
        if match[1] not in file_names() and not is_example:
            yield match[1]


def test_what_is_found() -> None:
    text = "`dmlcore.losses.Loss`, dmlcore.losses.Los, `dmlcore.nowhere`, `losses.create`, `losses.make`, dmlcore/plugins.py"
    assert list(wrong_names(text)) == ["dmlcore.losses.Los", "dmlcore.nowhere", "losses.make"]
    text = "kernels/extension.py, kernels/no_module.py, docs/no_page.md, `no_module.py`, ./my_loss.py, NAME.h"
    assert list(wrong_names(text)) == ["kernels/no_module.py", "docs/no_page.md", "no_module.py"]


def test_texts_name_what_exists() -> None:
    wrong = {f"{path.relative_to(ROOT)}: {name}" for path in sources() for text in texts(path) for name in wrong_names(text)}
    assert not wrong, sorted(wrong)
