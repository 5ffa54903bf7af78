"""The training loop: steps, evaluations, the choice of the best checkpoint, the final result."""

from __future__ import annotations

import contextlib
import functools
import itertools
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import dmlcore
from dmlcore import plugins
from dmlcore.data import LabelledDataset
from dmlcore.errors import ConfigError, DmlcoreError, PluginError, TrainingError
from dmlcore.evaluation import Metric, protocol
from dmlcore.models import EmbeddingModel
from dmlcore.training import checkpoints, optimiser, schedule
from dmlcore.training.folder import RunFolder
from dmlcore.training.interruption import Interruption
from dmlcore.training.loggers import Logger
from dmlcore.training.members import choose_members, is_automatic
from dmlcore.training.run import Run, build_run_model, built
from dmlcore.training.settings import RunConfig

CHOSEN_BY = "map@r"  # of the validation classes


def train(
    config: RunConfig | None = None,
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    checkpoint: str = "last",
    loggers: Sequence[Logger] = (),
    **given: Any,
) -> dict[str, Any]:
    """Train and evaluate, as `dmlcore train` does.

    Args:
        config: what to do; or give settings and options by keyword: `train(plugins="ms", steps=100, ms={"alpha": 4})`.
        out: folder of the run; None gives `runs/<date-time>-<plugins>`.
        resume: folder of a run to continue exactly; everything else comes from its `config.toml`.
        checkpoint: the checkpoint to continue from, `last` or `previous`.
        loggers: receivers of what happens, beside those the settings name.

    Returns:
        What `result.json` holds, with `run`, the folder.

    Raises:
        ConfigError: settings, options or data that cannot be used, or a folder that holds another run.
        TrainingError: a loss or gradient that is not finite, a full disk, a damaged checkpoint.
        PluginError: a plugin that breaks its contract.
        KeyboardInterrupt: an interrupt, after a checkpoint was saved; its text says how to continue.
    """
    if isinstance(loggers, str):
        raise ConfigError(
            f"loggers takes Logger objects, got '{loggers}'; loggers by name are a setting: RunConfig.create(loggers=...)"
        )
    state = None
    if resume is not None:
        if config is not None or given or out is not None:
            raise ConfigError("a resumed run takes everything from its config.toml; give no other settings beside resume")
        if checkpoint not in ("last", "previous"):
            raise ConfigError(f"checkpoint is '{checkpoint}', but a run continues from last or previous; best has no optimiser")
        folder = RunFolder.open(resume)
        if folder.result.exists():
            raise ConfigError(f"the run in {resume} is complete. Evaluate it by `dmlcore eval {resume}`.")
        config = RunConfig.read(folder.config)
        if checkpoints.path_of(folder.checkpoints, checkpoint).exists() or checkpoint != "last":
            state = checkpoints.load(folder.checkpoints, checkpoint, instead=("last", "previous"))
    else:
        config = config or RunConfig.create(**given)
        tables = [
            (table, component.name) for table, component in config.chosen.items() if component.kind == "loss"
        ]  # none with `plugins = auto`
        names = [table if plugins.plugin_files.is_reference(name) else name for table, name in tables]
        folder = RunFolder.choose(out, names or config.settings.plugins)
    with plugins.blaming():
        return _train(config, folder, [*built(config, "logger"), *loggers], state)


def _train(config: RunConfig, folder: RunFolder, receivers: list[Logger], state: dict[str, Any] | None) -> dict[str, Any]:
    if is_automatic(config):

        def note(text: str) -> None:
            for logger in receivers:
                logger.note(text)

        config = choose_members(config, folder, _validation_score, note)
    return Training(Run(config, folder), receivers, state).run_all()


def _validation_score(config: RunConfig, folder: RunFolder) -> float:
    """Train and return the best MAP@R of the validation classes; test classes stay unseen."""
    training = Training(Run(config, folder), [], None)
    training.train_only()
    return training.run.best.score


