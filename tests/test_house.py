"""The figures of `python -m benchmarks house`, on small trees whose figures are known."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # last: an installed package stays what is measured

from benchmarks import house  # noqa: E402


def _write(tree: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = tree / "dmlcore" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_rings_are_seen_inside_functions_and_in_hints(tmp_path: Path) -> None:
    _write(
        tmp_path,
        {
            "__init__.py": "",
            "low.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from dmlcore.high import Thing\n",
            "high.py": "from dmlcore import middle\n",
            "middle.py": "def load():\n    import dmlcore.low\n",
            "part/__init__.py": "from dmlcore.part.inner import name\n",
            "part/inner.py": "from . import other\nfrom .. import low\n",
            "part/other.py": "from dmlcore.part import name\n",
        },  # two rings of one length: their order is that of their names
    )
    edges = house.imports(tmp_path)
    assert edges["dmlcore.high"] == {"dmlcore.middle"}
    assert edges["dmlcore.part.inner"] == {"dmlcore.part.other", "dmlcore.low"}
    assert house.rings(tmp_path) == [
        ["dmlcore.high", "dmlcore.low", "dmlcore.middle"],
        ["dmlcore.part", "dmlcore.part.inner", "dmlcore.part.other"],
    ]


def test_words_are_counted_wherever_names_are_assigned() -> None:
    text = (
        "found = 1\nfor one in x:\n  self.kept = [mine for mine in one]\nwith f() as (a, given):\n  (known := 2)\nprint(more)"
    )
    names = list(house.assigned(ast.parse(text)))
    assert sorted(names) == ["a", "found", "given", "kept", "known", "mine", "one"]


def test_sizes_of_an_area(tmp_path: Path) -> None:
    body = "\n".join("    x = 1" for _ in range(house.LONG_FUNCTION))
    _write(tmp_path, {"short.py": "found = 1\n", "long.py": f"def f():\n{body}\n\n\ndef g():\n    y = 1\n"})
    figures = house.measure(tmp_path, python=None)
    assert figures["rings"] == [] and list(figures["areas"]) == ["dmlcore"]
    row = figures["areas"]["dmlcore"]
    assert (row["files"], row["lines"], row["longest"], row["longest_file"]) == (2, 56, 55, "long.py")
    assert row["long_functions"] == 1 and row["assignments"] == 52 and row["empty_words"] == 1
    assert "1 = 1.9 %" in house.text(figures)


def test_the_calls_of_a_forward_are_counted_in_a_fresh_process(tmp_path: Path) -> None:
    file = tmp_path / "house.json"
    command = [sys.executable, "-m", "benchmarks", "house", "--against", sys.executable, "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    forward = json.loads(file.read_text())["forward"]
    assert 0 < forward["files"] <= forward["calls"] == sum(forward["by_file"].values())
    assert f"Python calls of a forward: {forward['calls']} in {forward['files']} files" in done.stdout
    assert all(path.startswith(("dmlcore/", "plugins/", "dmlcore_plugins/")) for path in forward["by_file"])
