"""`plugins = auto`: the members of an ensemble chosen on the validation classes before the run, at equal trials."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from typing import Any

from dmlcore.ensemble import search
from dmlcore.errors import ConfigError, TrainingError
from dmlcore.files import in_file_name, plain, write_atomically
from dmlcore.training.folder import RunFolder
from dmlcore.training.settings import AUTO, DEFAULT_STEPS, RunConfig, Settings, Source

SEARCH, REPORT = "search.json", "search.md"


def is_automatic(config: RunConfig) -> bool:
    """Whether the losses are still to be chosen."""
    return config.settings.plugins == AUTO


def choose_members(
    config: RunConfig, folder: RunFolder, score: Callable[[RunConfig, RunFolder], float], note: Callable[[str], None]
) -> RunConfig:
    """Try every loss that declares values of its main option, alone on a shared embedding, and take those near the best.

    Test classes are not looked at. Trials are kept in `search.json` as they end: the same command with the same folder goes on
    after an interruption. `search.md` holds the table.

    Args:
        config: with `plugins = auto`.
        folder: of the run.
        score: trains a configuration in a folder and returns the best MAP@R on the validation classes.
        note: receives lines of progress.

    Returns:
        The configuration with the members and their options.

    Raises:
        ConfigError: no loss can be searched; the folder holds the trials of another search.
    """
    settings = config.settings
    names = list(settings.auto_losses) if settings.auto_losses else None
    try:
        tried = search.candidates(names, settings.auto_trials)
    except ConfigError as error:
        raise ConfigError(str(error).replace("trials is", "auto_trials is", 1)) from None
    left_out = search.left_out(names)
    alone = dataclasses.replace(
        settings,
        ensemble="shared",
        weighting=None,
        weights=None,
        diversity=None,
        compress=0,
        student=0,
        serve=None,
        loggers=(),
        steps=settings.auto_steps or max(1, (settings.steps or DEFAULT_STEPS) // 2),
        epochs=None,
    )
    about = {"settings": plain(dataclasses.asdict(alone)), "candidates": plain(tried)}
    found = _known(folder, about)

    def run(loss: str, options: dict[str, Any]) -> float:
        number = len(found) + 1
        note(f"trial {number} of {len(tried)}: {loss} {', '.join(f'{k} {v}' for k, v in options.items())}")
        place = RunFolder(folder.path / "search" / f"{number:03d}-{in_file_name(loss)}")
        shutil.rmtree(place.path, ignore_errors=True)
        return score(_single(alone, config, loss, options), place)

    for candidate in tried[len(found) :]:
        try:
            (trial,) = search.search([candidate], run)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted after {len(found)} of {len(tried)} trials, which are kept."
                f" Go on by the same command with --out {folder.path}"
            ) from None
        found.append(trial)
        note(f"  MAP@R of the validation classes: {trial.failure or f'{trial.score:.3f}'}")
        _write(folder, SEARCH, json.dumps({**about, "trials": plain([dataclasses.asdict(t) for t in found])}, indent=1) + "\n")
    shutil.rmtree(folder.path / "search", ignore_errors=True)
    chosen = search.choose(found, settings.auto_within, settings.auto_most)
    _write(folder, REPORT, search.report(found, chosen, left_out))
    note("chosen: " + "; ".join(f"{t.loss} {t.options or ''} ({t.score:.3f})" for t in chosen))
    members = tuple(trial.loss for trial in chosen)
    tables = {trial.loss: trial.options for trial in chosen if trial.options}
    given = {**_values(settings), "plugins": members}
    return RunConfig.resolve([Source("", given, {**config.options, **tables})])


def _single(alone: Settings, config: RunConfig, loss: str, options: dict[str, Any]) -> RunConfig:
    kept = {
        table: config.options[table]
        for table, c in config.chosen.items()
        if c.kind in ("model", "data", "transform", "sampler", "metric") and table in config.options
    }
    return RunConfig.resolve(
        [Source("", {**_values(alone), "plugins": (loss,)}, {**kept, **({loss: options} if options else {})})]
    )


def _values(settings: Settings) -> dict[str, Any]:
    """All settings but those of the search, which mean nothing for losses that are chosen."""
    return {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings) if not f.name.startswith("auto_")}


def _known(folder: RunFolder, about: dict[str, Any]) -> list[search.Trial]:
    """Trials that an interrupted search left."""
    path = folder.path / SEARCH
    if not path.exists():
        return []
    try:
        stored = json.loads(path.read_text())
        if {key: stored[key] for key in about} == about:
            known = [search.Trial(**trial) for trial in stored["trials"]]
            return [dataclasses.replace(trial, score=math.nan) if trial.score is None else trial for trial in known]
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path} is damaged ({type(error).__name__}); remove it to search again") from error
    raise ConfigError(f"{path} holds the trials of another search. Choose another --out, or remove it.")


def _write(folder: RunFolder, name: str, text: str) -> None:
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder {folder.path}: {error.strerror}. Choose another --out.") from error
    write_atomically(folder.path / name, text.encode())
