"""Generated parts of Markdown pages: they stand between two marks, and the rest of the page is written by hand."""

from __future__ import annotations

from pathlib import Path

from dmlcore.errors import ConfigError
from dmlcore.files import write_atomically


def write_between(path: str | Path, begin: str, end: str, text: str) -> None:
    """Put a text between the marks of a Markdown file, in place of what stands there.

    Raises:
        ConfigError: the file cannot be read, or lacks the marks.
    """
    path = Path(path)
    try:
        page = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    if page.count(begin) != 1 or page.count(end) != 1:
        raise ConfigError(f"{path} must have the lines {begin} and {end} once, around the generated part")
    before, after = page.split(begin)
    write_atomically(path, f"{before}{begin}\n\n{text}\n{end}{after.split(end)[1]}".encode())
