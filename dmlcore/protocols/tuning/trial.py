"""One trial: a training for each fold, given up as soon as its values fall behind those of the other trials."""

from __future__ import annotations

import functools
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmlcore import plugins, trust
from dmlcore.data import RecordedSplit
from dmlcore.errors import ConfigError, TrainingError
from dmlcore.protocols.trained import headline, trained_and_moved
from dmlcore.protocols.tuning.study import ArmStudy
from dmlcore.training.configuration import RunConfig
from dmlcore.training.folder import RunFolder

if TYPE_CHECKING:
    from dmlcore.training.run import Run


def run_trial(settings: dict[str, Any], work: Path, folder: str, trusts_plugins: bool | None) -> dict[str, Any]:
    """A cell: the score of some settings on the folds.

    Args:
        settings: `config`, `arm`, `number`, `pruner`, `evaluations`, `folds`.
        work: the trial's own folder, emptied here.
        folder: of the study.
        trusts_plugins: as for `foreign`.

    Returns:
        `score`, the mean over the folds of the best MAP@R on their validation classes; `scores` of the folds that were run;
        `is_pruned`, `failure`, `seconds`, `steps`.
    """
    from dmlcore.training.loggers import TaskLogger
    from dmlcore.training.start import validation_score

    shutil.rmtree(work, ignore_errors=True)
    study = ArmStudy(Path(folder), settings["arm"], settings["pruner"], settings["evaluations"] * len(settings["folds"]))
    scores: list[float] = []
    state = {"is_pruned": False, "steps": 0}
    began = time.perf_counter()

    def goes_on(run: Run, score: float, fold: int) -> bool:
        every = run.config.settings.run.eval_every
        assert every is not None  # the run's configuration is complete
        place = fold * settings["evaluations"] + -(-run.step // every)
        mean = (sum(scores) + score) / (len(scores) + 1)
        state["is_pruned"] = not study.report(settings["number"], place, mean)
        return not state["is_pruned"]

    def result(failure: str = "") -> dict[str, Any]:
        score = sum(scores) / len(scores) if len(scores) == len(settings["folds"]) else None
        return {**state, "score": score, "scores": scores, "failure": failure, "seconds": time.perf_counter() - began}

    try:
        with plugins.blaming(), trust.reading(foreign(folder, trusts_plugins)):
            config = RunConfig.create(**settings["config"])
            for fold, file in enumerate(settings["folds"]):
                place = RunFolder(work / f"fold-{fold + 1}")
                recorded = RecordedSplit.read(Path(folder) / file)
                score = validation_score(
                    config, place, recorded, loggers=[TaskLogger()], goes_on=functools.partial(goes_on, fold=fold)
                )
                records = place.records()
                state["steps"] += max((record["step"] for record in records), default=0)
                if state["is_pruned"]:
                    break
                scores.append(score)
    except (TrainingError, ConfigError) as error:  # such as a rate at which nothing is finite: it counts as a trial
        return result(" ".join(str(error).split()))
    return result()


def run_winner(settings: dict[str, Any], work: Path, folder: str, trusts_plugins: bool | None) -> dict[str, Any]:
    """A cell: the best settings of an arm trained on the run's own split, and measured on the test classes, this once.

    Args:
        settings: `config`, `place`, `split` (where the study keeps the split).
        work: the cell's own folder.
        folder: of the study.
        trusts_plugins: as for `foreign`.

    Raises:
        TrainingError: the data have changed since the study began.
    """
    place = Path(folder) / settings["place"]
    with trust.reading(foreign(folder, trusts_plugins)):
        result = trained_and_moved(RunConfig.create(**settings["config"]), work, settings, place)
    if RunFolder(place).split.read_bytes() != (Path(folder) / settings["split"]).read_bytes():
        raise TrainingError(f"the data have changed since the study in {folder} began, so its folds say nothing about them")
    kept = ("metrics", "baselines", "chosen_step", "steps", "advice", "wall_seconds")
    return {**{key: result[key] for key in kept}, "headline": headline(result)}


def foreign(folder: str | Path, trusts_plugins: bool | None) -> trust.Folder | None:
    """Whose files of code a study names. None: the user named them."""
    return None if trusts_plugins is None else trust.Folder(Path(folder), tuple(plugins.KINDS), trusts_plugins)
