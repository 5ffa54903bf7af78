"""`python -m benchmarks house`: size and shape of the source tree, and the Python calls of one forward. No timing.

`--tree FOLDER` and `--against PYTHON` measure another clone with its interpreter, so that two versions are compared by the same
rules: this file needs nothing of the tree it looks at.
"""

from __future__ import annotations

import argparse
import ast
import json
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
AREAS = {"dmlcore": "*.py", "plugins": "*.py", "csrc": "*.[hc]*", "benchmarks": "*.py", "tools": "*.py", "tests": "*.py"}
PACKAGE = "dmlcore"  # whose imports are looked at
LONG_FUNCTION = 50  # lines
# Words that say nothing about what a variable holds.
EMPTY_WORDS = ("found", "one", "chosen", "others", "known", "kept", "wanted", "given", "made", "more", "mine")
LOSSES, WEIGHTING = ["circle", "binomial_deviance", "norm_softmax"], "equal_gradient_norms"
SAMPLES, WIDTH, CLASSES = 128, 64, 32
MEASURED_CALL = 3  # the first ones fill caches


def measure(tree: Path, python: str | None = sys.executable) -> dict[str, Any]:
    """All figures of a tree.

    Args:
        tree: root of a clone.
        python: interpreter with that clone's dmlcore installed; None: the calls are not counted.
    """
    areas = {name: area(sources(tree, name)) for name in AREAS if sources(tree, name)}
    figures: dict[str, Any] = {"areas": areas, "rings": [len(ring) for ring in rings(tree)]}
    if python:
        # A fresh process in another folder: the interpreter's own dmlcore is measured, not that of the current folder.
        done = subprocess.run(
            [python, str(Path(__file__).resolve()), "--calls"], capture_output=True, text=True, check=True, cwd=tree.parent
        )
        figures["forward"] = json.loads(done.stdout.splitlines()[-1])
    return figures


def sources(tree: Path, name: str) -> list[Path]:
    """The source files of an area."""
    return sorted(
        path
        for path in (tree / name).rglob(AREAS[name])
        if path.suffix in (".py", ".h", ".cpp", ".cu", ".cuh", ".hpp", ".cc") and "build" not in path.relative_to(tree).parts
    )


def area(paths: list[Path]) -> dict[str, Any]:
    """Files, lines, functions and words of some files."""
    lines = {path: len(path.read_text().splitlines()) for path in paths}
    trees = [ast.parse(path.read_text()) for path in paths if path.suffix == ".py"]
    longest = max(paths, key=lambda path: lines[path])
    words = Counter(name for tree in trees for name in assigned(tree))
    empty = {word: words[word] for word in EMPTY_WORDS if words[word]}
    return {
        "files": len(paths),
        "lines": sum(lines.values()),
        "median": int(statistics.median(lines.values())),
        "longest": lines[longest],
        "longest_file": longest.name,
        "long_functions": sum(map(long_functions, trees)),
        "assignments": words.total(),
        "empty_words": sum(empty.values()),
        "by_word": empty,
    }


def long_functions(tree: ast.AST) -> int:
    """Functions over 50 lines, docstring and signature included; one that stands in another counts too."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return sum((node.end_lineno or node.lineno) - node.lineno + 1 > LONG_FUNCTION for node in functions)


def assigned(tree: ast.AST) -> Iterator[str]:
    """Names that are assigned to: by `=`, loops, comprehensions, `with` and `:=`, and as attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def imports(tree: Path) -> dict[str, set[str]]:
    """Modules of the package to the modules of the package they import, in functions and for type hints too."""
    paths = {_module_name(path.relative_to(tree)): path for path in sources(tree, PACKAGE)}
    edges: dict[str, set[str]] = {}
    for name, path in paths.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        targets = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                source = ".".join([*parents, *([node.module] if node.module else [])])
                # `from package import module` needs the module, `from package import name` the package's own file
                targets |= {full if (full := f"{source}.{alias.name}") in paths else source for alias in node.names}
        edges[name] = {target for target in targets if target in paths and target != name}
    return edges


def _module_name(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def rings(tree: Path) -> list[list[str]]:
    """Files that import each other round about: strongly connected components of more than one, the largest first."""
    edges = imports(tree)
    reach = {name: _reachable(name, edges) for name in edges}
    components = {frozenset({name, *(other for other in reach[name] if name in reach[other])}) for name in edges}
    files_of_rings = [sorted(component) for component in components if len(component) > 1]
    return sorted(files_of_rings, key=lambda ring: (-len(ring), ring))


def _reachable(start: str, edges: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    ahead = [start]
    while ahead:
        for target in edges[ahead.pop()] - seen:
            seen.add(target)
            ahead.append(target)
    return seen


def forward_calls() -> dict[str, Any]:
    """Calls of Python functions of dmlcore and its plugins in one forward of an ensemble, by the file they are defined in."""
    import dmlcore_plugins
    import torch

    import dmlcore

    folders = [str(Path(package.__file__ or "").parent) for package in (dmlcore, dmlcore_plugins)]
    torch.manual_seed(0)
    ensemble = dmlcore.LossEnsemble(LOSSES, WEIGHTING, num_classes=CLASSES, embedding_dim=WIDTH)
    embeddings = torch.randn(SAMPLES, WIDTH).requires_grad_()
    labels = torch.randint(CLASSES, (SAMPLES,))
    for _ in range(MEASURED_CALL - 1):
        ensemble(embeddings, labels).backward()
    files: Counter[str] = Counter()

    def count(frame: Any, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(tuple(folders)):
            files[frame.f_code.co_filename] += 1

    sys.setprofile(count)
    ensemble(embeddings, labels)
    sys.setprofile(None)
    root = str(Path(folders[0]).parent)
    return {
        "calls": files.total(),
        "files": len(files),
        "by_file": {path.removeprefix(root + "/"): calls for path, calls in files.most_common()},
    }


def text(figures: dict[str, Any]) -> str:
    """The figures as a table, with what follows them."""
    lines = [f"{'':12}{'files':>7}{'lines':>8}{'median':>8}{'longest':>9}{'> 50 lines':>12}{'empty words':>16}  longest file"]
    for name, row in figures["areas"].items():
        share = f"{row['empty_words']} = {100 * row['empty_words'] / row['assignments']:.1f} %" if row["assignments"] else "-"
        numbers = f"{row['files']:7}{row['lines']:8}{row['median']:8}{row['longest']:9}{row['long_functions']:12}{share:>16}"
        lines.append(f"{name:12}{numbers}  {row['longest_file']}")
    words: Counter[str] = Counter()
    for row in figures["areas"].values():
        words.update(row["by_word"])
    lines.append(f"empty words: {', '.join(f'{word} {times}' for word, times in words.most_common()) or 'none'}")
    lines.append(f"import rings of {PACKAGE} (files in each): {', '.join(map(str, figures['rings'])) or 'none'}")
    if "forward" in figures:
        forward = figures["forward"]
        lines.append(f"Python calls of a forward: {forward['calls']} in {forward['files']} files")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", action="store_true", help="count the calls of a forward with this interpreter")
    assert parser.parse_args().calls
    sys.path.pop(0)  # this folder: the package that is measured is the interpreter's own
    print(json.dumps(forward_calls()))
