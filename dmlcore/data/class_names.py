"""Names of classes as data give them, made fit to compare, print and write. Which samples a name belongs to is not here."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable

_MISSING = frozenset(("", "nan", "<na>"))  # how numpy and pandas write a label that is not there
_NAMED = 3  # names shown in a note


def writable_text(text: str) -> str:
    """Text without halves of surrogate pairs, which stand for bytes of a file name that are no UTF-8 and which no file or
    terminal takes. They are written as `\\udce9`.
    """
    return text.encode("utf-8", "backslashreplace").decode()


def is_missing(label: str) -> bool:
    """Whether a label of a table says that there is none: blank, `nan` or `<NA>`."""
    return label.strip().lower() in _MISSING


def tidy_names(names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """A name of a class for every name in the data: valid Unicode, without blanks at its ends, with accents composed (NFC).

    Args:
        names: as the data have them, repeated or not.

    Returns:
        The tidied name by each name, and notes: which classes were joined because of it, and which differ in capitals only.
    """
    tidied = {name: unicodedata.normalize("NFC", writable_text(name)).strip() for name in dict.fromkeys(names)}
    spellings, capitals = defaultdict(list), defaultdict(list)
    for name, tidy in tidied.items():
        spellings[tidy].append(name)
    for tidy in spellings:
        capitals[tidy.casefold()].append(tidy)
    notes = []
    joined = sorted(tidy for tidy, written in spellings.items() if len(written) > 1)
    if joined:
        notes.append(
            f"names that differ only in blanks at their ends or in how accents are stored are one class: {_listed(joined)}"
        )
    alike = sorted(" and ".join(sorted(written)) for written in capitals.values() if len(written) > 1)
    if alike:
        notes.append(f"names that differ only in capitals are classes of their own: {_listed(alike)}")
    return tidied, notes


def _listed(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
