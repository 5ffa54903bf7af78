"""The contracts of everything that is no loss, as checks: which kind a class is, and the checks of its kind."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

from dmlcore.config import build_options, option_help
from dmlcore.errors import ConfigError
from dmlcore.kinds import KINDS
from dmlcore.testing import ensembles, inputs, losses, optimizers, outputs, schedules
from dmlcore.testing.report import Check, Report

_CHECKS: dict[str, Callable[[type, dict[str, Any], Report], None]] = {
    "miner": ensembles.check_miner,
    "weighting": ensembles.check_weighting,
    "compressor": outputs.check_compressor,
    "model": outputs.check_model,
    "metric": outputs.check_metric,
    "logger": outputs.check_logger,
    "data": inputs.check_data,
    "transform": inputs.check_transform,
    "sampler": inputs.check_sampler,
    "optimizer": optimizers.check_optimizer,
    "schedule": schedules.check_schedule,
}


def kind_of(component: type) -> str:
    """The kind of a class, by the class it derives from.

    Raises:
        ConfigError: it derives from none of them.
    """
    for kind in KINDS.values():
        room, _, name = kind.base.rpartition(".")
        base: Any = getattr(importlib.import_module(room), name)
        if isinstance(component, type) and issubclass(component, base):
            return kind.name
    raise ConfigError(f"{component!r} derives from none of {', '.join(kind.base for kind in KINDS.values())}")


def run_checks_of(component: type, *, measures_memory: bool = False, **options: Any) -> Report:
    """Every check of a component of any kind, passed or not.

    Args:
        component: the class.
        measures_memory: of a loss, also measure how memory grows; some seconds.
        options: options by name.
    """
    kind = kind_of(component)
    if kind == "loss":
        report = losses.report_loss(component, measures_memory=measures_memory, **options)
    else:
        report = Report(kind, getattr(component, "name", component.__name__))
    report.check("options: defaults, help, names", lambda: _has_options(component, kind, options))
    if kind != "loss":
        report.check("name and docstring", lambda: _has_words(component))
        _CHECKS[kind](component, options, report)
    return report


def check(component: type, **options: Any) -> list[Check]:
    """Prove that a component keeps the contract of its kind; for the tests of a plugin.

    Args:
        component: the class, of any kind that a plugin can offer.
        options: options by name.

    Returns:
        The checks, none failed; those that do not apply say why.

    Raises:
        PluginError: at least one failed; the message lists them.
        ConfigError: the class is of no kind.
    """
    report = run_checks_of(component, **options)
    report.raise_failures()
    return report.checks


def _has_words(component: type) -> str | None:
    if not isinstance(getattr(component, "name", None), str) or not component.name:  # type: ignore[attr-defined]
        return "the class needs a `name`"
    return None if component.__doc__ else "the class needs a docstring: `dmlcore plugins` shows its first sentence"


def _has_options(component: type, kind: str, arguments: dict[str, Any]) -> str | None:
    options: Any = getattr(component, "Options", None)
    if options is None:
        return None if kind == "logger" else "the class needs `Options`, a dataclass; it may inherit it"
    if not isinstance(options, type) or not dataclasses.is_dataclass(options):
        return "`Options` must be a dataclass"
    names = [field.name for field in dataclasses.fields(options)]
    silent = [name for name in names if not option_help(options).get(name)]
    if silent:
        return f"options without a docstring, which is their help: {', '.join(silent)}"
    try:
        build_options(options, {name: value for name, value in arguments.items() if name in names}, "options")
    except TypeError as error:
        return f"options must all have defaults: {error}"
    return None
