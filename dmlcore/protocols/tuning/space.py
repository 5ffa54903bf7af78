"""What is searched: ranges and choices of settings and options, as the user writes them or as defaults follow from their types.

Ranges that options declare are known by building the options: what they refuse is outside.
"""

from __future__ import annotations

import math
import re
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from dmlcore import plugins
from dmlcore.config import convert, option_types
from dmlcore.errors import ConfigError, suggestion
from dmlcore.training.components import Component
from dmlcore.training.configuration import RunConfig
from dmlcore.training.settings import PLACES

FACTOR = 10.0  # a default range goes from a tenth of the value to ten times
FIXED = {
    "plugins": "it is what --arms compares",
    **dict.fromkeys(("data", "fractions", "splits", "split", "seed", "validation"), "all trials have the same data and folds"),
    **dict.fromkeys(("steps", "epochs", "eval_every", "patience", "stop_after"), "all trials are of equal length"),
    **dict.fromkeys(("metrics", "loggers", "log_every", "report", "device", "workers"), "no result depends on it"),
}
"""Settings that are not searched, and why."""
_RANGE = re.compile(r"(?P<low>[^\s.]\S*?)\s*\.\.\s*(?P<high>\S+)(?P<log>\s+log)?(?:\s+step\s+(?P<step>\S+))?")


@dataclass(frozen=True)
class Dimension:
    """One setting or option with the values that may be tried.

    Attributes:
        name: a setting's key, or `TABLE.option`.
        choices: values; empty: it is a range.
        low, high: the ends of the range, both included.
        is_log: the range is drawn from evenly in the logarithm.
        is_whole: of whole numbers.
        step: between values; None: any.
    """

    name: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    is_log: bool = False
    is_whole: bool = False
    step: float | None = None

    @classmethod
    def of(cls, values: dict[str, Any]) -> Dimension:
        """From what `as_dict` gave."""
        return cls(**{**values, "choices": tuple(values["choices"])})

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "choices": list(self.choices)}

    def holds(self, value: Any) -> bool:
        """Whether a value is among those that may be tried."""
        if self.choices:
            return value in self.choices
        return isinstance(value, int | float) and self.low <= value <= self.high

    def ends(self) -> tuple[Any, ...]:
        """The values that must be valid: all choices, or both ends."""
        return self.choices or (self.low, self.high)


def written(search: Iterable[str], tables: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """What the user wrote, by name: a text, a list of choices, or None for the default range; later ones win.

    Args:
        search: words such as `learning_rate=1e-5..1e-2 log`, `ms.alpha`.
        tables: `[search]` of configuration files, which may have a table for each component.

    Raises:
        ConfigError: a word without a name.
    """
    specs: dict[str, Any] = {}
    for table in tables:
        for key, value in table.items():
            specs |= {f"{key}.{name}": v for name, v in value.items()} if isinstance(value, dict) else {key: value}
    for word in search:
        name, equals, spec = word.partition("=")
        name = name.strip()
        if not name or (equals and not spec.strip()):
            raise ConfigError(f"search is '{word}', but must be like learning_rate=1e-5..1e-2 log, or a name alone")
        specs[name] = spec.strip() if equals else None
    return {_plain(name): spec for name, spec in specs.items()}


def _plain(name: str) -> str:
    table, dot, option = name.rpartition(".")
    return f"{table}{dot}{option.replace('-', '_')}"


def dimensions(specs: dict[str, Any], config: RunConfig, completed: RunConfig) -> list[Dimension]:
    """The dimensions of one arm: what the user wrote of its settings and components, or the defaults.

    Args:
        specs: of `written`; what belongs to a component that this arm has not is left out.
        config: of the arm.
        completed: the same with nothing left open.

    Raises:
        ConfigError: an unknown name or option, a range that cannot be read or holds a value that is refused.
    """
    if not specs:
        return _defaults(config, completed)
    return [
        _dimension(name, spec, config, completed)
        for name, spec in specs.items()
        if "." not in name or name.rpartition(".")[0] in config.components
    ]


def check_names(specs: dict[str, Any], components: dict[str, Component]) -> None:
    """Refuse names that mean nothing in any arm.

    Args:
        specs: of `written`.
        components: of all arms, by table.

    Raises:
        ConfigError: an unknown name, or a setting that is not searched.
    """
    for name in specs:
        table, dot, option = name.rpartition(".")
        if not dot:
            if name not in PLACES:
                raise ConfigError(f"search: there is no setting '{name}'.{suggestion(name, PLACES)}")
            if name in FIXED:
                raise ConfigError(f"search: {name} is not searched: {FIXED[name]}")
        elif table not in components:
            raise ConfigError(f"search: '{name}' is of nothing that is chosen.{suggestion(table, components)}")
        elif option not in components[table].option_names():
            names = components[table].option_names()
            raise ConfigError(f"search: {table} has no option '{option}'.{suggestion(option, names)}")


def with_values(config: RunConfig, values: dict[str, Any]) -> dict[str, Any]:
    """The configuration as `RunConfig.create` takes it, with some settings and options given anew.

    Args:
        config: of an arm.
        values: by the names of dimensions.
    """
    base = config.as_dict()
    for name, value in values.items():
        table, dot, option = name.rpartition(".")
        if dot:
            base[table] = {**base.get(table, {}), option: value}
        else:
            base[name] = value
    return base


def value_of(name: str, completed: RunConfig) -> Any:
    """What a setting or option is in a completed configuration."""
    table, dot, option = name.rpartition(".")
    return completed.options[table][option] if dot else completed.settings.values()[name]


def _defaults(config: RunConfig, completed: RunConfig) -> list[Dimension]:
    """The learning rate, and what each loss says is worth a search (`searched`)."""
    rate = value_of("learning_rate", completed)
    ranges = [Dimension("learning_rate", low=rate / FACTOR, high=rate * FACTOR, is_log=True)]
    for table, component in config.of_kind("loss").items():
        searched: dict[str, tuple[Any, ...]] = getattr(plugins.find("loss", component.name).component, "searched", {})
        for option, values in searched.items():
            is_range = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values) and len(set(values)) > 1
            if is_range:
                is_whole = all(isinstance(value, int) for value in values)
                low, high = min(values), max(values)
                ranges.append(Dimension(f"{table}.{option}", (), low, high, low > 0 and high > 3 * low, is_whole))
            else:
                ranges.append(Dimension(f"{table}.{option}", tuple(values)))
    # A form of a loss may leave no choice of an option, and refuse all values but its own.
    return [d for d in ranges if "." not in d.name or all(_refusal(d.name, value, config) is None for value in d.ends())]


