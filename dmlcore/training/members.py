"""`plugins = auto`: the members of an ensemble chosen on the validation classes before the run, at equal trials."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from typing import Any

from dmlcore.ensemble import search
from dmlcore.errors import ConfigError, Interrupted, TrainingError, status_of
from dmlcore.files import in_file_name, make_folder, plain, write_atomically
from dmlcore.seals import seal, unseal
from dmlcore.training.configuration import RunConfig
from dmlcore.training.folder import RunFolder
from dmlcore.training.setting_groups.run import DEFAULT_STEPS
from dmlcore.training.settings import Settings
from dmlcore.training.sources import Source

SEARCH, REPORT = "search.json", "search.md"
BESIDE_LOSSES = ("model", "data", "transform", "sampler", "metric")  # kinds whose options a trial has too


def choose_members(
    config: RunConfig, folder: RunFolder, score: Callable[[RunConfig, RunFolder], float], note: Callable[[str], None]
) -> RunConfig:
    """Try every loss that declares values of its main option, alone on a shared embedding, and take those near the best.

    Test classes are not looked at. Trials are stored in `search.json` as they end: the same command with the same folder goes
    on after an interruption. `search.md` holds the table.

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
    losses = settings.losses
    names = list(losses.auto_losses) if losses.auto_losses else None
    try:
        candidates = search.candidates(names, losses.auto_trials)
    except ConfigError as error:
        raise ConfigError(str(error).replace("trials is", "auto_trials is", 1)) from None
    trials = _run_trials(config, folder, candidates, score, note)
    members = search.choose(trials, losses.auto_within, losses.auto_most)
    _write(folder, REPORT, search.report(trials, members, search.left_out(names)))
    note("chosen: " + "; ".join(f"{trial.loss} {trial.options or ''} ({trial.score:.3f})" for trial in members))
    tables = {trial.loss: trial.options for trial in members if trial.options}
    values = {**_without_search(settings), "plugins": tuple(trial.loss for trial in members)}
    return RunConfig.resolve([Source("", values, {**config.options, **tables})]).with_objects(config.objects)


def _run_trials(
    config: RunConfig,
    folder: RunFolder,
    candidates: list[tuple[str, dict[str, Any]]],
    score: Callable[[RunConfig, RunFolder], float],
    note: Callable[[str], None],
) -> list[search.Trial]:
    """The trials of all candidates; those that an interrupted search stored are not repeated."""
    alone = _alone(config.settings)
    about = {"settings": plain(alone.values()), "candidates": plain(candidates)}
    trials = _stored_trials(folder, about)

    def run(loss: str, options: dict[str, Any]) -> float:
        number = len(trials) + 1
        note(f"trial {number} of {len(candidates)}: {loss} {', '.join(f'{k} {v}' for k, v in options.items())}")
        place = RunFolder(folder.path / "search" / f"{number:03d}-{in_file_name(loss)}")
        shutil.rmtree(place.path, ignore_errors=True)
        return score(_single(alone, config, loss, options), place)

    for candidate in candidates[len(trials) :]:
        try:
            (trial,) = search.search([candidate], run)
        except KeyboardInterrupt as interrupt:
            raise Interrupted(
                f"interrupted after {len(trials)} of {len(candidates)} trials, which are kept."
                f" Go on by the same command with --out {folder.path}",
                status_of(interrupt),
            ) from None
        trials.append(trial)
        note(f"  MAP@R of the validation classes: {trial.failure or f'{trial.score:.3f}'}")
        stored = {**about, "trials": plain([dataclasses.asdict(trial) for trial in trials])}
        _write(folder, SEARCH, json.dumps(seal(stored), indent=1) + "\n")
    shutil.rmtree(folder.path / "search", ignore_errors=True)
    return trials


def _alone(settings: Settings) -> Settings:
    """The settings of a trial, but for its loss: one loss on one embedding that is served as it is."""
    return settings.replace(
        ensemble="shared",
        heads_see="all",
        weighting=None,
        weights=None,
        diversity=None,
        compress=0,
        student=0,
        distill_heads=(),
        distill_features_weight=0.0,
        serve=None,
        loggers=(),
        steps=settings.losses.auto_steps or max(1, (settings.run.steps or DEFAULT_STEPS) // 2),
        epochs=None,
    )


def _single(alone: Settings, config: RunConfig, loss: str, options: dict[str, Any]) -> RunConfig:
    tables = {
        table: config.options[table]
        for table, component in config.components.items()
        if component.kind in BESIDE_LOSSES and table in config.options
    }
    if options:
        tables[loss] = options
    values = {**_without_search(alone), "plugins": (loss,)}
    return RunConfig.resolve([Source("", values, tables)]).with_objects(config.objects)


def _without_search(settings: Settings) -> dict[str, Any]:
    """All settings but those of the search, which mean nothing for losses that are chosen."""
    return {key: value for key, value in settings.values().items() if not key.startswith("auto_")}


def _stored_trials(folder: RunFolder, about: dict[str, Any]) -> list[search.Trial]:
    """Trials that an interrupted search left."""
    path = folder.path / SEARCH
    if not path.exists():
        return []
    try:
        stored, _ = unseal(json.loads(path.read_text()))
        if {key: stored[key] for key in about} == about:
            trials = [search.Trial(**trial) for trial in stored["trials"]]
            return [dataclasses.replace(trial, score=math.nan) if trial.score is None else trial for trial in trials]
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path} is damaged ({type(error).__name__}); remove it to search again") from error
    raise ConfigError(f"{path} holds the trials of another search. Choose another --out, or remove it.")


def _write(folder: RunFolder, name: str, text: str) -> None:
    make_folder(folder.path)
    write_atomically(folder.path / name, text.encode())
