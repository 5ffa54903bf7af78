"""The documentation is whole: links lead somewhere, what pages name exists, and the prose stays plain. Needs no MkDocs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "examples" / "README.md", *ROOT.glob("plugins/*/README.md"), *ROOT.glob("docs/**/*.md")]
)
# Bounds that hold while prose is plain, and break when it degenerates.
WORDS, LONGEST, SEMICOLONS = (6, 20), 55, 0.05
FOLDERS = ("dmlcore", "csrc", "plugins", "tests", "benchmarks", "examples", "tools", "docs")
TERMS = 25


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def without_code(text: str) -> str:
    """A page without its blocks of code and generated parts."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    return re.sub(r"<!-- (?:table|results|hooks|\w+): .*?-->.*?<!-- (?:end|hooks: end|\w+: end) -->", "", text, flags=re.S)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as MkDocs and GitHub make them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S), re.M)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


def links(page: Path) -> Iterator[tuple[str, str]]:
    """File and anchor of every link of a page that stays in the repository."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\((?!\w+:)([^)\s]+)", re.sub(r"`[^`\n]*`", "", text)):
        file, _, anchor = target.partition("#")
        yield file, anchor


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    broken = []
    for file, anchor in links(page):
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or ROOT not in target.parents:
            broken.append(file)
        elif anchor and anchor not in anchors(target):
            broken.append(f"{file}#{anchor}")
    assert not broken, broken


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_and_kernels_that_are_named_exist(page: Path) -> None:
    """`dmlcore/kernels/cuda.py` in a page is a file, `count_kernel` is somewhere in the CUDA sources."""
    text = page.read_text(encoding="utf-8")
    named = re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]+)`", text)
    missing = [path for path in named if not (ROOT / path).exists() and not re.search(r"\b[A-Z]{3,}\b", path)]
    assert not missing, missing
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "csrc" / "cuda").iterdir())
    kernels = set(re.findall(r"\b(?:\w+_kernel|rows_(?:forward|backward|close))\b", text))
    assert not [kernel for kernel in kernels if kernel not in sources]


def sentences(page: Path) -> list[list[str]]:
    """The words of each sentence of a page's prose: no code, no tables, no headings, no pictures."""
    sentences_of_page = []
    text = without_code(page.read_text(encoding="utf-8"))
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", text):
        if re.match(r"\s*(?:\||#|!\[|<)", paragraph):
            continue
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", re.sub(r"`[^`]*`", "name", paragraph))
        plain = re.sub(r"\b(?:et al|vs|e\.g|i\.e|vol|eq)\.", "abbreviated", plain)
        for sentence in re.split(r"(?<=[.!?])[*_\"')]*\s+(?=[*_\"'(]*[A-Z0-9`n-])", plain):
            words = re.findall(r"[\w@%'.+/-]*\w", sentence)
            if len(words) > 1:
                sentences_of_page.append(words)
    return sentences_of_page


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_prose_is_plain(page: Path) -> None:
    lengths = [len(words) for words in sentences(page)]
    mean = sum(lengths) / len(lengths)
    assert WORDS[0] <= mean <= WORDS[1], f"{mean:.1f} words in a sentence on average"
    longest = max(sentences(page), key=len)
    assert len(longest) <= LONGEST, f"{len(longest)} words: {' '.join(longest)}"
    prose = re.sub(r"`[^`]*`", "", re.sub(r"^\|.*$", "", without_code(page.read_text(encoding="utf-8")), flags=re.M))
    assert prose.count(";") <= max(1, SEMICOLONS * len(lengths)), f"{prose.count(';')} semicolons in {len(lengths)} sentences"


def test_the_glossary_is_short() -> None:
    words = (ROOT / "docs" / "design" / "glossary.md").read_text(encoding="utf-8").split("## Words")[1]
    assert words.count("\n| ") - 2 <= TERMS


def test_every_page_is_in_the_navigation() -> None:
    listed = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in ROOT.glob("docs/**/*.md"):
        assert f" {page.relative_to(ROOT / 'docs').as_posix()}\n" in listed, page
