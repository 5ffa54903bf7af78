"""Everything that is printed: results on stdout, progress and errors on stderr. Nothing is computed here, and no torch is
imported.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dmlcore.files import plain
from dmlcore.training.loggers import Logger

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from dmlcore.data.split_files import SplitFile
    from dmlcore.testing import Report
    from dmlcore.training.run import Run


def _stderr() -> Console:
    return Console(file=sys.stderr, highlight=False, markup=False, soft_wrap=True)


def _stdout() -> Console:
    console = Console(file=sys.stdout, highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 160  # a pipe has no width; tables must not be folded to 80 columns in a file
    return console


def say(text: str = "") -> None:
    """A line of progress, on stderr."""
    _stderr().print(text)


def fail(message: object, *, debug: bool = False) -> None:
    """The one line that says what went wrong, on stderr, behind the traceback when that is asked for."""
    if debug:
        traceback.print_exc()
    _stderr().print(Text.assemble(("error: ", "bold red"), " ".join(str(message).split())))


def show_json(value: Any) -> None:
    """One JSON object on stdout."""
    sys.stdout.write(json.dumps(plain(value), indent=2) + "\n")
    sys.stdout.flush()


def show(text: str = "") -> None:
    """A line of a result, on stdout."""
    _stdout().print(text, soft_wrap=True)


def give_up_stdout() -> None:
    """Write nothing more to stdout, whose reader has gone; Python would complain at exit otherwise."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _table(*columns: str, numbers: bool = False) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if numbers and index else "left", overflow="fold")
    return table


def show_metrics(metrics: dict[str, Any], baselines: dict[str, Any], title: str = "") -> None:
    """The table of results."""
    from dmlcore.evaluation.protocol import COLUMNS, table_rows

    table = _table(title, *COLUMNS, numbers=True)
    for label, values in table_rows(metrics, baselines):
        table.add_row(label, *("-" if value is None else f"{value:.3f}" for value in values))
    _stdout().print(table)


def show_embeddings(embeddings: dict[str, Any]) -> None:
    """Everything the model could serve as its embedding: the whole, each head, the compressed, the student's."""
    from dmlcore.evaluation.protocol import COLUMNS

    for part in next(iter(embeddings.values()), {}):
        table = _table(f"{part}, by embedding", "length", *COLUMNS, numbers=True)
        for name, parts in embeddings.items():
            values = [parts[part].get(key) for key in COLUMNS.values()]
            shown = ("-" if value is None else f"{value:.3f}" for value in values)
            table.add_row(name, str(parts[part]["embedding_dim"]), *shown)
        _stdout().print(table)


def show_result(result: dict[str, Any]) -> None:
    """How a finished run ends: the table, where everything lies, and what to do next."""
    show_metrics(result["metrics"], result["baselines"], "trained, step " + str(result["chosen_step"]))
    show_embeddings(result.get("embeddings", {}))
    if result["chosen_step"] == 0:
        show("Training did not improve on the untrained network: train longer, or with another learning rate or other losses.")
    show(
        f"{result['wall_seconds']:.0f} s. The checkpoint was chosen by MAP@R of the validation classes; "
        "test classes were used once, here."
    )
    show(f"Results and checkpoints: {result['run']}")
    show(f"Continue by: dmlcore eval {result['run']}")


def show_shift(found: dict[str, Any]) -> None:
    """Configurations compared on splits of growing shift, and where the report lies."""
    from dmlcore.protocols.shift.report import said, shots_of

    table = _table("Recall@1, %", "FID", *found["configurations"], numbers=True)
    for split in found["splits"]:
        rows = (one["splits"][split["id"]] for one in found["configurations"].values())
        table.add_row(split["id"], f"{split['fid']:.4g}", *(said(row.get("recall@1")) or "-" for row in rows))
    areas = [one["area"].get("recall@1") for one in found["configurations"].values()]
    if any(areas):
        table.add_row("area over FID", "", *(said(area) or "-" for area in areas))
    _stdout().print(table)
    for k in shots_of(found):
        table = _table(f"gained by {k} shots", "FID", *found["configurations"], numbers=True)
        for split in found["splits"]:
            rows = (one["splits"][split["id"]]["few_shot"].get(k, {}) for one in found["configurations"].values())
            table.add_row(split["id"], f"{split['fid']:.4g}", *(said(row.get("gain"), signed=True) or "-" for row in rows))
        _stdout().print(table)
    show(f"Means over seeds {', '.join(map(str, found['seeds']))} with 95 % t-intervals; for gains, over episodes.")
    show(f"Report: {', '.join(found['files'].values())}")


