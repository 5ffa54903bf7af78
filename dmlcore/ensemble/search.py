"""Choosing the members of an ensemble: every loss tried with as many values of its most important option, and the best kept.

How a trial is trained and scored is the caller's; nothing here knows the training loop.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dmlcore.config import check_range
from dmlcore.errors import ConfigError, TrainingError
from dmlcore.plugins import find, registry
from dmlcore.texts import in_markdown


@dataclass(frozen=True)
class Trial:
    """One loss trained with some options.

    Attributes:
        loss: the loss's name.
        options: its options that were set, by name.
        score: MAP@R in [0, 1] on validation classes; NaN for a trial that failed.
        seconds: how long it took.
        failure: why it has no score, or an empty string.
    """

    loss: str
    options: dict[str, Any]
    score: float
    seconds: float
    failure: str = ""


def _searched(loss: str) -> dict[str, tuple[Any, ...]]:
    return getattr(find("loss", loss).component, "searched", {})


def _values(loss: str) -> list[dict[str, Any]]:
    """Every option setting of a loss, its defaults first, then each option by itself."""
    settings: list[dict[str, Any]] = []
    for option, values in _searched(loss).items():
        settings += [{option: value} for value in (values if not settings else values[1:])]
    return settings


def left_out(losses: Sequence[str] | None = None) -> list[str]:
    """Losses that are not searched, since they do not say which values to try (`searched`).

    A trial of such a loss at its defaults alone would compare it unfairly.

    Args:
        losses: names; None: all that are installed.

    Raises:
        ConfigError: an unknown name.
    """
    return [loss for loss in (registry("loss") if losses is None else losses) if not _searched(loss)]


def candidates(losses: Sequence[str] | None, trials: int) -> list[tuple[str, dict[str, Any]]]:
    """What to try: for each loss equally many values of the option it declares in `searched`, its defaults first.

    Losses without `searched` are left out; `left_out` names them.

    Args:
        losses: names, repeats count once; None: all that are installed.
        trials: per loss, >= 1.

    Returns:
        Names and options, loss by loss.

    Raises:
        ConfigError: an unknown name, no loss that can be searched, or more trials than a loss has values.
    """
    check_range("trials", trials, least=1)
    names = list(dict.fromkeys(registry("loss") if losses is None else losses))
    values = {loss: settings for loss in names if (settings := _values(loss))}
    if not values:
        undeclared = f": {', '.join(names)} declare no 'searched' values" if names else ""
        raise ConfigError(f"there is no loss to search{undeclared}")
    fewest = min(values, key=lambda loss: len(values[loss]))
    if trials > len(values[fewest]):
        raise ConfigError(
            f"trials is {trials}, but '{fewest}' has {len(values[fewest])} values to try; every loss gets equally many trials"
        )
    return [(loss, options) for loss, settings in values.items() for options in settings[:trials]]


def search(candidates: Iterable[tuple[str, dict[str, Any]]], run: Callable[[str, dict[str, Any]], float]) -> list[Trial]:
    """Run every candidate in order.

    Args:
        candidates: names and options.
        run: trains one and returns its MAP@R on validation classes, in [0, 1]. A `TrainingError` of it, such as a loss that
            is not finite, fails that trial and no other.

    Returns:
        One trial per candidate, in order.
    """
    trials = []
    for loss, options in candidates:
        started, failure = time.perf_counter(), ""
        try:
            score = float(run(loss, options))
        except TrainingError as error:
            score, failure = math.nan, " ".join(str(error).split())
        trials.append(Trial(loss, options, score, time.perf_counter() - started, failure))
    return trials


def choose(trials: Sequence[Trial], within: float = 0.02, most: int = 4) -> list[Trial]:
    """The members: of each loss its best trial, of those the ones near the best of all.

    Weak members pull an ensemble down, whatever they add in diversity; hence a margin rather than a fixed number.

    Args:
        trials: of one or more losses. Those whose score is not finite are passed over.
        within: how far below the best score a member may lie, >= 0, in units of the score (0.02: two points of MAP@R).
        most: members, >= 1.

    Returns:
        At least one trial, the best first; equal scores in the order of the trials.

    Raises:
        ConfigError: no trial has a finite score, or a number is out of range.
    """
    check_range("within", within, least=0)
    check_range("most", most, least=1)
    best: dict[str, Trial] = {}
    for trial in trials:
        best_so_far = best.get(trial.loss)
        if math.isfinite(trial.score) and (best_so_far is None or trial.score > best_so_far.score):
            best[trial.loss] = trial
    if not best:
        why = "; ".join(sorted({trial.failure for trial in trials if trial.failure})) or "there are none"
        raise ConfigError(f"no trial has a finite score to choose by: {why}")
    ranked = sorted(best.values(), key=lambda trial: (-trial.score, trials.index(trial)))
    return [trial for trial in ranked if trial.score >= ranked[0].score - within][:most]


def report(trials: Sequence[Trial], chosen: Sequence[Trial], left_out: Sequence[str] = ()) -> str:
    """What was tried, as Markdown.

    Args:
        trials: all of them.
        chosen: from `choose`.
        left_out: names from the function of that name.

    Returns:
        A table with a row per trial, the best first and the failed last, and a line about the losses left out, if any.
    """

    def cell(value: object) -> str:
        return in_markdown(str(value))

    lines = ["| loss | options | MAP@R | seconds | chosen |", "|---|---|---:|---:|---|"]
    ranked = sorted(trials, key=lambda trial: -trial.score if math.isfinite(trial.score) else math.inf)
    for trial in ranked:
        options = ", ".join(f"{name}={value}" for name, value in trial.options.items()) or "defaults"
        score = f"{trial.score:.4f}" if math.isfinite(trial.score) else f"failed: {trial.failure or trial.score}"
        mark = "yes" if any(trial is member for member in chosen) else ""
        lines.append(f"| {cell(trial.loss)} | {cell(options)} | {cell(score)} | {trial.seconds:.1f} | {mark} |")
    if left_out:
        lines += ["", f"Not searched, since they declare no values to try: {', '.join(left_out)}."]
    return "\n".join(lines) + "\n"
