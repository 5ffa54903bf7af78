"""The pages of reports as files: one HTML file that needs no network, with its style, its script, its data and its pictures.

All text from outside passes `escape` or `table`, or goes through JSON and is shown as text by the script.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any

from dmlcore.files import plain
from dmlcore.texts import printable

LONGEST_TEXT = 300  # letters of a name from outside; the rest says nothing more on a page


def brief(text: object) -> str:
    """Text as a page may show it: no characters that are not seen, and not too many."""
    words = printable(str(text))
    return f"{words[:LONGEST_TEXT]}…" if len(words) > LONGEST_TEXT else words


def escape(text: object) -> str:
    """Brief text as HTML, within tags and within quoted attributes."""
    return html.escape(brief(text))


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many digits behind the point; a dash where there is none."""
    return "–" if value is None or value != value else f"{value:.{digits}f}"


class Raw(str):
    """HTML that is put into a table as it is."""


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, sorts: bool = False, kind: str = "") -> str:
    """A table.

    Args:
        columns: headings.
        rows: cells: `Raw` as it is, numbers to the right with three digits, None as a dash, anything else as text.
        sorts: a click on a heading sorts by its column.
        kind: class of the table for the style.
    """
    head = "".join(f'<th scope="col">{_heading(column, sorts)}</th>' for column in columns)
    body = "\n".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in rows)
    names = " ".join(filter(None, (kind, "sorts" if sorts else "")))
    return f'<div class="wide"><table class="{names}"><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _heading(column: str, sorts: bool) -> str:
    return f'<button type="button">{escape(column)}</button>' if sorts else escape(column)


def _cell(cell: object) -> str:
    if isinstance(cell, Raw):
        return f"<td>{cell}</td>"
    if cell is None or (isinstance(cell, float) and cell != cell):
        return '<td class="n" data-v="">–</td>'
    if isinstance(cell, int | float) and not isinstance(cell, bool):
        return f'<td class="n" data-v="{cell:.9g}">{f"{cell:,}" if isinstance(cell, int) else number(cell)}</td>'
    return f"<td>{escape(cell)}</td>"


def facts(pairs: Iterable[tuple[str, object]]) -> str:
    """Names and their values, a line each."""
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{_value(value)}</dd>" for name, value in pairs)
    return f"<dl>{lines}</dl>"


def _value(value: object) -> str:
    if isinstance(value, Raw):
        return value
    if isinstance(value, list | tuple):
        return escape(", ".join(map(str, value))) or "–"
    return escape(value)


def commands(lines: Iterable[tuple[str, str]]) -> str:
    """Commands to copy, each with what it does."""
    return "".join(f"<p>{escape(text)}</p><pre>{escape(command)}</pre>" for text, command in lines)


def page(title: str, about: str, sections: Sequence[tuple[str, str]], data: dict[str, Any]) -> bytes:
    """A whole page in UTF-8.

    Args:
        title: text.
        about: HTML below the title.
        sections: heading and HTML of each; empty ones are left out.
        data: for the script, JSON.
    """
    kept = [(heading, body) for heading, body in sections if body]
    anchors = [heading.lower().replace(" ", "-") for heading, _ in kept]
    links = "".join(f'<a href="#{anchor}">{escape(heading)}</a>' for anchor, (heading, _) in zip(anchors, kept, strict=True))
    main = "\n".join(
        f'<section id="{anchor}"><h2>{escape(heading)}</h2>\n{body}\n</section>'
        for anchor, (heading, body) in zip(anchors, kept, strict=True)
    )
    style, script = (_part(name) for name in ("page.css", "page.js"))
    # The page may load nothing and run nothing but its own script, whatever a name in the data holds.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    # `<` would let a name end the element.
    values = json.dumps(plain(data), separators=(",", ":"), ensure_ascii=True).replace("<", "\\u003c")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
<header><h1>{escape(title)}</h1>{about}<nav>{links}</nav></header>
<main>
{main}
</main>
<aside id="opened" hidden></aside>
<script type="application/json" id="values">{values}</script>
<script>{script}</script>
</body>
</html>
""".encode("utf-8", "backslashreplace")


def _part(name: str) -> str:
    return resources.files("dmlcore.reports").joinpath("page", name).read_text(encoding="utf-8")
