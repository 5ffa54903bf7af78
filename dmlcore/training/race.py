"""`start = race`: a few settings train, and the best one on the validation part is what the run has trained. Models of features
share the steps of a run, so that a race has no more of them. Settings of pictures have all of the steps each, since networks of
pictures go on gaining up to the last one. An interrupted race goes on by the same command: each from its last checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dmlcore import plugins
from dmlcore.data import RecordedSplit
from dmlcore.errors import ConfigError, Interrupted, TrainingError, status_of
from dmlcore.files import make_folder, plain, write_atomically
from dmlcore.ranks.dividing import told_by_first
from dmlcore.training import checkpoints
from dmlcore.training.configuration import RunConfig
from dmlcore.training.folder import RunFolder
from dmlcore.training.loggers import Logger
from dmlcore.training.run import Run
from dmlcore.training.setting_groups.run import DEFAULT_STEPS

PLACE = "search"  # in the folder of the run, until the race ends
SETTINGS = "race.json"  # in that: what raced


def races(run: Run, config: RunConfig) -> bool:
    """Whether a run whose settings allow a race begins with one. Where they do not ask for it, it must be a whole default run
    on features, whose model no Python program gave.

    Args:
        run: as it would be without a race.
        config: as it was given.
    """
    if config.settings.model.start is not None:
        return True
    return config.objects.model is None and run.splits.kind == "features" and run.steps == DEFAULT_STEPS


def racers_of(run: Run, config: RunConfig) -> dict[str, RunConfig]:
    """The configurations that race, by name.

    Args:
        run: as it would be without a race.
        config: as it was given.

    Raises:
        ConfigError: the data are of another kind, the model of features is given, there are too few steps, or nothing is left
            open that could race.
    """
    of_kind = {"features": _models_of_features, "images": _settings_of_images}.get(run.splits.kind)
    if of_kind is None:
        raise ConfigError(f"start is race, but the data are {run.splits.kind}: only features and pictures race. Leave it out")
    given = {key: value for key, value in config.as_dict().items() if key != "start"}
    return {
        name: RunConfig.create(**{**given, "start": "preset", **values}).with_objects(config.objects)
        for name, values in of_kind(run, config, given).items()
    }


def _models_of_features(run: Run, config: RunConfig, given: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What is different in each racer."""
    model, starts = config.settings.model, plugins.defaults().STARTS
    named = {"model": model.trunk, "init": model.init}
    if taken := next((f"{key} is {value}" for key, value in named.items() if value is not None), None):
        raise ConfigError(f"start is race, which chooses the model, but {taken}. Leave one of them out")
    if run.steps < len(starts):
        raise ConfigError(f"start is race, and {len(starts)} models need a step each, but steps is {run.steps}")
    steps = {"steps": run.steps // len(starts)}
    return {values["model"]: {**values, **given, **steps} for values in starts}


def _settings_of_images(run: Run, config: RunConfig, given: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What is different in each racer. Losses and a rate that are given stay as they are."""
    settings, defaults = config.settings, plugins.defaults()
    takes_others = settings.losses.names == defaults.LOSSES and settings.ensemble.weights is None
    takes_others &= not set(defaults.LOSSES) & given.keys()  # options of losses
    racers: dict[str, dict[str, Any]] = {"unchanged": {}}
    if takes_others:
        racers["+".join(defaults.RACED_LOSSES)] = {"plugins": defaults.RACED_LOSSES}
    if settings.optimiser.learning_rate is None:
        rate = run.config.settings.optimiser.learning_rate
        assert rate is not None
        racers[f"rate {defaults.RACED_RATE * rate:g}"] = {"learning_rate": defaults.RACED_RATE * rate}
    if len(racers) == 1:
        raise ConfigError("start is race, but losses and learning rate are given: nothing is left to choose. Leave one out")
    return racers


def check_is_no_race(folder: RunFolder) -> None:
    """Refuse to resume what is no run yet.

    Raises:
        ConfigError: a race was interrupted in the folder.
    """
    if not folder.is_begun and (folder.path / PLACE / SETTINGS).is_file():
        raise ConfigError(
            f"a race was interrupted in {folder.path}. Go on by the command that began it, with --out {folder.path}"
        )


def race(
    racers: dict[str, RunConfig],
    run: Run,
    score: Callable[..., float],
    note: Callable[[str], None],
    recorded: RecordedSplit | None,
) -> tuple[dict[str, Any], RecordedSplit | None]:
    """Train each racer. The folder of the run becomes that of the best one, as if it had trained
    there. Several processes all call this.

    Args:
        racers: of `racers_of`.
        run: as it would be without a race; its folder is locked.
        score: trains a configuration in a folder and returns the best MAP@R of the validation part. It takes the split, the
            loggers of the training, and the state of a checkpoint to go on from.
        note: receives lines of progress.
        recorded: the split, where it is given. A race that goes on has the one that it began with.

    Returns:
        The last checkpoint of the best one, which has done all of its steps, and the split where it is not to be drawn.

    Raises:
        Interrupted: the same command goes on.
    """
    folder = run.folder
    digest = None if recorded is None else hashlib.sha256(recorded.to_json()).hexdigest()
    about = {"racers": {name: plain(racer.as_dict()) for name, racer in racers.items()}, "split": digest}
    goes_on = _of_first(run, lambda: _is_begun(folder.path / PLACE, about, note))
    scores: dict[str, float] = {}
    try:
        for name, racer in racers.items():
            place = type(folder)(folder.path / PLACE / name)  # which this process writes or not, as that of the run
            state = checkpoints.load_newest(place.checkpoints, note) if goes_on and place.is_begun else None
            if state is not None and recorded is None:  # that of all, as the data may have grown since
                recorded = RecordedSplit.read(place.split)
            done = "" if state is None else f", {state['step']} done already"
            steps = racer.settings.run.steps or run.steps
            note(f"start {len(scores) + 1} of {len(racers)}: {name}, {steps} steps{done}")
            listeners = [_Progress(note)] if run.writes else []
            scores[name] = score(racer, place, recorded=recorded, loggers=listeners, state=state)
            note(f"  best MAP@R of the validation part: {scores[name]:.3f}")
    except KeyboardInterrupt as interrupt:
        text = f"interrupted while {len(racers)} starts raced. Go on by the same command with --out {folder.path}"
        raise Interrupted(text, status_of(interrupt)) from None
    best = max(scores, key=lambda name: scores[name])  # of equals the first, which is the simpler one, or what was given
    note(f"taken: {best}")
    _of_first(run, lambda: _take(folder, RunFolder(folder.path / PLACE / best)))
    state = checkpoints.load_newest(folder.checkpoints, note)
    if state is None:
        raise TrainingError(f"{folder.checkpoints} has no checkpoint any more: another process has changed it")
    return state, recorded


class _Progress(Logger):
    """Tells of a start in lines. The run's own loggers hear of the best one alone, so that their series stay one run's."""

    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()
        self.note = note  # type: ignore[method-assign]

    def evaluated(self, run: Run, record: dict[str, Any]) -> None:
        self.note(f"  step {record['step']} of {run.steps}: MAP@R of the validation part {record['map@r']:.3f}")


def _of_first(run: Run, act: Callable[[], Any]) -> Any:
    """What a function gives in the process that writes, for all, which raise its error too."""
    return act() if run.processes is None else told_by_first(run.processes.group, act)


def _is_begun(place: Path, about: dict[str, Any], note: Callable[[str], None]) -> bool:
    """Whether a race with these settings was interrupted here. The traces of another are removed."""
    path = place / SETTINGS
    try:
        if json.loads(path.read_text()) == about:
            return True
        note(f"{place} holds a race with other settings, which begins again")
    except (OSError, ValueError):
        pass
    shutil.rmtree(place, ignore_errors=True)
    make_folder(place)
    write_atomically(path, json.dumps(about).encode())
    return False


def _take(folder: RunFolder, winner: RunFolder) -> None:
    """Make the folder of the winner that of the run."""
    for path in (winner.checkpoints, winner.trunk, winner.metrics, winner.split, winner.config):  # the last says there is a run
        if path.exists():
            shutil.rmtree(folder.path / path.name, ignore_errors=True)
            path.rename(folder.path / path.name)
    shutil.rmtree(folder.path / PLACE, ignore_errors=True)