def _dimension(name: str, spec: Any, config: RunConfig, completed: RunConfig) -> Dimension:
    kind = _kind(name, config)
    where = f"search: {name}"
    if spec is None:
        return _around(name, kind, config, completed)
    if isinstance(spec, str) and ".." in spec:
        return _checked(_range(name, spec, kind, where), config)
    values = spec if isinstance(spec, list) else str(spec).split(",")
    choices = tuple(convert(v.strip() if isinstance(v, str) else v, kind, where) for v in values)
    if len(set(map(repr, choices))) < len(choices) or len(choices) < 2 or any(isinstance(c, tuple) for c in choices):
        raise ConfigError(f"{where} is {_shown(spec)}, but must be a range LOW..HIGH or at least two different values")
    return _checked(Dimension(name, choices), config)


def _range(name: str, spec: str, kind: Any, where: str) -> Dimension:
    match = _RANGE.fullmatch(spec.strip())
    number = _number_type(kind)
    if match is None:
        raise ConfigError(
            f"{where} is '{spec}', but must be like 1e-5..1e-2, with `log` or `step 0.1` behind it, or like 1,2,4"
        )
    if number is None:
        raise ConfigError(f"{where} is '{spec}', but it is no number: give its values, separated by commas")
    low, high = (convert(match[end], number, where) for end in ("low", "high"))
    step = None if match["step"] is None else convert(match["step"], number, f"{where}: step")
    is_log = match["log"] is not None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"{where} is '{spec}', but a range goes up, from one number to another")
    if is_log and low <= 0:
        raise ConfigError(f"{where} is '{spec}', but a range with `log` begins above 0")
    if step is not None and (is_log or not 0 < step <= high - low):
        raise ConfigError(f"{where} is '{spec}', but a step is above 0, within the range, and not for `log`")
    return Dimension(name, (), low, high, is_log, number is int, step)


def _around(name: str, kind: Any, config: RunConfig, completed: RunConfig) -> Dimension:
    """A range around the present value, as far as it is valid; of a switch or a choice all values."""
    choices = _choices(kind)
    if choices:
        return _checked(Dimension(name, choices), config)
    value, number = value_of(name, completed), _number_type(kind)
    if number is None or not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        raise ConfigError(f"search: {name} is {_shown(value)}, from which no range follows. Give one: {name}=LOW..HIGH")
    low, high = _valid_end(name, value, 1 / FACTOR, number, config), _valid_end(name, value, FACTOR, number, config)
    if low == high:
        raise ConfigError(f"search: {name} can be nothing but {value} here. Leave it out")
    return Dimension(name, (), low, high, True, number is int)


def _valid_end(name: str, value: float, factor: float, number: type, config: RunConfig) -> float:
    """The farthest valid value from the present one towards `factor` times that, to three digits."""
    inside, outside = 1.0, factor
    for _ in range(10):  # halves what is left of the way, in the logarithm
        end = number(float(f"{value * outside:.3g}"))
        if end > 0 and _refusal(name, end, config) is None:
            inside = outside
            if outside == factor:
                break
        else:
            factor = outside
        outside = math.sqrt(inside * factor)
    return number(float(f"{value * inside:.3g}"))


def _checked(dimension: Dimension, config: RunConfig) -> Dimension:
    for value in dimension.ends():
        if reason := _refusal(dimension.name, value, config):
            raise ConfigError(f"search: {dimension.name} may not be {_shown(value)}: {reason}")
    return dimension


def _refusal(name: str, value: Any, config: RunConfig) -> str | None:
    try:
        RunConfig.create(**with_values(config, {name: value}))
    except ConfigError as error:
        return str(error)
    return None


def _kind(name: str, config: RunConfig) -> Any:
    table, dot, option = name.rpartition(".")
    if not dot:
        return PLACES[name].type
    options = config.components[table].options
    assert options is not None
    return option_types(options)[option]


def _members(kind: Any) -> Sequence[Any]:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return [member for member in typing.get_args(kind) if member is not type(None)]
    return [kind]


def _number_type(kind: Any) -> type | None:
    return next((member for member in _members(kind) if member in (int, float)), None)


def _choices(kind: Any) -> tuple[Any, ...]:
    (member, *rest) = _members(kind)
    if rest:
        return ()
    return (False, True) if member is bool else typing.get_args(member) if typing.get_origin(member) is Literal else ()


def _shown(value: Any) -> str:
    return f"'{value}'" if isinstance(value, str) else "none" if value is None else str(value)
