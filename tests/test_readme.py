"""The README is true: its blocks are run in order, in one temporary folder, as a reader would."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

README = Path(__file__).parent.parent / "README.md"
INSTALLS = ("pip install", "pytest")  # run by .ci/run, in an environment of their own


class Block(NamedTuple):
    language: str
    text: str


def blocks() -> list[Block]:
    return [Block(*found) for found in re.findall(r"^```(\w+)\n(.*?)^```$", README.read_text(encoding="utf-8"), re.M | re.S)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the README's reader has: pictures, features, the files it tells to write, and the plugin installed."""
    root = tmp_path_factory.mktemp("reader")
    generator = np.random.default_rng(0)
    for label in range(12):
        (root / "photos" / f"class{label}").mkdir(parents=True)
        for number in range(4):
            pixels = generator.integers(0, 255, size=(24, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "photos" / f"class{label}" / f"{number}.jpg")
    labels = np.repeat(np.arange(20), 6)
    np.savez(
        root / "features.npz",
        x=(generator.normal(size=(20, 12))[labels] + generator.normal(size=(120, 12))).astype(np.float32),
        y=labels,
    )
    for block in blocks():
        name = re.match(r"# (\S+\.(?:py|toml))\n", block.text)
        if name:
            (root / name[1]).write_text(block.text, encoding="utf-8")
        if "[project.entry-points.dmlcore]" in block.text:
            info = root / "readers_plugin-1.0.dist-info"
            info.mkdir()
            (info / "METADATA").write_text("Metadata-Version: 2.1\nName: readers_plugin\nVersion: 1.0\n")
            entries = block.text.replace("[project.entry-points.dmlcore]", "[dmlcore]").replace('"', "")
            (info / "entry_points.txt").write_text(entries)
    return root


def run(code: str, folder: Path) -> str:
    """Run Python in the reader's folder, with the reader's plugin and at most 5 training steps; gives stdout."""
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = {**os.environ, "PYTHONPATH": path, "DML_MAX_STEPS": "5", "DMLCORE_PLUGINS": "spread"}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=variables, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, f"{code}\n{done.stderr}"
    return done.stdout


def commands() -> list[list[str]]:
    """The commands of each bash block, which may build on one another; blocks may not."""
    found = [
        [line for line in block.text.splitlines() if not line.startswith(INSTALLS)]
        for block in blocks()
        if block.language == "bash"
    ]
    return [lines for lines in found if lines]


@pytest.mark.parametrize("lines", commands(), ids=lambda lines: lines[0])
def test_the_commands_of_the_readme(lines: list[str], folder: Path) -> None:
    words = [shlex.split(line) for line in lines]
    assert all(first == "dmlcore" for first, *_ in words), "the README runs something that this test does not know"
    # One process for a block: most of the time of a short command is importing torch.
    code = f"import sys; from dmlcore.cli import main; sys.exit(max(main(argv) for argv in {[argv for _, *argv in words]}))"
    assert run(code, folder).strip()


def test_the_python_of_the_readme(folder: Path) -> None:
    python = [block.text for block in blocks() if block.language == "python" and not re.match(r"# \S+\.py\n", block.text)]
    assert len(python) >= 4
    assert run("\n".join(python), folder).strip()


def test_every_block_is_run_or_known() -> None:
    assert {block.language for block in blocks()} <= {"bash", "python", "toml", "text"}
    for block in blocks():
        if block.language == "toml":
            assert block.text.startswith("# settings.toml\n") or "[project.entry-points.dmlcore]" in block.text


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README.read_text(encoding="utf-8")):
        assert (README.parent / target).exists(), target
