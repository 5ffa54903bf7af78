"""Options of components: dataclasses whose attribute docstrings are the help. Reading configuration files lives here too;
the command line is built on top, in `flags.py`.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import re
import textwrap
import types
import typing
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from dmlcore.errors import ConfigError, nearest, suggestion


@functools.cache
def option_help(options: type) -> dict[str, str]:
    """The attribute docstrings of an options dataclass, by field name (inherited ones too). A field made by a program, which
    has none, may have its text as `metadata["help"]`."""
    texts: dict[str, str] = {f.name: f.metadata["help"] for f in dataclasses.fields(options) if "help" in f.metadata}
    for base in reversed(options.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError):
            continue
        body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
        for field, text in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
                if isinstance(text.value, ast.Constant) and isinstance(text.value.value, str):
                    texts[field.target.id] = inspect.cleandoc(text.value.value)
    return texts


@functools.cache
def option_types(options: type) -> dict[str, Any]:
    """Type of every option of a dataclass, with string annotations resolved."""
    return typing.get_type_hints(options)


def convert(value: Any, kind: Any, where: str) -> Any:
    """A value in the type of an option; texts are read as they stand on the command line.

    Args:
        value: what the user gave.
        kind: the type, as annotated.
        where: the option's name, for messages.

    Raises:
        ConfigError: it is of another type.
    """
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        choices = typing.get_args(kind)
        if type(None) in choices and (value is None or (isinstance(value, str) and value.lower() == "none")):
            return None
        for choice in choices:
            if choice is not type(None):
                return convert(value, choice, where)
    if origin is Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            words = [str(choice) for choice in choices]
            meant = nearest(str(value), words)
            hint = f" Did you mean '{meant}'?" if meant else ""
            raise ConfigError(f"{where} is '{value}', but must be one of {', '.join(words)}.{hint}")
        return value
    if origin in (tuple, list):
        element = typing.get_args(kind)[0]
        values = value if isinstance(value, list | tuple) else [value]  # one value stands for a list of it
        parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else values
        return origin(convert(part, element, where) for part in parts)
    if kind is bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in ("true", "false", "1", "0", "yes", "no"):
            return value.lower() in ("true", "1", "yes")
        raise ConfigError(f"{where} is {_shown(value)}, but must be true or false")
    if kind in (int, float):
        try:
            if isinstance(value, bool) or (kind is int and isinstance(value, float) and not value.is_integer()):
                raise ValueError
            number = kind(value)
        except (TypeError, ValueError, OverflowError):
            noun = "a whole number" if kind is int else "a number"
            raise ConfigError(f"{where} is {_shown(value)}, but must be {noun}") from None
        if kind is int and not -(2**63) <= number < 2**63:
            raise ConfigError(f"{where} is {_shown(value)}, but must be a whole number of 64 bits")
        return number
    if kind is str and not isinstance(value, str):
        raise ConfigError(f"{where} is {_shown(value)}, but must be text")
    if kind is str and "\0" in value:
        raise ConfigError(f"{where} is {_shown(value)}, but a text cannot hold the character 0")
    return value


def _shown(value: Any) -> str:
    """A value in a message. A number of thousands of digits has no text in Python."""
    if isinstance(value, int) and not -(10**40) < value < 10**40:
        return f"a number of {value.bit_length()} bits"
    return repr(value)


def build_options(options: type, values: dict[str, Any], owner: str) -> Any:
    """An instance of an options dataclass from names and values.

    Args:
        options: a dataclass; its `__post_init__` may raise `ConfigError` for values out of range.
        values: by option name; strings are converted to the field's type, so `"none"` gives None where allowed.
        owner: the component's name, for messages (`ms` gives `ms.alpha`).

    Raises:
        ConfigError: an unknown option (with the nearest name), a value of the wrong type or out of range.
    """
    types = option_types(options)
    fields = {field.name for field in dataclasses.fields(options)}
    for name in values:
        if name not in fields:
            raise ConfigError(f"{owner} has no option '{name}'.{suggestion(name, fields)}")
    converted = {name: convert(value, types[name], f"{owner}.{name}") for name, value in values.items()}
    try:
        return options(**converted)
    except ConfigError as error:
        raise ConfigError(f"{owner}: {error}") from None


def unique_names(names: Iterable[str]) -> list[str]:
    """Names with `_2`, `_3`, ... behind repeats: `ms, ms` gives `ms, ms_2`."""
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return unique


def check_range(
    name: str,
    value: float | None,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> None:
    """Refuse a number outside its range, for the `__post_init__` of options.

    Args:
        name: the option's name.
        value: the number; None passes.
        above: exclusive lower bound.
        least: inclusive lower bound.
        below: exclusive upper bound.
        most: inclusive upper bound.

    Raises:
        ConfigError: the value is outside, or is not finite.
    """
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{name} is {value!r}, but must be a number")
    bounds = [
        f"> {above}" if above is not None else "",
        f">= {least}" if least is not None else "",
        f"< {below}" if below is not None else "",
        f"<= {most}" if most is not None else "",
    ]
    bad = value != value or value in (float("inf"), float("-inf"))
    bounds += ["finite"] if bad else []
    bad |= above is not None and not value > above
    bad |= least is not None and not value >= least
    bad |= below is not None and not value < below
    bad |= most is not None and not value <= most
    if bad:
        raise ConfigError(f"{name} is {value}, but must be {' and '.join(filter(None, bounds))}")


_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


def seconds_of(text: str, name: str) -> int:
    """A time such as `3h50m`, `2d` or `90s`, in seconds.

    Args:
        text: whole numbers with units, the largest unit first. A number alone is of seconds.
        name: the option's name.

    Raises:
        ConfigError: it is none, or 0.
    """
    match = re.fullmatch(r"(?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,9})s?)?", text.strip())
    seconds = sum(int(number or 0) * size for number, size in zip(match.groups(), _UNITS.values(), strict=True)) if match else 0
    if not seconds:
        raise ConfigError(f"{name} is '{text}', but must be a time such as 3h50m, 90m or 2d")
    return seconds


def flat_values(settings: dict[str, Any]) -> dict[str, str]:
    """Settings by key and options by `table.option`, as text for people."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        for name, entry in ((f"{key}.{k}", v) for k, v in value.items()) if isinstance(value, dict) else [(key, value)]:
            flat[name] = ", ".join(map(str, entry)) if isinstance(entry, list | tuple) else str(entry)
    return flat


def differing_keys(flat: Sequence[dict[str, str]]) -> list[str]:
    """The keys of several `flat_values` whose values differ, in their order.

    Options of a component that only some have chosen count if they differ among these: the choice itself says the rest.
    """
    keys = dict.fromkeys(key for values in flat for key in values)
    texts = {key: [values.get(key) for values in flat if "." not in key or key in values] for key in keys}
    return [key for key in keys if len(set(texts[key])) > 1]
