"""What the user sees of a run while it trains, on stderr: its first lines, a bar or a line now and then, evaluations."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from dmlcore.commands import display
from dmlcore.training.loggers import Logger

if TYPE_CHECKING:
    from dmlcore.training.run import Run


class ProgressLogger(Logger):
    """Shows the records of a run as they come."""

    def __init__(self) -> None:
        super().__init__()
        self._display = display.current()
        self._since: tuple[float, int] = (0.0, 0)

    def started(self, run: Run) -> None:
        for label, text in _first_lines(run):
            self._display.say(f"{label:<9} {text}", indent=10)
        self._display.start("step", run.steps, run.step)
        self._since = (time.perf_counter(), run.step)

    def step_ended(self, run: Run, record: dict[str, Any]) -> None:
        step, every = record["step"], run.config.settings.run.log_every
        self._display.step(step, f"{record['images_per_second']:,.0f} images/s", _terms(record))
        if not self._display.has_bar and (step % every == 0 or step == run.steps):
            began, first = self._since
            rate = (step - first) * run.batch_size / max(time.perf_counter() - began, 1e-9)
            entries = [f"step {step}/{run.steps}", f"{rate:,.0f} images/s", self._display.left(), *_terms(record)]
            self._display.say("  ".join(filter(None, entries)))
            self._since = (time.perf_counter(), step)

    def evaluated(self, run: Run, record: dict[str, Any]) -> None:
        mark = "  best so far" if record["is_best"] else ""
        score = f"R@1 {record['recall@1']:.3f}  MAP@R {record['map@r']:.3f}"
        self._display.say(f"step {record['step']}: validation {score}{mark}")
        self._since = (time.perf_counter(), run.step)  # the evaluation's own time is no part of the speed

    def note(self, text: str) -> None:
        self._display.say(text)

    def closed(self) -> None:
        self._display.close()


def _terms(record: dict[str, Any]) -> list[str]:
    terms = [f"{name} {value:.3f} x {record['weights'].get(name, 1):.2f}" for name, value in record["terms"].items()]
    return [f"total {record['total']:.3f}", *terms]


def _first_lines(run: Run) -> list[tuple[str, str]]:
    """What the run will do: losses, fused or not and why, device, data, model, steps."""
    from dmlcore.training.memory_needed import memory_needed

    settings = run.config.settings
    losses = ", ".join(
        f"{loss['name']} ({'fused' if loss['fused'] else 'not fused: ' + str(loss['why_not_fused'])})"
        for loss in run.ensemble.describe()
    )
    parts = "; ".join(f"{part} {run.splits.count_of(part)}" for part in ("train", "validation", "test"))
    unit = "classes" if run.splits.train.sets is None else "labels"
    done = f", {run.step:,} done already" if run.step else ""
    return [
        ("run", str(run.folder.path)),
        ("losses", f"{losses}; weighting {settings.ensemble.weighting}"),
        ("device", str(run.device)),
        ("data", f"{run.splits.name}: {parts}"),
        *(("", note) for note in run.splits.notes),
        ("model", f"{settings.model.trunk}, {_embedding(run)}, {_parameters(run)}"),
        ("memory", f"a step needs {memory_needed(run)}"),
        (
            "training",
            f"{run.steps:,} steps{done} of {run.classes_per_batch} {unit} x {settings.data.samples_per_class} samples,"
            f" seed {settings.run.seed},"
            f" {'validation' if run.validates else 'no validation, a checkpoint'} every {settings.run.eval_every} steps",
        ),
    ]


def _embedding(run: Run) -> str:
    model, settings = run.model, run.config.settings.model
    text = f"embeddings of {model.head_dim}" if model.heads == 1 else f"{model.heads} heads of {model.head_dim}"
    text += ", each on one block of the trunk" if model.heads_see_blocks else ""
    if model.compressor is not None:
        text += f", compressed to {settings.compress} by {settings.compressor}"
    if model.student is not None:
        text += f", a student of {model.student.out_features}"
    if settings.distill_heads:
        text += f", taught by heads of {', '.join(map(str, settings.distill_heads))}"
    return text + (f"; {model.served} is served" if model.served != "whole" else "")


def _parameters(run: Run) -> str:
    of_model = sum(parameter.numel() for parameter in run.model.parameters())
    of_losses = {
        role: sum(parameter.numel() for parameter in parameters) for role, parameters in run.ensemble.parameter_roles().items()
    }
    return f"{of_model:,} parameters" + "".join(f", {count:,} in {role}" for role, count in of_losses.items() if count)
