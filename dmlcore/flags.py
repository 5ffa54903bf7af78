"""From options classes to flags: the signatures that cyclopts reads. Values stay text; `config.build_options` converts them."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from cyclopts import App, Group, Parameter

from dmlcore.config import option_help, option_types
from dmlcore.description import default_of
from dmlcore.training.components import Component
from dmlcore.training.settings import GROUPS, PLACES


def new_app(name: str, text: str, version: str | None = None) -> App:
    """A command that has commands of its own.

    Args:
        name: of the command.
        text: its help.
        version: what `--version` says.
    """
    return App(name=name, help=text, version=version, result_action="return_value", suppress_keyboard_interrupt=False)


def flag(name: str, kind: Any, text: str, default: Any = None, *, is_positional: bool = False) -> inspect.Parameter:
    """One flag of a command.

    Args:
        name: of the function's parameter; `--name`, with `-` for `_`, is the flag.
        kind: its type; a switch if `bool`.
        text: the help.
        default: None shows none; `inspect.Parameter.empty` makes the flag mandatory.
        is_positional: it is a word of its own, and mandatory without a default.
    """
    details = Parameter(help=text, negative=() if kind is bool else None, show_default=default not in (None, False, ""))
    if is_positional:
        default = inspect.Parameter.empty if default is None else default
        return inspect.Parameter(
            name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Annotated[kind, details], default=default
        )
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[kind, details], default=default)


def settings_flags(settings: type) -> inspect.Parameter:
    """The settings of a command as flags without a prefix: `--source`."""
    flags = _flags_class(Component("settings", "", "", settings))
    annotation = Annotated[flags, Parameter(name="*", group=_group("Settings"))]
    return inspect.Parameter("settings", inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=flags())


def run_settings_flags() -> inspect.Parameter:
    """The settings of a run as flags without a prefix (`--steps`), each in the help of its group."""
    groups = {name: _group(name.capitalize(), sort_key=number) for number, name in enumerate(GROUPS)}
    fields = []
    for key, place in PLACES.items():
        text = " ".join(option_help(GROUPS[place.group])[place.name].split())
        details, hint = _details(place.type, place.default, text)
        annotation = Annotated[hint, details, Parameter(group=groups[place.group])]
        fields.append((key, annotation, dataclasses.field(default=None)))
    flags = dataclasses.make_dataclass("settings", fields, frozen=True)
    flags.__module__ = __name__  # without a module cyclopts sees no fields
    annotation = Annotated[flags, Parameter(name="*")]
    return inspect.Parameter("settings", inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=flags())


def component_flags(component: Component) -> inspect.Parameter:
    """A component's options as flags with its name before them: `--ms.alpha`, `--example/centroid.temperature`."""
    flags = _flags_class(component)
    group = _group(f"{component.kind} {component.table}")
    annotation = Annotated[flags, Parameter(name=component.table, group=group)]
    name = parameter_name(component.table)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=flags())


def parameter_name(table: str) -> str:
    """A function's parameter for a table of options; different tables get different ones, whatever characters they hold."""
    return re.sub(r"[^a-zA-Z0-9]", lambda match: "_" if match[0] == "_" else f"_{ord(match[0]):x}_", f"table_{table}")


def typed_values(flags: Any) -> dict[str, Any]:
    """The values of a flags class that were typed."""
    return {f.name: getattr(flags, f.name) for f in dataclasses.fields(flags) if getattr(flags, f.name) is not None}


def command(function: Callable[..., int], flags: list[inspect.Parameter], text: str) -> Callable[..., int]:
    """A function with the signature and help that cyclopts shall see; flags that are not given take their defaults."""
    signature = inspect.Signature(sorted(flags, key=lambda flag: flag.kind))

    def call(*words: Any, **values: Any) -> int:
        bound = signature.bind(*words, **values)
        bound.apply_defaults()
        return function(*bound.args, **bound.kwargs)

    call.__signature__ = signature  # type: ignore[attr-defined]
    call.__annotations__ = {flag.name: flag.annotation for flag in flags}
    call.__doc__ = text
    return call


def _group(name: str, **options: Any) -> Group:
    """A group of the help, in which no name of a flag is broken."""
    from cyclopts.help import DefaultFormatter

    return Group(name, help_formatter=DefaultFormatter(column_specs=_columns), **options)


def _columns(console: Any, options: Any, entries: list[Any]) -> tuple[Any, ...]:
    """The columns of cyclopts, that of names as wide as the longest name, but at most half of the screen."""
    import attrs
    from cyclopts.help.specs import NameRenderer, get_default_parameter_columns

    longest = max((len(label) for entry in entries for label in entry.display_labels), default=0)
    columns = []
    for column in get_default_parameter_columns(console, options, entries):
        if isinstance(column.renderer, NameRenderer):
            width = max(column.max_width or 0, min(longest + 2, console.width // 2))
            column = attrs.evolve(column, renderer=NameRenderer(max_width=width), max_width=width)
        columns.append(column)
    return tuple(columns)


def _flags_class(component: Component) -> type:
    """A dataclass with a field per option: text (but for switches), None where not given."""
    options = component.options
    assert options is not None
    texts, kinds = option_help(options), option_types(options)
    fields = []
    for field in dataclasses.fields(options):
        if field.name in component.option_names():
            details, hint = _details(kinds[field.name], default_of(field), " ".join(texts.get(field.name, "").split()))
            fields.append((field.name, Annotated[hint, details], dataclasses.field(default=None)))
    flags = dataclasses.make_dataclass(parameter_name(component.table), fields, frozen=True)
    flags.__module__ = __name__  # without a module cyclopts sees no fields
    return flags


class _Text(str):
    """Text that the options read themselves. The help shows the name of its class."""


_Int, _Float = (type(name, (_Text,), {}) for name in ("int", "float"))


def _details(kind: Any, default: Any, text: str) -> tuple[Parameter, Any]:
    kind = next((choice for choice in typing.get_args(kind) if choice is not type(None)), kind) if _is_optional(kind) else kind
    shown = "none" if default is None else ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
    is_said = default == () or (default is None and "default" in text)
    choices = tuple(map(str, typing.get_args(kind))) if typing.get_origin(kind) is Literal else None
    converter = None if kind is bool else _text
    # None must fit: cyclopts checks a flag that is not given wherever pydantic is imported.
    hint = {bool: bool, int: _Int, float: _Float}.get(kind, str) | None
    return Parameter(help=text, show_default=False if is_said else lambda _: shown, choices=choices, converter=converter), hint


def _is_optional(kind: Any) -> bool:
    return type(None) in typing.get_args(kind)


def _text(kind: Any, tokens: Sequence[Any]) -> str:
    return ",".join(token.value for token in tokens)


COMMON = [
    flag("json", bool, "Print one JSON object on stdout and nothing else there.", False),
    flag("debug", bool, "Show the traceback of an error.", False),
]
