"""A study from its first trial to the page about it. A study that is called again goes on, and loses only trials that ran."""

from __future__ import annotations

import functools
import hashlib
import math
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dmlcore import plugin_files, trust
from dmlcore.config import check_range, seconds_of
from dmlcore.data import RecordedSplit
from dmlcore.errors import ConfigError, Interrupted, TrainingError, status_of
from dmlcore.files import encoded, make_folder, plain, remove_temporaries, write_atomically
from dmlcore.locks import FolderLock
from dmlcore.protocols.cells import Cell, computed, path_of, run_cells
from dmlcore.protocols.tuning import plan as plans
from dmlcore.protocols.tuning.folds import folds_of
from dmlcore.protocols.tuning.plan import Arm, Plan, make_plan
from dmlcore.protocols.tuning.study import ArmStudy, optuna
from dmlcore.protocols.tuning.trial import foreign, run_trial, run_winner
from dmlcore.reports.intervals import mean_and_half
from dmlcore.reports.study_page import ArmFacts, study_page
from dmlcore.training.building import open_splits
from dmlcore.training.configuration import RunConfig
from dmlcore.training.folder import REPORT

COMPARISON = "comparison.html"
NOT_OF_TRIALS = ("loggers", "stop_after", "report")  # settings of the winner's run, which a trial has not