def show_components(entries: list[dict[str, Any]]) -> None:
    """Everything plugins offer, a line each."""
    table = _table("name", "kind", "owner", "version", "fused", "what it is")
    for entry in entries:
        table.add_row(
            entry["name"], entry["kind"], entry["owner"], entry["version"], _fused(entry, short=True), entry["summary"]
        )
    _stdout().print(table)
    show("Options of one: dmlcore plugins NAME")


def show_component(entry: dict[str, Any]) -> None:
    """One component with its options."""
    show(f"{entry['name']} ({entry['kind']} of {entry['owner']} {entry['version']})")
    show(entry["help"])
    if _fused(entry):
        show(f"fused: {_fused(entry)}")
    if not entry["options"]:
        show("It has no options.")
        return
    is_miner = entry["kind"] == "miner"
    table = _table("option", "type", "default", "what it does")
    for option in entry["options"]:
        help_text = " ".join(option["help"].split())
        table.add_row(
            f"{'' if is_miner else '--' + entry['name'] + '.'}{option['name']}",
            option["type"],
            _value(option["default"]),
            help_text,
        )
    _stdout().print(table)
    if is_miner:
        show(f"Given with its name to a loss: --LOSS.miner '{entry['name']}({entry['options'][0]['name']}=VALUE)'")


def show_report(report: Report) -> None:
    """The checks of a plugin, a line each, and what they come to."""
    marks = {"ok": "ok  ", "fails": "FAIL", "not applicable": "-   "}
    for check in report.checks:
        show(f"{marks[check.status]} {check.name}{f': {check.detail}' if check.detail else ''}")
    failed = sum(not check.passed for check in report.checks)
    idle = sum(not check.applies for check in report.checks)
    made = len(report.checks) - idle
    verdict = f"{failed} of {made} checks fail" if failed else f"all {made} checks hold"
    show(f"{report.kind} '{report.name}': {verdict}" + (f", {idle} do not apply" if idle else ""))


def show_splits(file: SplitFile) -> None:
    """The splits of a file, a line each, from easy to hard."""
    table = _table("split", "FID", "swapped", "removed", "trained on", "validation", "test", "episodes of shots", numbers=True)
    for split in file.splits:
        mark = " (default)" if split.id == file.default and split.id != "default" else ""
        counts = (split.swapped, split.removed, len(split.train_part), len(split.validation_part), len(split.test))
        episodes = ", ".join(f"{len(found)} x {shots}" for shots, found in split.episodes.items()) or "-"
        table.add_row(split.id + mark, f"{split.fid:.4g}", *(f"{count:,}" for count in counts), episodes)
    _stdout().print(table)
    show(f"Splits of the classes of {file.data}; swapped and removed: classes of each side, against the default split.")


def show_bench(result: dict[str, Any]) -> None:
    """Times of the forms of a loss."""
    show(
        f"{result['loss']}: forward and backward of {result['samples']:,} embeddings of {result['dimensions']};"
        f" {result['device']}, {result['threads']} threads"
    )
    if not result["is_fused"]:
        show(f"not fused: {result['why_not_fused']}")
    table = _table("form", "ms", "20 %", "80 %", "repeats", "x products", numbers=True)
    for row in result["rows"]:
        if "failed" in row:
            table.add_row(row["form"], "-", "-", "-", "0", "-")
        else:
            numbers = (f"{row[key]:.3f}" for key in ("milliseconds", "fast", "slow"))
            table.add_row(row["form"], *numbers, str(row["repeats"]), f"{row['ratio']:.2f}")
    _stdout().print(table)
    for row in result["rows"]:
        if "failed" in row:
            show(f"{row['form']} failed: {row['failed']}")


def show_kernels(found: dict[str, Any]) -> None:
    """The compiled functors that are kept, a line each."""
    if found["kernels"]:
        table = _table("functors", "header", "state", "level", "compiler", "KB", "made")
        for one in found["kernels"]:
            size = f"{one['bytes'] / 1000:.0f}"
            names = ", ".join(one["functors"])
            table.add_row(names, one["header"], one["state"], one["level"], one["compiler"], size, one["made"])
        _stdout().print(table)
    show(f"{len(found['kernels'])} kept in {found['folder']}")


def show_built(found: list[dict[str, Any]]) -> None:
    """What was compiled, was there already, or was refused, a line each."""
    for one in found:
        if one["error"]:
            show(f"{one['header']}: {one['error']}")
        else:
            done = f"compiled in {one['seconds']:.1f} s" if one["compiled"] else "there already"
            show(f"{one['header']}: {', '.join(one['functors'])} for {one['level']}, {done}")
    if not found:
        show("No installed loss has a header to compile.")


