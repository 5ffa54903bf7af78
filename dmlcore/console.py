"""Everything that is printed goes through here: results to stdout, progress and errors to stderr. What a result looks like is
said by its command in `commands/`; nothing is computed here, and no torch is imported.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dmlcore.files import plain
from dmlcore.texts import encodable, printable

_LONG_WORD = re.compile(r"\S{300,}")  # no path is that long in practice, and what was wrong must be seen beside it
WIDTH_OF_A_PIPE = 160  # a pipe has no width, and tables must not be folded to 80 columns in a file


def stderr() -> Console:
    """Where progress and errors go."""
    return Console(file=sys.stderr, highlight=False, markup=False, emoji=False, soft_wrap=True)


def _stdout() -> Console:
    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = WIDTH_OF_A_PIPE
    return console


def line(text: object, console: Console, *, is_page: bool = False) -> str:
    """Text as a console may show it: names out of data and files give it no orders."""
    return encodable(printable(str(text), is_page=is_page), console.encoding)


def say(text: str = "") -> None:
    """A line of progress, on stderr."""
    say_on(stderr(), text)


def say_on(console: Console, text: str, indent: int = 0) -> None:
    """A line of progress on a console; on a terminal it is folded between words.

    Args:
        console: on stderr.
        text: the line.
        indent: blanks before further lines.
    """
    console.print(_folded(line(text, console), console, indent))


def show_sentences(text: str) -> None:
    """Words of a result on stdout, which nobody copies: on a terminal they are folded between words."""
    console = _stdout()
    console.print(_folded(line(text, console), console), soft_wrap=True)


def _folded(text: str, console: Console, indent: int = 0) -> str:
    """On a terminal, a long line in several: a terminal itself would cut words. A longer word, such as a path, stays whole."""
    if not console.is_terminal or cell_len(text) < console.width:
        return text
    return "\n".join(
        textwrap.wrap(
            text,
            max(console.width - 1, 20),
            subsequent_indent=" " * indent,
            break_long_words=False,
            break_on_hyphens=False,
            drop_whitespace=True,
        )
    )


def fail(message: object, *, debug: bool = False) -> None:
    """The one line that says what went wrong, on stderr, behind the traceback when that is asked for."""
    console = stderr()
    if debug:
        console.print(line(traceback.format_exc().rstrip(), console, is_page=True))
    words = " ".join(str(message).split())
    words = _LONG_WORD.sub(lambda word: f"{word[0][:120]}[{len(word[0]) - 160:,} characters more]{word[0][-40:]}", words)
    console.print(Text.assemble(("error: ", "bold red"), line(words, console)))


def show(text: str = "", *, is_page: bool = False) -> None:
    """A line of a result, on stdout; with `is_page` several lines."""
    console = _stdout()
    console.print(line(text, console, is_page=is_page), soft_wrap=True)


def show_json(value: Any) -> None:
    """One JSON object on stdout."""
    sys.stdout.write(json.dumps(plain(value), indent=2) + "\n")
    sys.stdout.flush()


def show_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = False, has_names: bool = False
) -> None:
    """A table on stdout, as wide as the terminal at most.

    Args:
        columns: their headings.
        rows: texts for each column.
        numbers: the columns behind the first hold numbers, set to the right.
        has_names: the first column holds names to be copied, which are never folded.
    """
    console = _stdout()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        justify = "right" if numbers and index else "left"
        table.add_column(line(column, console), justify=justify, overflow="fold", no_wrap=has_names and not index)
    for row in rows:
        table.add_row(*(line(cell.replace("\n", " "), console) for cell in row))
    console.print(table)


def width() -> int:
    """Columns of what stdout goes to."""
    return _stdout().width


def fits_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> bool:
    """Whether `show_table` shows a table without folding a cell."""
    cells = [columns, *rows]
    widest = [max(cell_len(line(row[index], _stdout())) for row in cells) for index in range(len(columns))]
    return sum(widest) + 3 * len(columns) <= width()  # three blanks between columns, and one or two at the ends


def show_facts(facts: dict[str, Any], indent: str = "") -> None:
    """Nested facts on stdout, a line each."""
    width = max((len(str(key)) for key in facts), default=0)
    for key, value in facts.items():
        if isinstance(value, dict) and value:
            show(f"{indent}{key}")
            show_facts(value, indent + "  ")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            show(f"{indent}{key!s:{width}}  {text or '-'}")


def take_any_text() -> None:
    """Write what a stream's encoding lacks, such as a byte of a file name that is no UTF-8, as `\\udce9`, not as an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def give_up_stdout() -> None:
    """Write nothing more to stdout, whose reader has gone; Python would complain at exit otherwise."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
