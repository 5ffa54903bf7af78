"""The README and the guide are true: the blocks of a page are run in order, in one temporary folder, as a reader would."""

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

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
GUIDE_PAGES = ("start", "seeing", "search", "own-data", "ensembles", "shift-and-few-shot", "in-your-own-code")
GUIDE = [ROOT / "docs" / "guide" / f"{name}.md" for name in GUIDE_PAGES]
PAGES = [README, *GUIDE]
SEARCH = ROOT / "docs" / "guide" / "search.md"
INSTALLS = ("pip install", "pytest")  # run by .ci/run, in an environment of their own

END = "that was a block\n"
RUN_BLOCKS = """
import sys
from dmlcore.cli import main

for block in {blocks}:
    for argv in block:
        if status := main(argv):
            sys.exit(f"{{argv}} ended with {{status}}")
    print({end!r}, end="", flush=True)
"""


class Block(NamedTuple):
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [Block(*parts) for parts in re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Path]:
    """A reader's folder per page."""
    return {page: reader(tmp_path_factory.mktemp(page.stem), page) for page in PAGES}


def reader(root: Path, page: Path) -> Path:
    """What a reader of the page has: pictures, features, the files it tells to write, and the README's plugin installed."""
    generator = np.random.default_rng(0)
    writes_photos = "dmlcore data example photos" in page.read_text(encoding="utf-8")
    for label in range(0 if writes_photos else 12):
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
    for block in [*blocks(README), *blocks(page)]:
        name = re.match(r"# (\S+\.(?:py|toml))\n", block.text)
        if name:
            (root / name[1]).write_text(block.text, encoding="utf-8")
        if "[project.entry-points.dmlcore]" in block.text:
            info = root / "readers_plugin-1.0.dist-info"
            info.mkdir(exist_ok=True)
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


def commands(page: Path) -> list[list[str]]:
    """The commands of each bash block of a page, in order. They may build on one another."""
    bash = [block for block in blocks(page) if block.language == "bash"]
    listed = [[part.strip() for line in block.text.splitlines() for part in line.split("&&")] for block in bash]
    return [kept for lines in listed if (kept := [line for line in lines if not line.startswith(INSTALLS)])]


# The README is for every run of the tests, the guide is slow.
@pytest.mark.parametrize(
    "page", [pytest.param(page, id=page.stem, marks=[] if page is README else pytest.mark.slow) for page in PAGES]
)
def test_the_commands_of_the_page(page: Path, folders: dict[Path, Path]) -> None:
    words = [[shlex.split(line) for line in lines] for lines in commands(page)]
    assert all(first == "dmlcore" for block in words for first, *_ in block), f"{page.name} runs what this test does not know"
    # One process for a page: most of the time of a short command is importing torch.
    told = run(RUN_BLOCKS.format(blocks=[[argv for _, *argv in block] for block in words], end=END), folders[page])
    told_by_block = told.split(END)[:-1]
    assert len(told_by_block) == len(words) and all(text.strip() for text in told_by_block)


@pytest.mark.parametrize("page, least", [(README, 1), (GUIDE[-1], 6)], ids=["README", "in-your-own-code"])
def test_the_python_of_the_page(page: Path, least: int, folders: dict[Path, Path]) -> None:
    python = [block.text for block in blocks(page) if block.language == "python" and not re.match(r"# \S+\.py\n", block.text)]
    assert len(python) >= least
    assert run("\n".join(python), folders[page]).strip()


@pytest.mark.slow
def test_the_python_of_the_page_on_search(tmp_path: Path) -> None:
    (python,) = [block.text for block in blocks(SEARCH) if block.language == "python"]
    needed = ("dmlcore data example ", "dmlcore train ", "dmlcore index runs/shop photos --out shop.index")
    lines = [line for block in blocks(SEARCH) if block.language == "bash" for line in block.text.splitlines()]
    words = [shlex.split(line)[1:] for line in lines if line.startswith(needed)]
    folder = reader(tmp_path, SEARCH)
    assert len(words) == 3
    run(f"import sys; from dmlcore.cli import main; sys.exit(max(main(argv) for argv in {words}))", folder)
    assert len(run(python, folder).splitlines()) == 3


def test_every_block_is_run_or_known() -> None:
    for page in PAGES:
        assert {block.language for block in blocks(page)} <= {"bash", "python", "toml", "text"}, page
        for block in blocks(page):
            if block.language == "toml":
                assert block.text.startswith("# settings.toml\n") or "[project.entry-points.dmlcore]" in block.text
            if block.language == "python":
                assert page in (README, SEARCH, GUIDE[-1]), f"nothing runs the Python of {page.name}"


def test_two_lines_do_all_the_set_up() -> None:
    lines = [line for block in blocks(README) for line in block.text.splitlines() if "pip install" in line]
    assert lines == ["pip install . && dmlcore train", 'pip install ".[test]" && pytest tests']


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README.read_text(encoding="utf-8")):
        assert (README.parent / target).exists(), target
