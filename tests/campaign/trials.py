"""What the campaign is made of: parts, their trials, and what a trial finds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .bench import Bench


@dataclass(frozen=True)
class Failure:
    """What a trial found.

    Attributes:
        text: one line.
        is_lost: something that was complete cannot be had any more, or another result took its place.
    """

    text: str
    is_lost: bool = False


def _always(bench: Bench) -> str:
    return ""


@dataclass(frozen=True)
class Part:
    """One kind of trials.

    Attributes:
        name: the first word of its trials' keys.
        keys: the keys of all trials, `PART/...`; a key says all that a trial depends on, beside the seed.
        run: does a trial. None: nothing was found.
        share: of the minutes, relative to the other parts.
        why_not: why it cannot run here, or an empty text.
    """

    name: str
    keys: Callable[[Bench], Sequence[str]]
    run: Callable[[Bench, str], Failure | None]
    share: float = 1.0
    why_not: Callable[[Bench], str] = _always
