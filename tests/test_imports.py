"""Imports run one way, also inside functions and type hints, and in no rings. Only console.py and commands/ print, only cli.py
exits, only kernels/ names the extensions, torch loads late.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch

import dmlcore
from dmlcore import kernels

PACKAGE = Path(dmlcore.__file__).parent
# Each room may import rooms of lower number, and its own.
FLOORS = {
    "errors": 0,
    "texts": 0,
    "version": 0,
    "files": 1,
    "interruption": 1,
    "meeting": 1,
    "allocation": 1,
    "progress": 1,
    "seals": 1,
    "trust": 1,
    "locks": 2,
    "kinds": 1,
    "hookspecs": 2,
    "config": 2,
    "plugin_files": 2,
    "plugins": 3,
    "launch": 2,
    "ranks": 2,
    "kernels": 4,
    "losses": 5,
    "data": 6,
    "ensemble": 7,
    "models": 8,
    "evaluation": 9,
    "reports": 10,
    "training": 11,
    "serving": 12,
    "testing": 13,
    "protocols": 13,
    "description": 14,
    "kept_descriptions": 15,
    "authoring": 15,
    "flags": 15,
    "console": 16,
    "commands": 17,
    "cli": 18,
    "__main__": 19,
    "__init__": -1,
}
SOURCES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def modules() -> dict[str, Path]:
    """Every module of dmlcore by its dotted name."""
    names = {}
    for path in SOURCES:
        parts = ("dmlcore", *path.relative_to(PACKAGE).with_suffix("").parts)
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def annotation_names(tree: ast.AST) -> Iterator[str]:
    """Dotted names inside annotations that are written as text."""
    for node in ast.walk(tree):
        hints = [node.annotation] if isinstance(node, ast.arg | ast.AnnAssign) else []
        hints += [node.returns] if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else []
        for hint in filter(None, hints):
            for part in ast.walk(hint):
                if isinstance(part, ast.Constant) and isinstance(part.value, str) and part.value.startswith("dmlcore."):
                    yield part.value


@cache
def imports(path: Path) -> frozenset[str]:
    """Modules of dmlcore that a file names: at its top, inside functions, for type checkers and in annotations."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = list(annotation_names(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            raise AssertionError(f"{path}:{node.lineno} imports relatively; name the module in full")
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names += [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
    resolved = set()
    for name in names:
        while name and name not in modules():  # a class or function: the module that holds it
            name = name.rpartition(".")[0]
        resolved.add(name)
    return frozenset(resolved - {"", "dmlcore"})


def test_every_room_has_a_floor() -> None:
    assert {room(path) for path in SOURCES} <= set(FLOORS)


def test_imports_run_one_way() -> None:
    wrong = set()
    for path in SOURCES:
        for name in imports(path):
            other = room(modules()[name])
            if room(path) != "__init__" and other != room(path) and FLOORS[other] >= FLOORS[room(path)]:
                wrong.add(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not wrong, sorted(wrong)


def rings(graph: dict[str, set[str]]) -> list[set[str]]:
    """Groups of more than one module of which each reaches each other by imports (Tarjan's algorithm)."""
    numbers: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    groups: list[set[str]] = []

    def visit(name: str) -> None:
        numbers[name] = lowest[name] = len(numbers)
        stack.append(name)
        for target in sorted(graph.get(name, ())):
            if target not in numbers:
                visit(target)
                lowest[name] = min(lowest[name], lowest[target])
            elif target in stack:
                lowest[name] = min(lowest[name], numbers[target])
        if lowest[name] == numbers[name]:
            group = set(stack[stack.index(name) :])
            del stack[stack.index(name) :]
            groups.append(group)

    for name in sorted(graph):
        if name not in numbers:
            visit(name)
    return [group for group in groups if len(group) > 1]


def test_the_search_for_rings() -> None:
    graph = {"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": {"e"}, "e": {"d"}, "f": {"a", "f"}}
    assert sorted(map(sorted, rings(graph))) == [["a", "b", "c"], ["d", "e"]]


def test_imports_make_no_rings() -> None:
    graph = {name: set(imports(path)) for name, path in modules().items() if name != "dmlcore"}
    wrong = [sorted(group) for group in rings(graph)]
    assert not wrong, wrong


def test_only_the_console_prints_only_the_cli_exits_only_kernels_name_extensions() -> None:
    wrong = []
    for path in SOURCES:
        script = path.name == "build.py"  # a developer's script, run by hand
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == "print"
                and room(path) not in ("console", "commands")
                and not script
            ):
                wrong.append(f"{path.name}:{node.lineno} prints")
            if (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) in ("sys.exit", "exit", "os._exit")
                and room(path) != "cli"
                and not script
            ):
                wrong.append(f"{path.name}:{node.lineno} exits")
        if room(path) != "kernels" and ('"_cpu"' in text or "dmlcore._c" in text):
            wrong.append(f"{path.name} names an extension")
        if room(path) not in ("commands", "cli", "console") and "dmlcore.console" in text:
            wrong.append(f"{path.name} uses the console")
    assert not wrong, wrong


def test_torch_is_loaded_on_first_use_only() -> None:
    code = "import sys, dmlcore, dmlcore.cli; print('torch' in sys.modules, 'torchvision' in sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"], done.stderr
    code = "import sys, dmlcore; dmlcore.losses.create('ms'); dmlcore.data, dmlcore.models; print('torchvision' in sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_losses_load_neither_the_graph_compiler_nor_sympy() -> None:
    code = """
import sys, torch, dmlcore
loss = dmlcore.losses.create("ms")
loss(torch.randn(8, 4, requires_grad=True), torch.arange(8) // 2).backward()
print([name for name in ("torch._dynamo", "torch._inductor", "sympy", "torchvision") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_our_mark_of_a_constant_is_the_compilers() -> None:
    def ours() -> None: ...
    def theirs() -> None: ...

    kernels.constant_in_graphs(ours)
    torch.compiler.assume_constant_result(theirs)
    assert vars(ours) == vars(theirs) != {}


def test_a_mistyped_command_and_a_repeated_list_load_no_torch(tmp_path: Path) -> None:
    code = "import sys; from dmlcore.cli import main; main({words}); print('torch' in sys.modules, file=sys.stderr)"

    def torch_is_loaded(*words: str) -> bool:
        environment = {**os.environ, "DML_CACHE": str(tmp_path)}
        command = [sys.executable, "-P", "-c", code.format(words=list(words))]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        return {"True": True, "False": False}[done.stderr.split()[-1]]

    assert not torch_is_loaded("trian")
    assert torch_is_loaded("plugins", "--json")
    assert not torch_is_loaded("plugins", "--json") and not torch_is_loaded("plugins", "ms") and not torch_is_loaded("plugins")


def test_builtin_plugins_import_public_names_only() -> None:
    import dmlcore_plugins

    wrong = []
    for path in Path(dmlcore_plugins.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("dmlcore."):
                wrong += [f"{path.name}: {alias.name}" for alias in node.names if alias.name.startswith("_")]
                if node.module.split(".")[-1].startswith("_"):
                    wrong.append(f"{path.name}: {node.module}")
    assert not wrong, wrong
