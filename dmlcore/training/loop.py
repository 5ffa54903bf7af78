"""The training loop: steps, evaluations, the choice of the best checkpoint, saving, and the end of a run. One step is in
`step.py`, the final evaluation in `result.py`, starting and resuming in `start.py`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from dmlcore import plugins
from dmlcore.evaluation import evaluating
from dmlcore.training.events import Events
from dmlcore.training.interruption import Interruption
from dmlcore.training.loggers import Logger
from dmlcore.training.result import CHOSEN_BY, final_result
from dmlcore.training.run import Run
from dmlcore.training.step import take_step


class Training:
    """One process's part in a run: steps, evaluations, records.

    Args:
        run: what to train.
        loggers: told of everything.
        state: of a checkpoint to continue from, or None: a new run, whose folder is made.
    """

    def __init__(self, run: Run, loggers: Sequence[Logger], state: dict[str, Any] | None) -> None:
        self.run = run
        self.events = Events(run, loggers)
        self.interruption = Interruption()
        self.is_between_steps = True
        if state is None:
            run.folder.make(run.config.toml(), run.splits.record() if run.splits.record is not None else None)
            run.folder.drop_records_after(-1)
        else:
            run.restore(state)
            run.folder.drop_records_after(run.step)
        self.began = time.perf_counter() - run.seconds

    def run_all(self) -> dict[str, Any]:
        """Train, evaluate and write the result, which is returned.

        Raises:
            KeyboardInterrupt: an interrupt; its text says how to continue.
        """
        run, events = self.run, self.events
        try:
            with plugins.blaming(self._consequence), self.interruption.installed():
                events.tell("training_started", lambda logger: logger.started(run))
                self._train()
                result = self._finish()
                events.tell("training_ended", lambda logger: logger.ended(run, result), result=result)
            return result
        except KeyboardInterrupt:
            if self.is_between_steps and run.saved != run.step:
                self._save()
            saved = f"the checkpoint of step {run.saved} is saved" if run.saved >= 0 else "nothing was saved yet"
            raise KeyboardInterrupt(
                f"interrupted after step {run.step} of {run.steps}; {saved}."
                f" Continue by: dmlcore train --resume {run.folder.path}"
            ) from None
        finally:
            events.close()

    def train_only(self) -> None:
        """Train and evaluate on the validation classes; no result is written."""
        with self.interruption.installed():
            self._train()

    def step(self, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
        """One step on the next batch, recorded; an interrupt waits for its end."""
        run = self.run
        with self.interruption.after():
            self.is_between_steps = False
            began = time.perf_counter()
            inputs, labels = next(batches)
            measured = take_step(run, inputs, labels)
            measured.images_per_second = len(labels) / (time.perf_counter() - began)
            record = measured.as_dict()
            self.is_between_steps = True
            run.folder.append(record)
            self.events.tell("step_ended", lambda logger: logger.step_ended(run, record), record=record)

    def _train(self) -> None:
        run = self.run
        if run.evaluated < 0 or (run.evaluated < run.step and self._is_evaluated_now()):
            self._evaluate()
        batches = run.batches()
        while run.step < run.steps:
            self.step(batches)
            if self._is_evaluated_now():
                self._evaluate()

    def _is_evaluated_now(self) -> bool:
        run = self.run
        return run.step % run.config.settings.run.eval_every == 0 or run.step == run.steps

    def _evaluate(self) -> None:
        run = self.run
        if run.evaluated == run.step:
            return
        began = time.perf_counter()
        run.prepare_to_serve()
        metrics = evaluating.evaluate_model(
            run.model, run.splits.validation, workers=run.config.settings.data.workers, metrics=run.metrics
        )
        # The record, the checkpoints and the position belong together: an interrupt waits until all are written.
        with self.interruption.after():
            is_best = metrics[CHOSEN_BY] > run.best.score
            record = {
                "kind": "evaluation",
                "step": run.step,
                "split": "validation",
                **metrics,
                "is_best": is_best,
                "seconds": time.perf_counter() - began,
            }
            run.folder.append(record)
            run.evaluated = run.step
            if is_best:
                run.best.step, run.best.score = run.step, metrics[CHOSEN_BY]
                self._tell_saved("best", run.save_best())
            self._save()
            self.events.tell("evaluated", lambda logger: logger.evaluated(run, record), record=record)

    def _save(self) -> None:
        self._tell_saved("last", self.run.save(time.perf_counter() - self.began))

    def _tell_saved(self, name: str, path: Path) -> None:
        run = self.run
        self.events.tell("checkpoint_saved", lambda logger: logger.checkpoint_saved(run, name, path), name=name, path=path)

    def _finish(self) -> dict[str, Any]:
        self.events.note("evaluating the best checkpoint and the baselines")
        result = final_result(self.run)
        result["wall_seconds"] = time.perf_counter() - self.began
        if self.events.warnings:
            result["warnings"] = list(self.events.warnings.values())
        self.run.folder.write_result(result)
        return result

    def _consequence(self) -> str:
        return f"Training stops after step {self.run.step}; {self.run.saved_note()}."