def run(
    arms: Sequence[tuple[str, RunConfig]],
    specs: dict[str, Any],
    out: str | Path,
    *,
    trials: int = 20,
    folds: int = 4,
    pruner: str = "median",
    processes: int = 1,
    keeps_open: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Search settings for each arm, train the winners, and measure each on the test classes once.

    Called again with the same arguments and folder it goes on; with more trials, as long as no winner was tested.

    Args:
        arms: names and configurations, which differ in their losses only. Their `stop_after` is of the whole study.
        specs: what is searched, of `space.written`.
        out: folder of the study.
        trials: of each arm.
        folds: class-disjoint folds of the training and validation classes; 1: the run's own split.
        pruner: what gives up trials that fall behind: `median`, `hyperband` or `none`.
        processes: trials at a time, each with one thread.
        keeps_open: train and test no winners yet, so that trials can be added.
        tell: receives lines of progress.

    Returns:
        `arms`, with the best settings and measures of each, `folder` and `report`.

    Raises:
        ConfigError: something cannot be searched, the folder holds another study, or Optuna is not installed.
        TrainingError: all trials of an arm failed; a file is damaged.
        Interrupted: an interrupt, or `stop_after`; its text says how to go on.
    """
    optuna()  # before the data are opened
    check_range("processes", processes, least=1)
    plan, record = make_plan(arms, specs, trials=trials, folds=folds, pruner=pruner)
    folder = Path(out)
    if folder.exists() and not (folder / plans.FILE).exists() and (not folder.is_dir() or any(folder.glob("[!.]*"))):
        raise ConfigError(f"{folder} exists and is no folder of a study. Choose another --out.")
    lock = FolderLock(make_folder(folder), tell)
    try:
        if (folder / plans.FILE).exists():
            plan.check_same(Plan.read(folder), folder)
        else:
            _write_splits(folder, plan, record)
        return _Study(folder, plan, processes, None, arms[0][1].settings.run.stop_after, tell).finish(keeps_open)
    finally:
        lock.release()


def resume(
    folder: str | Path,
    *,
    trials: int | None = None,
    processes: int = 1,
    keeps_open: bool = False,
    trusts_plugins: bool = False,
    stop_after: str | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Go on with the study in a folder. Arguments and errors are those of `run`.

    Args:
        trials: of each arm, if more than before.
        trusts_plugins: run the files of code that the study names, whoever made it.
        stop_after: time after which no trial begins.

    Raises:
        ConfigError: also: there is no study, it names files of code that the user did not consent to, or its data have changed.
    """
    optuna()
    check_range("processes", processes, least=1)
    folder = Path(folder)
    plan = Plan.read(folder)
    if trials is not None:
        check_range("trials", trials, least=1, most=plans.MOST)
        plan = Plan.of({**plan.as_dict(), "trials": trials})
    lock = FolderLock(folder, tell)
    try:
        with trust.reading(foreign(folder, trusts_plugins)):
            record = open_splits(RunConfig.create(**plan.arms[0].config)).record
            assert record is not None
            if hashlib.sha256(record()).hexdigest() != plan.split:
                raise ConfigError(f"{folder} holds a study with folds of other data: they have changed since. Undo that")
            return _Study(folder, plan, processes, trusts_plugins, stop_after, tell).finish(keeps_open)
    finally:
        lock.release()


def _write_splits(folder: Path, plan: Plan, record: bytes) -> None:
    write_atomically(folder / plans.SPLIT, record)
    if plan.folds > 1:
        make_folder(folder / "folds")
        splits = folds_of(RecordedSplit.of_json(record), plan.folds, plan.seed)
        for file, split in zip(plan.fold_files(), splits, strict=True):
            write_atomically(folder / file, split.to_json())
    for arm in plan.arms:
        plugin_files.remember(RunConfig.create(**arm.config).toml())
    plan.write(folder)  # last: it says that there is a study


class _Study:
    """One process's part in a study, whose folder it holds."""

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        processes: int,
        trusts_plugins: bool | None,
        stop_after: str | None,
        tell: Callable[[str], None],
    ) -> None:
        self.folder, self.plan, self.processes, self.tell = folder, plan, processes, tell
        self.trusts_plugins = trusts_plugins
        self.deadline = None if stop_after is None else time.monotonic() + seconds_of(stop_after, "stop_after")
        self.winners = [Cell(f"winners/{arm.file_name}", {}) for arm in plan.arms]
        evaluations = plan.evaluations * plan.folds
        self.studies = {arm.name: ArmStudy(folder, arm.name, plan.pruner, evaluations) for arm in plan.arms}
        self.done = {name: len(study.trials()) for name, study in self.studies.items()}
        self.best: dict[str, float] = {}
        self.found: dict[str, dict[str, Any]] = {}  # configurations of the winners

    def finish(self, keeps_open: bool) -> dict[str, Any]:
        """Run what is missing and write the page."""
        is_tested = any(path_of(self.folder, cell.key).exists() for cell in self.winners)
        missing = self._missing()
        if is_tested and missing:
            raise ConfigError(
                f"the winners of {self.folder} were measured on the test classes, so no trials are added any more: what is"
                f" chosen after that would be chosen by the test classes. Begin another study"
            )
        if not is_tested:
            self.plan.write(self.folder)
        lost = sum(study.forget_running() for study in self.studies.values())
        if missing and any(self.done.values()):
            repeated = f"; {lost} that were cut off are repeated" if lost else ""
            self.tell(f"{sum(self.done.values())} of {self._total()} trials are there already{repeated}")
        remove_temporaries(make_folder(self.folder / "cells" / "winners"))
        try:
            self._run_trials()
            if self._missing():
                raise Interrupted(self._how_to_go_on("its time is up: stopped"), status=0)
            rows = [self._row(arm) for arm in self.plan.arms]
            if keeps_open and not is_tested:
                return self._summary(rows, {})
            return self._summary(rows, self._run_winners(rows))
        except KeyboardInterrupt as interrupt:
            if isinstance(interrupt, Interrupted) and not status_of(interrupt):
                raise
            raise Interrupted(self._how_to_go_on("interrupted"), status_of(interrupt)) from None

    def _total(self) -> int:
        return self.plan.trials * len(self.plan.arms)

    def _missing(self) -> int:
        return sum(max(0, self.plan.trials - count) for count in self.done.values())

    def _how_to_go_on(self, what: str) -> str:
        return (
            f"{what} after {sum(self.done.values())} of {self._total()} trials, which are kept."
            f" Go on by: dmlcore tune --resume {shlex.quote(str(self.folder))}"
        )

    def _run_trials(self) -> None:
        begun = dict(self.done)
        numbers: dict[str, int] = {}
        arms = {arm.name: arm for arm in self.plan.arms}

        def cells() -> Iterator[Cell]:
            """The arms in turn, so that all have equally many trials whenever it ends."""
            while any(begun[name] < self.plan.trials for name in arms):
                if self.deadline is not None and time.monotonic() >= self.deadline:
                    return
                name = min(arms, key=lambda name: begun[name])
                begun[name] += 1
                cell = self._ask(arms[name])
                numbers[cell.key] = cell.settings["number"]
                yield cell

        function = functools.partial(run_trial, folder=str(self.folder.resolve()), trusts_plugins=self.trusts_plugins)
        for cell, result in computed(self.folder, cells(), function, self.processes):
            name = cell.settings["arm"]
            self.studies[name].tell(numbers[cell.key], result)
            self.done[name] += 1
            self._tell_trial(name, result)
            # The first trial has the settings as they are: what is wrong with them is wrong with all.
            if result["failure"] and self.done[name] == 1 and arms[name].first:
                raise TrainingError(f"the first trial of '{name}' failed: {result['failure']}")

    def _ask(self, arm: Arm) -> Cell:
        place = [one.name for one in self.plan.arms].index(arm.name)
        number, values = self.studies[arm.name].ask(
            list(arm.dimensions), arm.first, (self.plan.seed, place), waits=self.processes > 1
        )
        loggers = RunConfig.create(**arm.config).of_kind("logger")
        config = {k: v for k, v in arm.with_values(values).items() if k not in NOT_OF_TRIALS and k not in loggers}
        settings = {
            "config": plain({**config, "report": False}),
            "arm": arm.name,
            "number": number,
            "pruner": self.plan.pruner,
            "evaluations": self.plan.evaluations,
            "folds": self.plan.fold_files(),
        }
        return Cell(f"trials/{arm.file_name}/{number + 1}", settings)

    def _tell_trial(self, name: str, result: dict[str, Any]) -> None:
        number, of = sum(self.done.values()), self._total()
        if result["failure"]:
            words = f"failed: {result['failure']}"
        elif result["is_pruned"]:
            words = "given up, behind the others"
        else:
            self.best[name] = max(result["score"], self.best.get(name, 0.0))
            words = f"MAP@R {result['score']:.3f}, best {self.best[name]:.3f}"
        self.tell(f"trial {number} of {of}: {name}  {words}  ({result['seconds']:.0f} s)")

    def _row(self, arm: Arm) -> dict[str, Any]:
        """What came out of the trials of an arm; its winner's settings are written to a file."""
        trials = self.studies[arm.name].trials()
        complete = [trial for trial in trials if trial["score"] is not None]
        if not complete:
            failures = [trial["failure"] for trial in trials if trial["failure"]]
            raise TrainingError(f"no trial of '{arm.name}' has a result{f': {failures[0]}' if failures else ''}")
        best = max(complete, key=lambda trial: trial["score"])
        file = self.folder / f"{arm.file_name}.toml"
        self.found[arm.name] = plain(arm.with_values(best["values"]))
        write_atomically(file, encoded(RunConfig.create(**self.found[arm.name]).toml(), file.name))
        half = mean_and_half(best["scores"])[1]
        return {
            "arm": arm.name,
            "trials": len(trials),
            "pruned": sum(trial["score"] is None and not trial["failure"] for trial in trials),
            "failed": sum(bool(trial["failure"]) for trial in trials),
            "steps": sum(trial["steps"] for trial in trials),
            "seconds": sum(trial["seconds"] for trial in trials),
            "best": {"trial": best["number"], "values": best["values"], "scores": best["scores"]},
            "before": next((trial["score"] for trial in trials if trial["values"] == arm.first), None),
            "validation": [best["score"], None if math.isnan(half) else half],
            "command": f"dmlcore train --config {shlex.quote(str(file))}",
        }

    def _run_winners(self, rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Results of the winners' runs, by arm."""
        cells = [
            Cell(cell.key, {"config": self.found[row["arm"]], "place": cell.key, "split": plans.SPLIT})
            for cell, row in zip(self.winners, rows, strict=True)
        ]
        self.tell(f"training the best of each arm, and measuring it on the test classes: {len(cells)} runs")
        function = functools.partial(run_winner, folder=str(self.folder.resolve()), trusts_plugins=self.trusts_plugins)
        results = run_cells(self.folder, cells, function, processes=self.processes, tell=self.tell)
        return {arm.name: results[cell.key] for arm, cell in zip(self.plan.arms, cells, strict=True)}

    def _summary(self, rows: list[dict[str, Any]], results: dict[str, dict[str, Any]]) -> dict[str, Any]:
        places = {arm.name: self.folder / cell.key for arm, cell in zip(self.plan.arms, self.winners, strict=True)}
        for row in rows:
            if row["arm"] in results:
                row |= {key: results[row["arm"]][key] for key in ("metrics", "baselines", "advice")}
                row["run"] = str(places[row["arm"]])
        pages = self._write_pages(rows, places if results else {})
        return {
            "folder": str(self.folder),
            "folds": self.plan.folds,
            "steps": self.plan.steps,
            "is_tested": bool(results),
            "arms": rows,
            **pages,
        }

    def _write_pages(self, rows: list[dict[str, Any]], places: dict[str, Path]) -> dict[str, str]:
        from dmlcore.serving import write_report

        pages = {"report": str(self.folder / REPORT)}
        comparison = self.folder / COMPARISON
        if len(places) > 1:
            with trust.reading(foreign(self.folder, self.trusts_plugins)):
                try:
                    write_report(list(places.values()), comparison, trusts_plugins=bool(self.trusts_plugins))
                    pages["comparison"] = str(comparison)
                except TrainingError as error:  # the study is complete without it
                    self.tell(f"warning: no {COMPARISON} was written ({error})")
        facts = []
        for arm, row in zip(self.plan.arms, rows, strict=True):
            study = self.studies[arm.name]
            link = f"winners/{arm.file_name}/{REPORT}" if arm.name in places else ""
            searched = [(d.name, d.is_log) for d in arm.dimensions]
            facts.append(ArmFacts(arm.name, searched, study.trials(), study.importance(), row, link))
        link = COMPARISON if "comparison" in pages else ""
        write_atomically(self.folder / REPORT, study_page(self.folder, self.plan.folds, self.plan.steps, facts, link))
        return pages
