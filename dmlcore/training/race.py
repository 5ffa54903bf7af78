"""`start = race`: the model of features chosen on the validation part, by training each of a few for its share of the steps.
The best one is what the run has trained, so the race has no more steps than a run.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

from dmlcore import plugins
from dmlcore.errors import ConfigError, Interrupted, TrainingError, of_all, status_of
from dmlcore.training import checkpoints
from dmlcore.training.configuration import RunConfig
from dmlcore.training.folder import RunFolder
from dmlcore.training.processes import Processes
from dmlcore.training.run import Run
from dmlcore.training.setting_groups.run import DEFAULT_STEPS

PLACE = "search"  # in the folder of the run, until the race ends


def races(run: Run, config: RunConfig, processes: Processes | None) -> bool:
    """Whether a run whose settings allow a race begins with one. Where they do not ask for it, it must be a whole default run
    on features, whose model no Python program gave.

    Args:
        run: as it would be without a race.
        config: as it was given.
        processes: that train together.

    Raises:
        ConfigError: a race is asked for, but the data are no features, there are too few steps, or several processes train.
    """
    if config.settings.model.start is None:
        is_alone = processes is None and config.objects.model is None
        return is_alone and run.splits.kind == "features" and run.steps == DEFAULT_STEPS
    if processes is not None:
        raise of_all(ConfigError("start is race, which one process runs. Let one process train, or name the model"))
    if run.splits.kind != "features":
        raise ConfigError(f"start is race, but the data are {run.splits.kind}: only models of features race. Leave it out")
    starts = len(plugins.defaults().STARTS)
    if run.steps < starts:
        raise ConfigError(f"start is race, and {starts} models need a step each, but steps is {run.steps}")
    return True


def race(
    config: RunConfig, run: Run, score: Callable[[RunConfig, RunFolder], float], note: Callable[[str], None]
) -> dict[str, Any]:
    """Train each model for its share of the steps. The folder of the run becomes that of the best one, as if it had trained
    there.

    Args:
        config: as it was given.
        run: as it would be without a race; its folder is locked.
        score: trains a configuration in a folder and returns the best MAP@R of the validation part.
        note: receives lines of progress.

    Returns:
        The last checkpoint of the best one, which has done all of its steps.

    Raises:
        Interrupted: nothing is kept then.
    """
    starts, folder = plugins.defaults().STARTS, run.folder
    given = {key: value for key, value in config.as_dict().items() if key != "start"}
    scores: dict[str, float] = {}
    try:
        for values in starts:
            values = {**values, **given, "steps": run.steps // len(starts)}
            place = RunFolder(folder.path / PLACE / values["model"])
            shutil.rmtree(place.path, ignore_errors=True)
            note(f"start {len(scores) + 1} of {len(starts)}: {values['model']}, {values['steps']} steps")
            scores[values["model"]] = score(RunConfig.create(**values).with_objects(run.config.objects), place)
            note(f"  MAP@R of the validation part: {scores[values['model']]:.3f}")
    except KeyboardInterrupt as interrupt:
        shutil.rmtree(folder.path / PLACE, ignore_errors=True)
        raise Interrupted("interrupted while two starts raced; nothing is kept", status_of(interrupt)) from None
    best = max(scores, key=lambda name: scores[name])  # of equals the first, which is the simpler one
    note(f"taken: {best}")
    winner = RunFolder(folder.path / PLACE / best)
    for path in (winner.checkpoints, winner.trunk, winner.metrics, winner.split, winner.config):  # the last says there is a run
        if path.exists():
            shutil.rmtree(folder.path / path.name, ignore_errors=True)
            path.rename(folder.path / path.name)
    shutil.rmtree(folder.path / PLACE, ignore_errors=True)
    state = checkpoints.load_newest(folder.checkpoints, note)
    if state is None:
        raise TrainingError(f"{folder.checkpoints} has no checkpoint any more: another process has changed it")
    return state
