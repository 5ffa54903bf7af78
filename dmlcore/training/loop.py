"""The training loop: steps, evaluations, the choice of the best checkpoint, saving, and the end of a run. One step is in
`step.py`, the final evaluation in `result.py`, starting and resuming in `start.py`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from dmlcore import plugins
from dmlcore.data.loading import naming_dead_workers
from dmlcore.errors import Interrupted, TrainingError, status_of
from dmlcore.evaluation import evaluating
from dmlcore.files import encoded
from dmlcore.interruption import Interruption
from dmlcore.ranks import inside
from dmlcore.ranks.dividing import divided
from dmlcore.training import reporting
from dmlcore.training.agreement import draw_apart
from dmlcore.training.events import Events
from dmlcore.training.guards import Guards
from dmlcore.training.kept import Kept, embed_validation
from dmlcore.training.loggers import Logger
from dmlcore.training.objects import how_to_give, needed_objects
from dmlcore.training.processes import naming_dead_processes
from dmlcore.training.result import CHOSEN_BY, final_result
from dmlcore.training.run import Run
from dmlcore.training.step import take_step

PATIENCE = 10
"""Seconds in which a second signal is taken for the same as the first. A launcher hands on what a terminal has sent to all."""


class Training:
    """One process's part in a run: steps, evaluations, records.

    Args:
        run: what to train.
        loggers: told of everything.
        state: of a checkpoint to continue from, or None: a new run, whose folder is made.
        deadline: time of `time.monotonic` at which the run saves and ends, or None.
        goes_on: asked with the MAP@R of each evaluation that follows a step; False ends the training.
    """

    def __init__(
        self,
        run: Run,
        loggers: Sequence[Logger],
        state: dict[str, Any] | None,
        deadline: float | None = None,
        goes_on: Callable[[Run, float], bool] = lambda run, score: True,
    ) -> None:
        self.run = run
        self.deadline = deadline
        self.goes_on = goes_on
        self.events = Events(run, loggers)
        self.interruption = Interruption(0 if run.processes is None else PATIENCE)
        self.guards = Guards(run)
        self.kept = Kept()
        self.is_between_steps = True
        self.is_time_up = False
        encoded(run.config.toml(), run.folder.config.name)  # before a folder is made
        run.folder.lock(self.events.note)
        if state is None:
            if run.writes:
                run.keep_trunk()
            run.folder.make(run.config.toml(), run.splits.record() if run.splits.record is not None else None)
            run.folder.clear_records()
            run.save_start()
        else:
            run.restore(state)
            run.folder.keep_records(state["records"], self.events.note)
        if run.processes is not None:  # a checkpoint has the random numbers of the first one
            draw_apart(run.processes.rank, run.config.settings.run.seed, run.step)
        self.began = time.perf_counter() - run.seconds

    def run_all(self) -> dict[str, Any]:
        """Train, evaluate and write the result, which is returned.

        Raises:
            KeyboardInterrupt: an interrupt; its text says how to continue.
        """
        run, events = self.run, self.events
        try:
            with plugins.blaming(self._consequence), self.interruption.installed(), naming_dead_workers():
                events.tell("training_started", lambda logger: logger.started(run))
                self._train()
                result = self._finish()
                events.tell("training_ended", lambda logger: logger.ended(run, result), result=result)
            return result
        except (KeyboardInterrupt, TrainingError) as error:
            number = self.interruption.requested or self.interruption.noticed
            if isinstance(error, TrainingError) and number is None:
                raise
            # A signal to all processes may end one that loads data, and so a step, before it is noticed here.
            status = status_of(error) if isinstance(error, KeyboardInterrupt) else 128 + (number or 0)
            with self.interruption.installed(), contextlib.suppress(KeyboardInterrupt), self.interruption.held():
                # what processes divide is saved by all, so only where all have agreed to end
                is_agreed = not run.divided.parts or self.interruption.requested is not None or self.is_time_up
                if self.is_between_steps and run.saved != run.step and is_agreed:
                    self._save()
            what = "interrupted" if status else f"its time of {run.config.settings.run.stop_after} is up: stopped"
            saved = f"the checkpoint of step {run.saved} is saved" if run.saved >= 0 else "nothing was saved yet"
            raise Interrupted(
                f"{what} after step {run.step} of {run.steps}; {saved}. {self._how_to_continue()}",
                status,
            ) from None
        finally:
            events.close()
            run.close()
            run.folder.unlock()

    def train_only(self) -> None:
        """Train and evaluate on the validation classes; no result is written."""
        try:
            with self.interruption.installed():
                self.events.tell("training_started", lambda logger: logger.started(self.run))
                self._train()
        finally:
            self.events.close()
            self.run.close()
            self.run.folder.unlock()

    def step(self, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
        """One step on the next batch, recorded; an interrupt waits for its end."""
        run = self.run
        with self.interruption.after():
            began = time.perf_counter()
            inputs, labels = next(batches)
            self.is_between_steps = False
            with naming_dead_processes(run.processes, run.saved_note), inside():
                measured = take_step(run, inputs, labels)
            warnings = list(self.guards.of_step(measured))
            if measured.step % run.config.settings.run.log_every == 0 or measured.step == 1:
                warnings += self.guards.of_batch(labels)
            measured.images_per_second = len(labels) / (time.perf_counter() - began)
            record = measured.as_dict()
            with self.interruption.held():  # a state that is saved has the records of all its steps
                run.folder.append(record)
                self.is_between_steps = True
            for text in warnings:
                self.events.note(text)
            self.events.tell("step_ended", lambda logger: logger.step_ended(run, record), record=record)
            self._agree_on_end()

    def _agree_on_end(self) -> None:
        """Let all processes end after the same step: a signal to one interrupts all, and time is up for all."""
        is_time_up = self.deadline is not None and time.monotonic() >= self.deadline
        if self.run.processes is not None:
            with naming_dead_processes(self.run.processes, self.run.saved_note):
                number, is_late = self.run.processes.highest(self.interruption.noticed or 0, is_time_up)
            # what is noticed while the processes talk stays, and is told after the next step
            self.interruption.requested, is_time_up = number or None, bool(is_late)
        self.is_time_up = is_time_up

    def _train(self) -> None:
        run = self.run
        for text in self.guards.of_schedule():
            self.events.note(text)
        if run.evaluated < 0 or (run.evaluated < run.step and self._is_evaluated_now()):
            self._evaluate() if run.validates else self._take_last()
        batches = run.batches()
        while run.step < run.steps and not self._is_out_of_patience():
            self.step(batches)
            if self._is_evaluated_now() and not run.validates:
                self._take_last()
            elif self._is_evaluated_now():
                score = self._evaluate()
                if not self.goes_on(run, score):
                    return
            if self.is_time_up and run.step < run.steps:
                raise Interrupted(status=0)

    @property
    def eval_every(self) -> int:
        """Steps between evaluations."""
        every = self.run.config.settings.run.eval_every
        assert every is not None  # the run's configuration is complete
        return every

    def _is_out_of_patience(self) -> bool:
        run, patience = self.run, self.run.config.settings.run.patience
        return patience is not None and run.evaluated >= run.best.step + patience * self.eval_every

    def _is_evaluated_now(self) -> bool:
        run = self.run
        return run.step % self.eval_every == 0 or run.step == run.steps

    def _evaluate(self) -> float:
        """Measure what is served on the validation classes, and keep what belongs to it; returns the MAP@R."""
        run = self.run
        began = time.perf_counter()
        if run.processes is not None:
            return self._evaluate_together()
        return self._measure(began)

    def _evaluate_together(self) -> float:
        """The same by several processes, which divide the embedding. An interrupt waits for the end."""
        run = self.run
        assert run.processes is not None
        with self.interruption.after(), naming_dead_processes(run.processes, run.saved_note):
            parts = {id(part.parameter) for part in run.divided.parts}
            weights = [parameter for parameter in run.ensemble.parameters() if id(parameter) not in parts]
            run.processes.check_together([*run.models.whole_parameters, *weights], run.step)
            with divided(run.processes.group):
                score = self._measure(time.perf_counter())
            self._agree_on_end()
        return score

    def _measure(self, began: float) -> float:
        run = self.run
        run.prepare_to_serve()
        settings = run.config.settings
        served, rows = embed_validation(run)
        metrics, _ = evaluating.measure(served, run.splits.validation, run.metrics, settings.run.recall_at)
        is_best = metrics[CHOSEN_BY] > run.best.score
        self.kept.keep(run, rows, is_best)
        record = {
            "kind": "evaluation",
            "step": run.step,
            "split": "validation",
            **metrics,
            "is_best": is_best,
            "seconds": time.perf_counter() - began,
        }
        with self.interruption.after():
            paths = self._keep(record)
            for name, path in paths.items():
                self._tell_saved(name, path)
            for text in self.guards.of_evaluation(record[CHOSEN_BY]):
                self.events.note(text)
            self.events.tell("evaluated", lambda logger: logger.evaluated(run, record), record=record)
        return record[CHOSEN_BY]

    def _take_last(self) -> None:
        """Keep the present weights as those that are evaluated, where no validation part chooses any."""
        self.run.prepare_to_serve()
        with self.interruption.after():
            for name, path in self._keep(None).items():
                self._tell_saved(name, path)

    def _keep(self, record: dict[str, Any] | None) -> dict[str, Path]:
        """Write what belongs to an evaluation: its record and the checkpoints, whose paths are returned by name.

        What the state says changes only after the file that it speaks of is there.

        Args:
            record: None: nothing was evaluated, and these weights take the place of the best.
        """
        run, paths = self.run, {}
        with self.interruption.held():
            if record is None or record["is_best"]:
                paths["best"] = run.save_best()
                run.best.step, run.best.score = run.step, run.best.score if record is None else record[CHOSEN_BY]
            if record is not None:
                run.folder.append(record)
                run.schedule.evaluated(record[CHOSEN_BY])
            run.evaluated = run.step
            paths["last"] = run.save(time.perf_counter() - self.began)
        return paths

    def _save(self) -> None:
        self._tell_saved("last", self.run.save(time.perf_counter() - self.began))

    def _tell_saved(self, name: str, path: Path) -> None:
        run = self.run
        self.events.tell("checkpoint_saved", lambda logger: logger.checkpoint_saved(run, name, path), name=name, path=path)

    def _finish(self) -> dict[str, Any]:
        if self.run.step < self.run.steps:
            self.events.note(f"no better evaluation since step {self.run.best.step}: training ends at step {self.run.step}")
        self.events.note(f"evaluating the {'best' if self.run.validates else 'last'} checkpoint and the baselines")
        result, embeddings = self._final_result()
        self.interruption.patience = 0  # what follows is done by one process
        if not self.run.writes:
            return {"run": str(self.run.folder.path)}
        if scores := result.get("compression"):
            told = ", ".join(f"{name} {score:.3f}" for name, score in scores.items())
            self.events.note(f"compressed by {next(iter(scores))}: MAP@R of the validation {told}")
        result["wall_seconds"] = time.perf_counter() - self.began
        warnings = [*self.events.warnings.values(), *self.guards.told]
        if warnings:
            result["warnings"] = warnings
        self.run.folder.write_result(result)
        if self.run.config.settings.run.report:
            assert embeddings is not None
            self._write_page(result, embeddings)
        return result

    def _final_result(self) -> tuple[dict[str, Any], Tensor | None]:
        """The result, and the embeddings of the test part where a page is drawn of them. Several processes divide the work; an
        interrupt waits for its end."""
        run, rows = self.run, {}
        if run.processes is None:
            result = final_result(run, rows, self.kept)
            return result, rows["test"]
        with self.interruption.after(), naming_dead_processes(run.processes, run.saved_note):
            with divided(run.processes.group):
                result = final_result(run, rows, self.kept)
            embeddings = rows["test"].on_first() if run.config.settings.run.report else None
            self._agree_on_end()
        return result, embeddings

    def _write_page(self, result: dict[str, Any], embeddings: Tensor) -> None:
        """Write `report.html`. The run is complete without it, so nothing that goes wrong here is an error of the run."""
        run = self.run
        try:
            facts = reporting.gather(
                run.folder,
                run.config,
                run.model,
                run.splits,
                step=run.best.step,
                result=result,
                device=run.device,
                embeddings=embeddings,
            )
            reporting.write_page(facts)
        except (Exception, KeyboardInterrupt) as error:
            reason = "interrupted" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"
            self.events.note(
                f"warning: no {run.folder.report.name} was written ({reason}). Again by: dmlcore report {run.folder.path}"
            )

    def _how_to_continue(self) -> str:
        needed, place = needed_objects(self.run.config.names()), self.run.folder.path
        return how_to_give(needed, str(place)) if needed else f"Continue by: dmlcore train --resume {place}"

    def _consequence(self) -> str:
        return f"Training stops after step {self.run.step}; {self.run.saved_note()}."
