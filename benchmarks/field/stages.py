"""The work: an equal search for each arm, then repeated training of what it found on folds of the classes. A result is one
file, written whole, so that the same command goes on after a kill at any moment.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.field.arms import Arm
from dmlcore.data import RecordedSplit
from dmlcore.errors import ConfigError
from dmlcore.files import in_file_name, make_folder, write_atomically
from dmlcore.locks import FolderLock
from dmlcore.protocols import crossing
from dmlcore.protocols.cells import Cell, finished, run_cells
from dmlcore.protocols.tuning import plan, running, space
from dmlcore.training import RunConfig

SPLIT = "split.json"
MEASURES = {"MAP@R": "map@r", "R@1": "recall@1"}
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Budget:
    """What every arm gets.

    Attributes:
        trials: of the search.
        folds: of the training and validation classes, in trials and in repeats.
        seeds: number of repeats.
        pruner: of `dmlcore tune`; `none` trains all trials to the end.
        specs: what is searched, of `space.written`; empty: the rate, and what the losses declare.
    """

    trials: int = 50
    folds: int = 4
    seeds: int = 10
    pruner: str = "none"
    specs: dict[str, Any] | None = None


@dataclass(frozen=True)
class Place:
    """Where and by whom the work is done.

    Attributes:
        folder: of all results.
        processes: at a time.
        devices: of CUDA, one for each process in turn; empty: what the settings say.
    """

    folder: Path
    processes: int = 1
    devices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Results:
    """What is there.

    Attributes:
        tuned: of the search by arm.
        repeats: of every arm by seed.
    """

    tuned: dict[str, dict[str, Any]]
    repeats: dict[str, dict[int, dict[str, Any]]]


def check(arms: Sequence[Arm], budget: Budget) -> tuple[plan.Plan, bytes]:
    """Refuse now what would fail after hours. Returns the plan of the searches and the split of the data.

    Raises:
        ConfigError, DataError: as `dmlcore tune`, for any of the arms.
    """
    if budget.seeds < 1:
        raise ConfigError(f"seeds is {budget.seeds}, but must be at least 1: the number of repeats")
    if budget.folds < 2:
        raise ConfigError(f"folds is {budget.folds}, but must be at least 2: models that are measured apart and side by side")
    for arm in arms:
        if arm.config.settings.run.validation != "classes":
            raise ConfigError("the models of the folds are chosen by validation classes. Leave --validation out")
    configs = [(arm.name, arm.config) for arm in arms]
    return plan.make_plan(configs, budget.specs or {}, trials=budget.trials, folds=budget.folds, pruner=budget.pruner)


def run(arms: Sequence[Arm], budget: Budget, place: Place, tell: Tell = print) -> Results:
    """Run what is missing: the searches of all arms, then the repeats, the first seed of all arms before the second.

    Raises:
        ConfigError, TrainingError, Interrupted: as `cells.run_cells`.
    """
    _, record = check(arms, budget)
    lock = FolderLock(make_folder(place.folder), tell)
    # Fresh processes must find this module, wherever the command was started.
    root, path = str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")
    if root not in path.split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join([root, path]) if path else root
    try:
        _keep_split(place.folder, record)
        options: dict[str, Any] = {"processes": place.processes, "devices": place.devices, "tell": tell}
        tell(f"searching: {budget.trials} trials of {budget.folds} folds for each of {len(arms)} arms")
        tuned = run_cells(place.folder, _searches(arms, budget, place.folder), search, **options)
        tell(f"repeating: {budget.seeds} seeds of {budget.folds} folds for each of {len(arms)} arms")
        repeats = run_cells(place.folder, _repeats(arms, budget, place.folder, tuned), repeat, **options)
        return _by_arm(arms, budget, tuned, repeats)
    finally:
        lock.release()


def read(arms: Sequence[Arm], budget: Budget, folder: Path) -> Results:
    """The results that are there; nothing is run."""
    tuned = finished(folder, _searches(arms, budget, folder))
    ready = [arm for arm in arms if _key(arm) in tuned]
    return _by_arm(arms, budget, tuned, finished(folder, _repeats(ready, budget, folder, tuned)))


def search(settings: dict[str, Any], work: Path) -> dict[str, Any]:
    """A cell: the best settings of an arm, by its mean MAP@R on folds of the training and validation classes. No test class is
    looked at. The study stays in the folder `studies`, with a page about it.
    """
    study = Path(settings["folder"]) / "studies" / work.name
    if not (study / plan.FILE).exists():
        shutil.rmtree(study, ignore_errors=True)  # of an attempt that ended before the study began
    config = RunConfig.create(**settings["config"])
    budget = {key: settings[key] for key in ("trials", "folds", "pruner")}
    make_folder(study.parent)
    result = running.run([(settings["arm"], config)], settings["specs"], study, **budget, keeps_open=True)
    (row,) = result["arms"]
    score, half = row["validation"]
    best = space.with_values(config, row["best"]["values"])
    about = {key: row[key] for key in ("trials", "failed", "pruned", "steps", "seconds", "before")}
    return {
        **about,
        "values": row["best"]["values"],
        "config": RunConfig.create(**best).as_dict(),
        "validation": score,
        "half": half,
        "steps_of_a_run": result["steps"],
        "headline": f"validation MAP@R {score:.3f}",
    }


def repeat(settings: dict[str, Any], work: Path) -> dict[str, Any]:
    """A cell: a model for each fold with the settings that were found, measured on the test classes one by one and side by
    side."""
    began = time.perf_counter()
    recorded = RecordedSplit.read(Path(settings["folder"]) / SPLIT)
    config = RunConfig.create(**settings["config"])
    total = crossing.run(config, settings["folds"], [settings["seed"]], work / "folds", recorded=recorded)
    separate, concatenated = total["metrics"]["test"], total["concatenated"]["test"]
    baselines = {name: _values(parts["test"]) for name, parts in total["baselines"].items()}
    return {
        "separate": _values(separate),
        "concatenated": _values(concatenated),
        "length": total["embedding_dim"],
        "baselines": baselines,
        "seconds": time.perf_counter() - began,
        "headline": f"MAP@R {separate['map@r'][0]:.3f}, side by side {concatenated['map@r'][0]:.3f}",
    }


def _values(measures: dict[str, Sequence[float]]) -> dict[str, float]:
    return {name: measures[key][0] for name, key in MEASURES.items() if key in measures}


def _keep_split(folder: Path, record: bytes) -> None:
    """Keep the parts of the data: every search and every repeat has the same test classes.

    Raises:
        ConfigError: those of the folder are other ones.
    """
    file = folder / SPLIT
    if not file.exists():
        write_atomically(file, record)
    elif file.read_bytes() != record:
        raise ConfigError(f"{folder} holds results on other data, or on another split of them. Choose another --work")


def _file_name(arm: Arm) -> str:
    return in_file_name(arm.name.replace(",", "+"))


def _key(arm: Arm) -> str:
    return f"search/{_file_name(arm)}"


def _searches(arms: Sequence[Arm], budget: Budget, folder: Path) -> list[Cell]:
    shared = {"folder": str(folder.resolve()), "folds": budget.folds, "pruner": budget.pruner, "specs": budget.specs or {}}
    return [
        Cell(_key(arm), {**shared, "arm": arm.name, "trials": budget.trials, "config": arm.config.as_dict()}) for arm in arms
    ]


def _repeats(arms: Sequence[Arm], budget: Budget, folder: Path, tuned: dict[str, dict[str, Any]]) -> list[Cell]:
    shared = {"folder": str(folder.resolve()), "folds": budget.folds}
    return [
        Cell(_repeat_key(arm, seed), {**shared, "arm": arm.name, "seed": seed, "config": _config(tuned[_key(arm)])})
        for seed in range(budget.seeds)
        for arm in arms
    ]


def _config(searched: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in searched["config"].items() if key != "seed"}


def _repeat_key(arm: Arm, seed: int) -> str:
    return f"repeats/seed-{seed}/{_file_name(arm)}"


def _by_arm(
    arms: Sequence[Arm], budget: Budget, tuned: dict[str, dict[str, Any]], repeats: dict[str, dict[str, Any]]
) -> Results:
    seeds = range(budget.seeds)
    by_seed = {arm.name: {s: repeats[_repeat_key(arm, s)] for s in seeds if _repeat_key(arm, s) in repeats} for arm in arms}
    return Results({arm.name: tuned[_key(arm)] for arm in arms if _key(arm) in tuned}, by_seed)
