"""Pages of rows of samples with small pictures: what queries find, and what is to be looked at in data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dmlcore.reports.html import escape
from dmlcore.reports.thumbnails import file_thumbnails

MOST_PICTURES = 600


@dataclass(frozen=True)
class Sample:
    """A sample on a page.

    Attributes:
        path: of its picture; empty where it has none.
        name: such as its class.
        about: what stands below.
        title: what is shown when it is pointed at.
        mark: `right`, `wrong` or empty.
    """

    path: str
    name: str
    about: str = ""
    title: str = ""
    mark: str = ""


class Strips:
    """Rows of samples, whose pictures are kept once."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def strip(self, samples: Sequence[Sample], about: str = "", *, has_query: bool = False) -> str:
        """A row as HTML.

        Args:
            samples: in their order.
            about: stands above the row.
            has_query: the first is set apart from the others.
        """
        cells = [self._cell(sample) for sample in samples]
        if has_query and cells:
            cells[0] = f'<div class="query"><small>query</small>{cells[0]}</div>'
        head = f"<p>{escape(about)}</p>" if about else ""
        return f'{head}<div class="strip">{"".join(cells)}</div>'

    def _cell(self, sample: Sample) -> str:
        title = sample.title or sample.path
        if sample.path and (sample.path in self._numbers or len(self._numbers) < MOST_PICTURES):
            number = self._numbers.setdefault(sample.path, len(self._numbers))
            picture = f'<img data-s="{number}" alt="">'
        else:
            picture = f"<i>{escape(title)}</i>"
        small = f"<small>{escape(sample.about)}</small>" if sample.about else ""
        return f'<div class="sample {sample.mark}" title="{escape(title)}">{picture}<b>{escape(sample.name)}</b>{small}</div>'

    def for_script(self) -> dict[str, Any]:
        """The pictures by number, as the page's script takes them. A file that is no picture any more has none."""
        addresses = file_thumbnails(list(self._numbers))
        return {"pictures": {number: addresses[path] for path, number in self._numbers.items() if path in addresses}}
