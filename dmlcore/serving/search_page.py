"""The page of a search: every query with its neighbours and their pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dmlcore.reports.html import escape, page
from dmlcore.reports.strips import Sample, Strips
from dmlcore.reports.thumbnails import file_thumbnails
from dmlcore.serving.search import Answer

MOST_QUERIES = 200


def search_page(answers: Sequence[Answer], about: str) -> bytes:
    """The page as a file's content.

    Args:
        answers: of the queries; the first `MOST_QUERIES` are shown.
        about: a sentence below the title.
    """
    strips, rows = Strips(file_thumbnails), []
    for answer in answers[:MOST_QUERIES]:
        label = answer.query.get("label")
        samples = [Sample(answer.query.get("path") or None, label or name_of(answer.query), title=name_of(answer.query))]
        for entry in answer.neighbours:
            mark = "" if not label or not entry.get("label") else "right" if entry["label"] == label else "wrong"
            name = entry.get("label") or name_of(entry)
            samples.append(Sample(entry.get("path") or None, name, f"{entry['score']:.3f}", name_of(entry), mark))
        rows.append(strips.strip(samples, none_of_these(answer), has_query=True))
    more = len(answers) - MOST_QUERIES
    note = f"<p>{more:,} further queries are not shown.</p>" if more > 0 else ""
    data = strips.for_script()
    return page("Search", f'<p class="about">{escape(about)}</p>', [("Neighbours", "\n".join(rows) + note)], data)


def name_of(entry: dict[str, Any]) -> str:
    """What identifies a query or an entry, in a word: its path, else its row."""
    return str(entry.get("path") or f"row {entry.get('row', '?')}")


def none_of_these(answer: Answer) -> str:
    """What is said of a query without neighbours; else empty."""
    if answer.neighbours:
        return ""
    if answer.nearest is None:
        return "no entry meets the conditions"
    return f"none of these (the nearest reaches {answer.nearest:.3f})"
