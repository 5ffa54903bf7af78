"""Tables of the pages that benchmarks write."""

from __future__ import annotations

from collections.abc import Sequence


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table of a header and its lines."""
    return "\n".join("| " + " | ".join(entries) + " |" for entries in [header, ["---"] * len(header), *lines])