def versions() -> dict[str, str]:
    """Versions that decide about a run's numbers."""
    found = {"dmlcore": dmlcore.__version__, "python": platform.python_version()}
    for name in ("torch", "torchvision", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


class Training:
    """One process's part in a run: steps, evaluations, records.

    Args:
        run: what to train.
        receivers: told of everything.
        state: of a checkpoint to continue from, or None: a new run, whose folder is made.
    """

    def __init__(self, run: Run, receivers: Sequence[Logger], state: dict[str, Any] | None) -> None:
        self.run = run
        self.receivers = receivers
        self.interruption = Interruption()
        self.warned: dict[str, str] = {}  # who failed, and what was said about it
        self.saved = -1  # step of the last checkpoint
        self.is_between_steps = True
        if state is None:
            run.folder.make(run.config.toml())
            run.folder.keep_records(-1)
        else:
            run.restore(state)
            run.folder.keep_records(run.step)
            self.saved = run.step
        self.begun = time.perf_counter() - run.seconds

    def run_all(self) -> dict[str, Any]:
        run = self.run
        try:
            with plugins.blaming(self._where_it_stops), self.interruption.installed():
                self._tell("training_started", lambda logger: logger.started(run))
                self._train()
                result = self._finish()
                self._tell("training_ended", lambda logger: logger.ended(run, result), result=result)
            return result
        except KeyboardInterrupt:
            if self.is_between_steps and self.saved != run.step:
                self._save()
            where = f"the checkpoint of step {self.saved} is saved" if self.saved >= 0 else "nothing was saved yet"
            raise KeyboardInterrupt(
                f"interrupted after step {run.step} of {run.steps}; {where}."
                f" Continue by: dmlcore train --resume {run.folder.path}"
            ) from None
        finally:
            for logger in self.receivers:
                self._hear(logger, "closed", logger.closed)

    def _where_it_stops(self) -> str:
        kept = f"the checkpoint of step {self.saved} is intact" if self.saved >= 0 else "no checkpoint was saved yet"
        return f"Training stops after step {self.run.step}; {kept}."

    def train_only(self) -> None:
        """Train and evaluate on the validation classes; no result is written."""
        with self.interruption.installed():
            self._train()

    def _train(self) -> None:
        run = self.run
        every = run.config.settings.eval_every
        if run.evaluated < 0 or (run.evaluated < run.step and (run.step % every == 0 or run.step == run.steps)):
            self._evaluate()
        batches = run.batches()
        while run.step < run.steps:
            self.step(batches)
            if run.step % every == 0 or run.step == run.steps:
                self._evaluate()

    def step(self, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
        """One step on the next batch, recorded; an interrupt waits for its end."""
        run = self.run
        with self.interruption.after():
            self.is_between_steps = False
            began = time.perf_counter()
            inputs, labels = next(batches)
            record = self._step(inputs, labels, began)
            self.is_between_steps = True
            run.folder.append(record)
            self._tell("step_ended", lambda logger: logger.step_ended(run, record), record=record)

    def _step(self, inputs: Tensor, labels: Tensor, began: float) -> dict[str, Any]:
        run = self.run
        number = run.step + 1
        rates = optimiser.set_rates(run.optimiser, schedule.factor(run.step, run.steps, run.config.settings.warmup))
        run.model.train()
        run.loss.train()
        run.optimiser.zero_grad(set_to_none=True)
        try:
            outputs = run.model.outputs(inputs)  # [B, W]
            embeddings = outputs if run.model.student is None else outputs[:, : -run.model.student.out_features]
            embeddings.retain_grad()
            run.ensemble.measures_gradients = number % run.config.settings.log_every == 0
            total = run.loss(embeddings, labels)
            if not isinstance(total, Tensor) or total.ndim:
                raise PluginError(f"the ensemble of {', '.join(run.ensemble.names)} gave {_shape(total)} instead of one number")
            extras = run.extras.terms(outputs)
            total = sum(extras.values(), start=total)
            total.backward()
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"step {number}: not enough memory on {run.device} for a batch of {len(labels)}."
                f" Use a smaller --classes-per-batch or --samples-per-class."
            ) from error
        norms = optimiser.clip(run.optimiser, run.config.settings.clip)
        names, ensemble = run.ensemble.names, run.ensemble
        # One transfer from the device for all numbers of the step.
        norm_statistics = _norms(run, embeddings)
        gradients = ensemble.gradient_norms if run.ensemble.measures_gradients else {}
        cosines = ensemble.gradient_cosines if gradients else None
        measured = (total, norms, *(ensemble.terms[n] for n in names), *(ensemble.active[n] for n in names), ensemble.weights)
        measured += (*extras.values(), *norm_statistics.values(), *gradients.values(), *([] if cosines is None else [cosines]))
        numbers = torch.cat([t.detach().to(total.device, torch.float32).reshape(-1) for t in measured]).tolist()
        total_value, norm_values, rest = numbers[0], numbers[1:3], numbers[3:]
        more = iter(rest[3 * len(names) :])
        terms, active, weights = (dict(zip(names, rest[i * len(names) :], strict=False)) for i in range(3))
        if not all(_is_finite(value) for value in (total_value, *norm_values, *terms.values())):
            raise self._diagnosis(number, terms, total_value, embeddings, labels)
        run.optimiser.step()
        run.step = number
        found = [{name: next(more) for name in group} for group in (extras, norm_statistics, gradients)]
        optional: dict[str, dict[str, float]] = dict(
            zip(("extra_terms", "embedding_norms", "loss_gradient_norms"), found, strict=True)
        )
        if cosines is not None and len(names) > 1:
            table = [[next(more) for _ in names] for _ in names]
            pairs = itertools.combinations(range(len(names)), 2)
            optional["loss_gradient_cosines"] = {f"{names[i]}, {names[j]}": table[i][j] for i, j in pairs}
        compression = run.compression.step(inputs)
        if compression is not None:
            optional["extra_terms"]["compressor"] = compression
        seconds = time.perf_counter() - began
        return {
            "kind": "step",
            "step": number,
            "total": total_value,
            "terms": terms,
            "weights": weights,
            "active": active,
            "learning_rates": rates,
            "gradient_norms": dict(zip(("model", "losses"), norm_values, strict=True)),
            "images_per_second": len(labels) / seconds,
            **{key: value for key, value in optional.items() if value},
        }

    def _diagnosis(
        self, number: int, terms: dict[str, float], total: float, embeddings: Tensor, labels: Tensor
    ) -> TrainingError:
        run = self.run
        with torch.no_grad():
            spoiled = _rows(~torch.isfinite(embeddings.detach()).all(dim=1))
            rows = {} if spoiled else run.ensemble.non_finite_rows(embeddings.detach(), labels)
        bad = {name: value for name, value in terms.items() if not _is_finite(value)}
        if spoiled:
            where = _say_rows(spoiled, len(labels))
            what = f"the embeddings of {where} are not finite, before any loss (losses: {', '.join(terms)})"
        elif bad:
            what = "; ".join(
                f"loss '{name}' is {value} ({_say_rows(rows.get(name, []), len(labels))})" for name, value in bad.items()
            )
        elif not _is_finite(total):
            what = f"the weighted sum is {total} though every loss is finite ({', '.join(terms)})"
        else:
            gradient = embeddings.grad
            where = _rows(~torch.isfinite(gradient).all(dim=1)) if gradient is not None else []
            what = f"the gradient is not finite though every loss is ({', '.join(terms)}; {_say_rows(where, len(labels))})"
        kept = (
            f"the checkpoint of step {self.saved} in {run.folder.checkpoints} is intact"
            if self.saved >= 0
            else "no checkpoint was saved yet"
        )
        return TrainingError(
            f"step {number}: {what}. Training stops; {kept}. Try a smaller --learning-rate, or other options of that loss."
        )

    def _evaluate(self) -> None:
        run = self.run
        if run.evaluated == run.step:
            return
        began = time.perf_counter()
        run.prepare_to_serve()
        metrics = protocol.evaluate_model(
            run.model, run.splits.validation, workers=run.config.settings.workers, metrics=run.metrics
        )
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
                self._saved("best", run.save_best())
            self._save()
            self._tell("evaluated", lambda logger: logger.evaluated(run, record), record=record)

    def _save(self) -> None:
        path = self.run.save(time.perf_counter() - self.begun)
        self.saved = self.run.step
        self._saved("last", path)

    def _saved(self, name: str, path: Path) -> None:
        self._tell("checkpoint_saved", lambda logger: logger.checkpoint_saved(self.run, name, path), name=name, path=path)

    def _finish(self) -> dict[str, Any]:
        run = self.run
        self._note("evaluating the best checkpoint and the baselines")
        run.model.load_state_dict(checkpoints.load(run.folder.checkpoints, "best", run.device)["model"])
        untrained = build_run_model(run.config, run.splits.sample_shape, run.splits.kind).to(run.device)
        parts = {part: getattr(run.splits, part) for part in ("validation", "test")}
        workers = run.config.settings.workers
        untrained.served = "whole"  # what it could be compressed to was never fitted
        metrics, baselines = protocol.compare(
            run.model, untrained, parts, kind=run.splits.kind, workers=workers, metrics=run.metrics
        )
        result = {
            "run": str(run.folder.path),
            "metrics": metrics,
            "baselines": baselines,
            **named_metrics(run.model, parts, workers, run.metrics),
            "chosen_step": run.best.step,
            "chosen_by": f"{CHOSEN_BY} of the validation classes",
            "steps": run.steps,
            "seed": run.config.settings.seed,
            "losses": run.ensemble.describe(),
            "data": run.splits.describe(),
            "device": str(run.device),
            "parameters": sum(p.numel() for p in run.model.parameters()),
            "versions": versions(),
            "wall_seconds": time.perf_counter() - self.begun,
            "command": " ".join(sys.argv),
            **({"warnings": list(self.warned.values())} if self.warned else {}),
        }
        run.folder.write_result(result)
        return result

    def _note(self, text: str) -> None:
        for logger in self.receivers:
            logger.note(text)

    def _tell(self, event: str, call: Callable[[Logger], None], **arguments: Any) -> None:
        """Tell loggers and plugins of an event. What they do with it is no part of the run: one that fails is warned about
        once, and training goes on."""
        for logger in self.receivers:
            self._hear(logger, event, functools.partial(call, logger))
        hook = f"dmlcore_{event}"

        def failed(owner: str, error: Exception) -> None:
            self._warn(f"the hook {hook} of {owner}", error)

        plugins.call_event(hook, failed, run=self.run, **arguments)

    def _hear(self, logger: Logger, event: str, call: Callable[[], None]) -> None:
        try:
            call()
        except DmlcoreError:
            raise
        except Exception as error:
            self._warn(f"the logger '{logger.name or type(logger).__name__}' ({event})", error)

    def _warn(self, who: str, error: Exception) -> None:
        if who in self.warned:
            return
        self.warned[who] = f"{who} failed: {type(error).__name__}: {error}. Training goes on; this is said once."
        for logger in self.receivers:
            with contextlib.suppress(Exception):  # the one that failed may be among them
                logger.note(f"warning: {self.warned[who]}")


def named_metrics(
    model: EmbeddingModel, parts: dict[str, LabelledDataset], workers: int, metrics: Sequence[Metric] = ()
) -> dict[str, Any]:
    """`{"embeddings": {name: {part: metrics}}}` of a model that could serve more than one embedding, else nothing."""
    if model.heads == 1 and model.compressor is None and model.student is None:
        return {}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for part, dataset in parts.items():
        for name, values in protocol.evaluate_named(model, dataset, workers=workers, metrics=metrics).items():
            found.setdefault(name, {})[part] = values
    return {"embeddings": found}


def _norms(run: Run, embeddings: Tensor) -> dict[str, Tensor]:
    """Mean and standard deviation of the norms of raw embeddings (of all heads); nothing where the model normalises."""
    model = run.model
    if model.normalize:
        return {}
    norms = torch.linalg.vector_norm(
        embeddings.detach()[:, : model.whole_dim].unflatten(1, (model.heads, model.head_dim)).float(), dim=2
    )
    return {"mean": norms.mean(), "deviation": norms.std(correction=0)}


def _is_finite(value: float) -> bool:
    return value - value == 0


def _rows(mask: Tensor) -> list[int]:
    return mask.nonzero().flatten().tolist()


def _say_rows(rows: list[int], size: int) -> str:
    if not rows:
        return f"no single row of {size}"
    shown = ", ".join(map(str, rows[:5])) + (f" and {len(rows) - 5} more" if len(rows) > 5 else "")
    return f"row{'s' if len(rows) > 1 else ''} {shown} of {size}"


def _shape(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
