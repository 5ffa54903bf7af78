"""From constructors of pytorch-metric-learning to options of dmlcore and back: names, types and defaults are read off the
signatures of a class and its bases.
"""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from dmlcore.errors import ConfigError
from dmlcore_pml import catalogue, parts

CLASSES, LENGTHS = "num_classes", ("embedding_size", "descriptors_dim")
OBJECTS = {*parts.KINDS, "weight_init_func"}
RANGES = {"allowed_pos_range", "allowed_neg_range"}
FILLED = {CLASSES, *LENGTHS}
PROBE = 2  # classes and dimensions of objects that are made to find out what a constructor takes


def parameters(library: type) -> dict[str, inspect.Parameter]:
    """What the constructors of a class and of its bases take by name, the class's own first."""
    by_name: dict[str, inspect.Parameter] = {}
    for base in library.__mro__:
        if base in (torch.nn.Module, object):
            break
        for name, parameter in inspect.signature(vars(base).get("__init__", object.__init__)).parameters.items():
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY) and name != "self":
                by_name.setdefault(name, parameter)
    return by_name


@dataclass(frozen=True)
class Signature:
    """What dmlcore knows about a class.

    Attributes:
        library: the class.
        filled: the parameters that dmlcore fills in: how many classes there are, how long an embedding is.
        defaults: of the options, by name.
        missing: parameters without a default that dmlcore does not know.
        norms: whether, with its own distance, the class sees how long embeddings are.
    """

    library: type
    filled: tuple[str, ...]
    defaults: dict[str, Any]
    missing: tuple[str, ...]
    norms: bool

    @classmethod
    def read(cls, library: type) -> Signature:
        """Read the constructors. A parameter of a base that the class fixes itself is no option."""
        taken = parameters(library)
        filled = tuple(name for name in taken if name in FILLED)
        fixed = catalogue.DEFAULTS.get(library.__name__, {})
        defaults = {name: fixed.get(name, p.default) for name, p in taken.items() if name not in filled}
        # A parameter without a default may be one that a subclass passes on itself; only the class knows, so it is asked.
        required = {name: PROBE for name in filled if taken[name].default is inspect.Parameter.empty} | fixed
        accepted = {}
        with _trying():
            try:
                probe = library(**required)
            except TypeError:
                missing = tuple(name for name, default in defaults.items() if default is inspect.Parameter.empty)
                return cls(library, filled, {}, missing, False)
            for name, default in defaults.items():
                try:
                    if default is not inspect.Parameter.empty:
                        library(**{**required, name: default})
                        accepted[name] = default
                except TypeError:  # given twice: by a subclass and by us
                    continue
        return cls(library, filled, accepted, (), not getattr(getattr(probe, "distance", None), "normalize_embeddings", True))

    @property
    def wants_classes(self) -> bool:
        """Whether it cannot be made without a number of classes."""
        return CLASSES in self.filled and not self.may_have_classes

    @property
    def may_have_classes(self) -> bool:
        """Whether a number of classes is optional."""
        return CLASSES in self.filled and parameters(self.library)[CLASSES].default is not inspect.Parameter.empty

    def options(self, name: str, base: type) -> type:
        """The options class.

        Args:
            name: of the component, for messages.
            base: the dataclass it derives from.
        """
        fields = []
        for option, default in {**self.defaults, **({"per_class": False} if self.may_have_classes else {})}.items():
            kind = _kind(option, default, parameters(self.library).get(option))
            if kind is not None:
                owned = f"{self.library.__name__}.{option}"
                text = catalogue.HELP.get(owned, catalogue.HELP.get(option, f"As in {self.library.__name__}."))
                fields.append((option, kind, dataclasses.field(default=default, metadata={"help": text})))

        def check(instance: Any) -> None:
            getattr(base, "__post_init__", lambda _: None)(instance)
            with _trying():
                self.create(instance, name, PROBE, PROBE)

        namespace = {"__post_init__": check}
        options = dataclasses.make_dataclass("Options", fields, bases=(base,), namespace=namespace, frozen=True, kw_only=True)
        options.__doc__ = f"Options of `{name}`."
        options.__module__, options.__qualname__ = base.__module__, f"{self.library.__name__}.Options"
        return options

    def create(self, options: Any, name: str, num_classes: int | None = None, embedding_dim: int | None = None) -> Any:
        """An object of the library.

        Raises:
            ConfigError: the library refuses the options.
        """
        arguments: dict[str, Any] = {}
        for option, default in self.defaults.items():
            if hasattr(options, option):
                arguments[option] = self._argument(option, getattr(options, option), default, name, num_classes)
        for parameter in self.filled:
            if parameter != CLASSES:
                arguments[parameter] = embedding_dim
            elif not self.may_have_classes or options.per_class:
                arguments[parameter] = num_classes
        try:
            return self.library(**arguments)
        except (TypeError, ValueError, AssertionError, ZeroDivisionError, RuntimeError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ConfigError(f"{self.library.__name__} refuses its options: {reason}") from error

    def _argument(self, option: str, value: Any, default: Any, name: str, num_classes: int | None) -> Any:
        where = f"{name}.{option}"
        if option in OBJECTS and value is not None:
            return parts.build(option, value, where, num_classes=num_classes)
        if option in RANGES and value is not None:
            return parts.literal(value, where)
        if isinstance(default, int) and isinstance(value, float) and value.is_integer():
            return int(value)
        return int(value) if isinstance(value, str) and value.isdigit() else value


@contextmanager
def _trying() -> Iterator[None]:
    """Objects that are made and forgotten leave no trace in torch's generator, and warn of nothing."""
    with warnings.catch_warnings(action="ignore"), torch.random.fork_rng([]):
        yield


def _kind(option: str, default: Any, parameter: inspect.Parameter | None) -> Any:
    """The type of an option; None for a default that no text can stand for."""
    if option in OBJECTS | RANGES:
        return str | None
    if option in catalogue.COUNTS:
        return int | None if default is None else int
    if default is None:
        annotation = None if parameter is None else str(parameter.annotation)
        return bool | None if option == "collect_stats" else str | None if annotation == "str" else float | None
    for kind in (bool, str):
        if isinstance(default, kind):
            return kind
    return float if isinstance(default, int | float) else None
