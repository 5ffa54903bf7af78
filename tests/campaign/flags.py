"""Every flag of every command with values that nobody should type: one clear line, or it works."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from .bench import Bench
from .commands import EVAL, FEWSHOT, OOD, TRAIN
from .inputs import read
from .mutations import NUMBERS, TEXTS, pick
from .trials import Failure, Part

EACH = 12  # values of each flag
WORDS = {
    "train": TRAIN,
    "eval": EVAL,
    "embed": ["embed", "run", "--data", "x.npz", "--out", "new.npz"],
    "ood run": OOD,
    "fewshot": [*FEWSHOT, "--quick"],
    "splits ood": ["splits", "ood", "--data", "x.npz", "--model", "features", "--out", "new.json"],
    "splits import": ["splits", "import", "bad.pkl", "--data", "x.npz", "--out", "new.json"],
    "splits show": ["splits", "show", "splits.json"],
    "ood report": ["ood", "report", "grid"],
    "fewshot report": ["fewshot", "report", "grid"],
    "plugins": ["plugins", "ms"],
    "plugins new": ["plugins", "new", "mine", "--kind", "loss"],
}
"""Words with which a command works, or would if its files were there; a command that is not here begins with its name."""
_SKIPPED = ("--debug", "--help", "--version")  # a traceback is what --debug is for
_VALUES = [
    "",
    " ",
    ",",
    ",,",
    "ms,ms",
    "-1",
    "--",
    "-",
    "=",
    "x=y",
    "1e3",
    "0x10",
    "1_000",
    "१",
    "1,2,3",
    "true",
    "none",
    "all",
    "@x",
]
_VALUES += [
    ".",
    "..",
    "x.npz",
    "run",
    "missing",
    "/dev/null",
    "a/b/c",
    "~",
    "~nobody/x",
    "x.py:X",
    "./x.py:X",
    "[1]",
    '{"a":1}',
]


@dataclass(frozen=True)
class Flag:
    """A flag of a command.

    Attributes:
        command: its words, with spaces.
        name: with its dashes.
        further: words that the flag needs, such as the loss whose option it is.
    """

    command: str
    name: str
    further: tuple[str, ...] = ()


@cache
def flags() -> list[Flag]:
    """All flags, from the definition of the command line; options of components by choosing each of them in `train`."""
    return list({(flag.command, flag.name): flag for flag in reversed(list(_all_flags()))}.values())[::-1]


def _all_flags() -> Iterator[Flag]:
    from dmlcore.errors import DmlcoreError

    yield from _flags_of([])
    for further in _choices():
        try:
            yield from (flag for flag in _flags_of(["train", *further], tuple(further)) if "." in flag.name)
        except DmlcoreError:  # it cannot be chosen alone
            continue


def _flags_of(words: list[str], further: tuple[str, ...] = ()) -> Iterator[Flag]:
    from dmlcore import cli
    from dmlcore.commands.line import CommandLine
    from dmlcore.flags import new_app

    app = new_app("dmlcore", cli.HELP)
    cli._add_commands(app, CommandLine(words))
    for path, arguments in _commands(app):
        if words and path[0] != words[0]:
            continue
        for argument in arguments:
            name = argument.names[0]
            if name.startswith("--") and name not in _SKIPPED:
                yield Flag(" ".join(path), name, further)


def _commands(app: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name in app:
        if not name.startswith("-"):
            yield from _commands(app[name], (*path, name))
    if path and app.default_command is not None:
        yield path, app.assemble_argument_collection(parse_docstring=False)


def _choices() -> Iterator[list[str]]:
    """Words that choose each built-in component that `train` can choose."""
    from dmlcore import plugins
    from dmlcore.training.components import KIND_OF

    for setting, kind in KIND_OF.items():
        for name in plugins.registry(kind):
            yield [f"--{setting.replace('_', '-')}", name]


def keys(bench: Bench) -> list[str]:
    """`flags/COMMAND/FLAG/NUMBER`, with `+` for spaces in the command."""
    return [f"flags/{flag.command.replace(' ', '+')}/{flag.name}/{number}" for number in range(EACH) for flag in flags()]


def run(bench: Bench, key: str) -> Failure | None:
    """One value of one flag."""
    _, command, rest = key.split("/", 2)
    name = rest.rpartition("/")[0]
    flag = next(flag for flag in _all_flags() if flag.command == command.replace("+", " ") and flag.name == name)
    draws = bench.draws(key)
    typed = pick(draws, [_VALUES, _VALUES, TEXTS, [str(number)[:320] for number in NUMBERS]])
    value = str(pick(draws, typed)).replace("\x00", "\x01").encode("utf-8", "replace").decode()
    words = _without(WORDS.get(flag.command, flag.command.split()), flag)
    form = pick(draws, ["two words", "two words", "equals", "alone", "twice"])
    typed_words = {
        "two words": [name, value],
        "equals": [f"{name}={value}"],
        "alone": [name],
        "twice": [name, value, name, value],
    }
    return read(bench, [*words, *flag.further, *typed_words[form]], {}, f"{name} {form} {value[:60]!r}")


def _without(words: list[str], flag: Flag) -> list[str]:
    """The words without the flags that come again."""
    names, result = {flag.name, *flag.further[:1]}, list(words)
    for name in names:
        while name in result:
            at = result.index(name)
            del result[at : at + 2]
    return result


PART = Part("flags", keys, run, share=2.0)
