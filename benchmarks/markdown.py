"""Tables of the pages that benchmarks write."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

_MARKERS = re.compile(r"(<!-- table: (\w+)(?: ([^>]+?))? -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table of a header and its lines."""
    return "\n".join("| " + " | ".join(entries) + " |" for entries in [header, ["---"] * len(header), *lines])


def fill(page: Path, block: Callable[[str, str], str]) -> str:
    """Write what stands between `<!-- table: NAME -->`, or `<!-- table: NAME PART -->`, and `<!-- end -->` of a page.

    Args:
        page: that is read and written.
        block: gives the text for a name and its part; the part is empty where the marker has none.

    Returns:
        The text of the page.
    """
    text = _MARKERS.sub(
        lambda mark: f"{mark[1]}\n{block(mark[2], mark[3] or '')}\n\n{mark[5]}", page.read_text(encoding="utf-8")
    )
    page.write_text(text, encoding="utf-8")
    return text