def _fused(entry: dict[str, Any], short: bool = False) -> str:
    if entry.get("is_fused") is None:
        return ""
    if entry["is_fused"]:
        return ", ".join(entry["fused_on"])
    return "no" if short else f"no, {entry['why_not_fused']}"


def _value(value: Any) -> str:
    return "none" if value is None else ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def show_info(info: dict[str, Any], indent: str = "") -> None:
    """Nested facts, a line each."""
    width = max((len(str(key)) for key in info), default=0)
    for key, value in info.items():
        if isinstance(value, dict) and value:
            show(f"{indent}{key}")
            show_info(value, indent + "  ")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            show(f"{indent}{key!s:{width}}  {text or '-'}")


class ProgressLogger(Logger):
    """What the user sees of a run, on stderr: its first lines, a bar on a terminal or a line now and then, evaluations."""

    def __init__(self) -> None:
        super().__init__()
        self._console = _stderr()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._since: tuple[float, int] = (0.0, 0)

    def started(self, run: Run) -> None:
        for label, text in _opening(run):
            self._console.print(f"{label:<9} {text}")
        if self._console.is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(bar_width=20),
                TimeRemainingColumn(),
                TextColumn("{task.description}", markup=False),
                console=self._console,
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=run.steps, completed=run.step)
        self._since = (time.perf_counter(), run.step)

    def step_ended(self, run: Run, record: dict[str, Any]) -> None:
        step, every = record["step"], run.config.settings.log_every
        if self._bar is not None and self._task is not None:
            self._bar.update(
                self._task, completed=step, description=f"{record['images_per_second']:,.0f} images/s  {_terms(record)}"
            )
        elif step % every == 0 or step == run.steps:
            began, first = self._since
            rate = (step - first) * run.batch_size / max(time.perf_counter() - began, 1e-9)
            self._console.print(f"step {step}/{run.steps}  {rate:,.0f} images/s  {_terms(record)}")
            self._since = (time.perf_counter(), step)

    def evaluated(self, run: Run, record: dict[str, Any]) -> None:
        mark = "  best so far" if record["is_best"] else ""
        score = f"R@1 {record['recall@1']:.3f}  MAP@R {record['map@r']:.3f}"
        self._console.print(f"step {record['step']}: validation {score}{mark}")
        self._since = (time.perf_counter(), run.step)

    def note(self, text: str) -> None:
        self._console.print(text)

    def closed(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _terms(record: dict[str, Any]) -> str:
    terms = "  ".join(f"{name} {value:.3f} x {record['weights'].get(name, 1):.2f}" for name, value in record["terms"].items())
    return f"total {record['total']:.3f}  {terms}"


def _embedding(run: Run) -> str:
    model, settings = run.model, run.config.settings
    text = f"embeddings of {model.head_dim}" if model.heads == 1 else f"{model.heads} heads of {model.head_dim}"
    if model.compressor is not None:
        text += f", compressed to {settings.compress} by {settings.compressor}"
    if model.student is not None:
        text += f", a student of {model.student.out_features}"
    return text + (f"; {model.served} is served" if model.served != "whole" else "")


def _opening(run: Run) -> list[tuple[str, str]]:
    settings = run.config.settings
    described = run.ensemble.describe()
    fused = ", ".join(
        f"{loss['name']} ({'fused' if loss['fused'] else 'not fused: ' + str(loss['why_not_fused'])})" for loss in described
    )
    parts = "; ".join(
        f"{part} {len(getattr(run.splits, part)):,} samples of {getattr(run.splits, part).num_classes:,} classes"
        for part in ("train", "validation", "test")
    )
    parameters = sum(p.numel() for p in run.model.parameters())
    owned = {role: sum(p.numel() for p in found) for role, found in run.ensemble.parameter_roles().items()}
    extra = "".join(f", {count:,} in {role}" for role, count in owned.items() if count)
    done = f", {run.step:,} done already" if run.step else ""
    lines = [
        ("run", str(run.folder.path)),
        ("losses", f"{fused}; weighting {settings.weighting}"),
        ("device", str(run.device)),
        ("data", f"{run.splits.name}: {parts}"),
        *(("", note) for note in run.splits.notes),
        ("model", f"{settings.model}, {_embedding(run)}, {parameters:,} parameters{extra}"),
        (
            "training",
            f"{run.steps:,} steps{done} of {run.classes_per_batch} classes x {settings.samples_per_class} samples,"
            f" seed {settings.seed}, validation every {settings.eval_every} steps",
        ),
    ]
    return lines
