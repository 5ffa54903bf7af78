"""What the documentation site needs beside `docs`: READMEs and measured pictures from elsewhere in the repository.

MkDocs reads one folder. The pages link to files outside of it, as a reader of the repository expects. Here these files join the
site, and links to them are written anew.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
OUTSIDE = ("examples/README.md", "plugins/*/README.md", "benchmarks/results/*.svg")
LINK = re.compile(r"(\]\()(?!\w+:|#)([^)#\s]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add the files from outside `docs`, under the paths they have in the repository."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            files.append(File(path.relative_to(ROOT).as_posix(), str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links as they are in the repository become links of the site."""
    source = Path(page.file.abs_src_path).relative_to(ROOT)
    here = PurePosixPath(page.file.src_uri).parent

    def rewritten(match: re.Match[str]) -> str:
        target = os.path.normpath(source.parent / match[2])
        in_site = "index.md" if target == "README.md" else target.removeprefix("docs/")
        return match[1] + os.path.relpath(in_site, here)

    return LINK.sub(rewritten, markdown)


TABLE = re.compile(r"<table>.*?</table>", re.DOTALL)
FIGURE = re.compile(r"\d\*{0,2} [±/] [\d-]")
MANY = 8  # figures that make a table one of measurements


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Mark tables of measurements, so that the style sheet keeps `39.6 ± 5.0` on one line."""

    def marked(match: re.Match[str]) -> str:
        is_measured = len(FIGURE.findall(re.sub(r"<[^>]+>", "", match[0]))) >= MANY
        return f'<div class="figures">{match[0]}</div>' if is_measured else match[0]

    return TABLE.sub(marked, html)
