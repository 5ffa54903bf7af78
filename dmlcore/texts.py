"""Text from outside, such as names in data and files, made harmless where it leaves dmlcore: on a terminal, in Markdown and in
pictures. Everything that is printed or drawn passes here once, on its way out.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

_UNSEEN = {"Cc", "Cs", "Zl", "Zp"}  # controls (escape sequences begin with one), halves of characters, separators of lines
_TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # order of what stands behind
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_PLAIN = re.compile(r"[ -~]*")
_MARKS = re.compile(r"[\\|\[\]*`]")


def printable(text: str, *, is_page: bool = False) -> str:
    """The text with every character that a terminal would obey written out, as `\\x1b`.

    Args:
        text: anything.
        is_page: ends of lines and tabs stay.
    """
    if _PLAIN.fullmatch(text):
        return text
    return "".join(_written(character, is_page) for character in text)


def _written(character: str, is_page: bool) -> str:
    if is_page and character in "\n\t":
        return character
    if unicodedata.category(character) not in _UNSEEN and character not in _TURNING:
        return character
    if character in _SHORT:
        return _SHORT[character]
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is no UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def encodable(text: str, encoding: str | None) -> str:
    """The text with what an encoding lacks written out, as `\\u0394`."""
    name = encoding or "utf-8"
    return text.encode(name, "backslashreplace").decode(name)


def in_picture(value: Any) -> Any:
    """A value of JSON with all its texts, also keys, as a picture can hold them."""
    return _each(value, printable)


def in_markdown(value: Any) -> Any:
    """A value of JSON with all its texts, also keys, as words of a page in Markdown, which are no markup and no HTML."""
    return _each(value, _as_words)


def _as_words(text: str) -> str:
    text = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKS.sub(lambda mark: f"\\{mark[0]}", text)


def _each(value: Any, change: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {_each(key, change): _each(entry, change) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_each(entry, change) for entry in value]
    return value
