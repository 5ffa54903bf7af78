"""Pages of rows of samples with small pictures: what queries find, and what is to be looked at in data."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from dmlcore.reports.html import escape

MOST_PICTURES = 600


@dataclass(frozen=True)
class Sample:
    """A sample on a page.

    Attributes:
        picture: key of its picture; None where it has none.
        name: such as its class.
        about: what stands below.
        title: what is shown when it is pointed at.
        mark: `right`, `wrong` or empty.
    """

    picture: Hashable | None
    name: str
    about: str = ""
    title: str = ""
    mark: str = ""


class Strips:
    """Rows of samples, whose pictures are kept once.

    Args:
        addresses: gives `data:` addresses of pictures by their keys, fewer where some cannot be had.
    """

    def __init__(self, addresses: Callable[[list[Any]], dict[Any, str]]) -> None:
        self._addresses = addresses
        self._numbers: dict[Hashable, int] = {}

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
        key = sample.picture
        if key is not None and (key in self._numbers or len(self._numbers) < MOST_PICTURES):
            number = self._numbers.setdefault(key, len(self._numbers))
            picture = f'<img data-s="{number}" alt="">'
        else:
            picture = f"<i>{escape(sample.title)}</i>"
        small = f"<small>{escape(sample.about)}</small>" if sample.about else ""
        name = f"<b>{escape(sample.name)}</b>"
        return f'<div class="sample {sample.mark}" title="{escape(sample.title)}">{picture}{name}{small}</div>'

    def for_script(self) -> dict[str, Any]:
        """The pictures by number, as the page's script takes them."""
        addresses = self._addresses(list(self._numbers))
        return {"pictures": {number: addresses[key] for key, number in self._numbers.items() if key in addresses}}
