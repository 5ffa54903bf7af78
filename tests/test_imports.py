"""Imports run one way, only console.py prints, only cli.py exits, only kernels/ names the extensions, torch loads late."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import dmlcore

PACKAGE = Path(dmlcore.__file__).parent
# Each room may import rooms of lower number, and its own.
FLOORS = {
    "errors": 0,
    "files": 1,
    "kinds": 0,
    "hookspecs": 1,
    "config": 1,
    "plugin_files": 1,
    "plugins": 2,
    "kernels": 3,
    "losses": 4,
    "ensemble": 5,
    "data": 5,
    "models": 5,
    "evaluation": 6,
    "testing": 7,
    "training": 7,
    "reports": 7,
    "protocols": 8,
    "authoring": 8,
    "description": 8,
    "flags": 9,
    "console": 10,
    "plugin_commands": 11,
    "split_commands": 11,
    "ood_commands": 11,
    "fewshot_commands": 11,
    "cli": 12,
    "__main__": 13,
    "__init__": -1,
}
SOURCES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """Rooms imported when the module loads (not inside functions, not for type checkers)."""
    found: set[str] = set()

    def visit(nodes: list[ast.stmt]) -> None:
        for node in nodes:
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "dmlcore":
                parts = node.module.split(".")
                found.update([parts[1]] if len(parts) > 1 else [alias.name for alias in node.names])
            elif isinstance(node, ast.Import):
                found.update(alias.name.split(".")[1] for alias in node.names if alias.name.startswith("dmlcore."))
            elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                continue
            elif isinstance(node, ast.If | ast.Try):
                visit(node.body)

    visit(ast.parse(path.read_text()).body)
    return {name for name in found if name in FLOORS}


def test_every_room_has_a_floor() -> None:
    assert {room(path) for path in SOURCES} <= set(FLOORS)


def test_imports_run_one_way() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {other}"
        for path in SOURCES
        for other in imported_rooms(path)
        if room(path) != "__init__" and other != room(path) and FLOORS[other] >= FLOORS[room(path)]
    ]
    assert not wrong, wrong


def test_only_the_console_prints_only_the_cli_exits_only_kernels_name_extensions() -> None:
    wrong = []
    for path in SOURCES:
        script = path.name == "build.py"  # a developer's script, run by hand
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == "print"
                and room(path) != "console"
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
    assert not wrong, wrong


def test_torch_is_loaded_on_first_use_only() -> None:
    code = "import sys, dmlcore, dmlcore.cli; print('torch' in sys.modules, 'torchvision' in sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"], done.stderr
    code = "import sys, dmlcore; dmlcore.losses.create('ms'); dmlcore.data, dmlcore.models; print('torchvision' in sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


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
