"""The studies of Optuna, one for each arm, in one SQLite file: what to try next, what came out, and when a trial is given up.

Optuna is an optional package, and is imported here only.
"""

from __future__ import annotations

import contextlib
import importlib
import sqlite3
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dmlcore.errors import ConfigError, TrainingError
from dmlcore.protocols.tuning.space import Dimension

FILE = "study.sqlite"
PRUNERS = ("median", "hyperband", "none")
_WAIT = 120.0  # seconds for another process that writes
_AT_RANDOM = 8  # trials before Optuna's model of the scores is asked


def optuna() -> Any:
    """The package.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        module = importlib.import_module("optuna")
    except ImportError:
        raise ConfigError('tuning needs Optuna, which is not installed. Install it by: pip install "dmlcore[tune]"') from None
    module.logging.set_verbosity(module.logging.ERROR)
    return module


class ArmStudy:
    """The study of one arm.

    Args:
        folder: of all.
        name: of the arm.
        pruner: of `PRUNERS`.
        evaluations: of a trial that is not given up, >= 1.

    Raises:
        TrainingError: the file is damaged.
    """

    def __init__(self, folder: Path, name: str, pruner: str, evaluations: int) -> None:
        package, path = optuna(), folder / FILE
        self._package, self._path = package, path
        with self._reading():
            storage = package.storages.RDBStorage(
                "sqlite:///" + FILE,
                # The path may hold what means something in an address.
                engine_kwargs={"creator": lambda: sqlite3.connect(path, timeout=_WAIT, check_same_thread=False)},
            )
            self._study = package.create_study(
                storage=storage,
                study_name=name,
                direction="maximize",
                load_if_exists=True,
                sampler=package.samplers.RandomSampler(),
                pruner=_pruner(package, pruner, evaluations),
            )

    def forget_running(self) -> int:
        """Mark trials whose process ended before their result as failed; returns how many there were."""
        with self._reading():
            lost = self._study.get_trials(states=(self._package.trial.TrialState.RUNNING,))
            for trial in lost:
                self._study.tell(trial.number, state=self._package.trial.TrialState.FAIL)
        return len(lost)

    def ask(self, dimensions: list[Dimension], first: dict[str, Any], seed: tuple[int, ...], waits: bool) -> tuple[int, Any]:
        """Begin a trial: its number of Optuna and its values.

        Args:
            dimensions: of the arm.
            first: values of the first trial, the settings as they are. Empty: it is drawn like the others.
            seed: what is tried depends on it and on the trials before, so that a study that goes on is the same.
            waits: other trials run at the same time.
        """
        states = self._package.trial.TrialState
        with self._reading(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of features that Optuna calls experimental
            index = sum(trial.state != states.FAIL for trial in self._study.get_trials(deepcopy=False))
            number = int(np.random.SeedSequence((*seed, index)).generate_state(1)[0])
            self._study.sampler = self._package.samplers.TPESampler(
                seed=number, n_startup_trials=_AT_RANDOM, constant_liar=waits
            )
            if index == 0 and first:
                self._study.enqueue_trial(first)
            trial = self._study.ask({d.name: _distribution(self._package, d) for d in dimensions})
        return trial.number, dict(trial.params)

    def report(self, number: int, step: int, value: float) -> bool:
        """Tell of a running trial's value so far. False: it is not worth going on."""
        with self._reading():
            trial = self._package.trial.Trial(self._study, self._study.trials[number]._trial_id)
            trial.report(value, step)
            return not trial.should_prune()

    def tell(self, number: int, result: dict[str, Any]) -> None:
        """Finish a trial.

        Args:
            number: of Optuna.
            result: as `trial.run_trial` gives it.
        """
        states = self._package.trial.TrialState
        is_complete = not result["failure"] and not result["is_pruned"]
        with self._reading():
            trial = self._package.trial.Trial(self._study, self._study.trials[number]._trial_id)
            for key in ("scores", "seconds", "steps", "failure"):
                trial.set_user_attr(key, result[key])
            self._study.tell(
                number, result["score"] if is_complete else None, states.COMPLETE if is_complete else states.PRUNED
            )

    def trials(self) -> list[dict[str, Any]]:
        """All trials with a result: `number`, `values`, `score` (None: given up or failed), `scores` of the folds, `seconds`,
        `steps`, `failure`, `last`, the value when it ended."""
        states = self._package.trial.TrialState
        with self._reading():
            trials = self._study.get_trials(deepcopy=False, states=(states.COMPLETE, states.PRUNED))
        return [
            {
                "number": trial.number + 1,
                "values": dict(trial.params),
                "score": trial.value if trial.state == states.COMPLETE else None,
                "last": next(iter(trial.intermediate_values[step] for step in sorted(trial.intermediate_values)[-1:]), None),
                **{key: trial.user_attrs.get(key) for key in ("scores", "seconds", "steps", "failure")},
            }
            for trial in trials
        ]

    def importance(self) -> dict[str, float]:
        """How much each value mattered for being among the best trials (PED-ANOVA, Watanabe et al., IJCAI 2023); they add up
        to 1. Empty where there are too few trials."""
        with warnings.catch_warnings(), contextlib.suppress(Exception):  # too few trials, or all alike
            warnings.simplefilter("ignore")
            evaluator = self._package.importance.PedAnovaImportanceEvaluator()
            values = self._package.importance.get_param_importances(self._study, evaluator=evaluator)
            return {name: float(value) for name, value in values.items()}
        return {}

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, self._package.exceptions.StorageInternalError) as error:
            raise TrainingError(f"cannot use {self._path}: {' '.join(str(error).split())[:160]}") from error
        except Exception as error:  # whatever SQLAlchemy, which is Optuna's own, makes of a damaged file
            if type(error).__module__.partition(".")[0] not in ("sqlalchemy", "alembic"):
                raise
            raise TrainingError(f"cannot use {self._path}: {' '.join(str(error).split())[:160]}") from error


def _pruner(package: Any, name: str, evaluations: int) -> Any:
    if name == "median":
        return package.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1)
    if name == "hyperband":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return package.pruners.HyperbandPruner(min_resource=1, max_resource=evaluations)
    return package.pruners.NopPruner()


def _distribution(package: Any, dimension: Dimension) -> Any:
    if dimension.choices:
        return package.distributions.CategoricalDistribution(dimension.choices)
    if dimension.is_whole:
        step = int(dimension.step or 1)
        return package.distributions.IntDistribution(int(dimension.low), int(dimension.high), dimension.is_log, step)
    return package.distributions.FloatDistribution(dimension.low, dimension.high, dimension.is_log, dimension.step)
