"""`dmlcore find`: a learning rate, or a size of batch, for the run that the other flags describe."""

from __future__ import annotations

import csv
import io
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import App

from dmlcore import console
from dmlcore.commands.line import CommandLine
from dmlcore.commands.train import choose_components
from dmlcore.errors import ConfigError, suggestion
from dmlcore.flags import COMMON, command, flag, parameter_name, run_settings_flags, typed_values
from dmlcore.hookspecs import hookimpl
from dmlcore.training.sources import Source

if TYPE_CHECKING:
    from dmlcore.training.finding import BatchSize, RateCurve
    from dmlcore.training.run import Run

WHAT = ("lr", "batch")
CURVE = "learning-rate.csv"
TEXT = (
    "Find a learning rate (`lr`), by steps whose rate rises until the loss does, or the largest batch that fits into memory"
    " (`batch`). Nothing is trained for good. All other flags are those of `dmlcore train`."
)


@hookimpl
def dmlcore_commands(app: App, line: CommandLine) -> None:
    files = choose_components(line) if line.command == "find" else []

    def find(what: str, *, settings: Any, config: str | None, out: Path | None, json: bool, debug: bool, **tables: Any) -> int:
        from dmlcore.training.finding import find_batch_size, find_learning_rate

        if what not in WHAT:
            raise ConfigError(f"there is nothing called '{what}' to find.{suggestion(what, WHAT)}")
        if what == "batch" and out is not None:
            raise ConfigError("--out is for `dmlcore find lr`, whose curve it keeps")
        options = {
            table: typed_values(tables[parameter_name(table)])
            for table, component in line.components.items()
            if component.option_names()
        }
        typed = Source("", typed_values(settings), {table: values for table, values in options.items() if values})
        with tempfile.TemporaryDirectory() as folder:
            run = _run([*files, typed], Path(folder), is_short=what == "lr")
            if what == "lr":
                _show_rate(find_learning_rate(run, run.steps), out or Path(CURVE), json)
            else:
                _show_batch(run, find_batch_size(run), json)
        return 0

    flags = [
        flag("what", str, "`lr` or `batch`.", is_positional=True),
        run_settings_flags(),
        *line.option_flags(),
        flag("config", str | None, "TOML file with settings and options; flags win over it."),
        flag("out", Path | None, f"CSV file of the curve of `lr` (default: `{CURVE}` here)."),
        *COMMON,
    ]
    app.command(command(find, flags, TEXT), name="find")


def _run(sources: list[Source], folder: Path, *, is_short: bool) -> Run:
    """The run that is tried; `is_short`: of as many steps as the test of rates has, all of which train the trunk."""
    from dmlcore.training import RunConfig
    from dmlcore.training.finding import STEPS
    from dmlcore.training.folder import RunFolder
    from dmlcore.training.run import Run

    steps = {key: value for source in sources for key, value in source.values.items() if key in ("steps", "epochs")}
    changes = {"steps": steps.get("steps", STEPS), "epochs": "none", "freeze": 0} if is_short else {}
    config = RunConfig.resolve([*sources, Source("", changes)])
    if config.settings.losses.is_automatic:
        raise ConfigError("plugins is auto: which losses there will be is not known yet. Name them")
    return Run(config, RunFolder(folder / "run"))


def _show_rate(curve: RateCurve, path: Path, json: bool) -> None:
    from dmlcore.files import make_folder, write_atomically

    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["learning_rate", "loss", "smoothed", *(f"rate_{role}" for role in curve.by_role)])
    rows = zip(curve.rates, curve.losses, curve.smoothed, *curve.by_role.values(), strict=True)
    writer.writerows([f"{value:.6g}" for value in row] for row in rows)
    make_folder(path.parent)
    write_atomically(path, table.getvalue().encode())
    if json:
        console.show_json(
            {
                "learning_rate": curve.rate,
                "present": curve.present,
                "reason": curve.reason,
                "steps": len(curve.rates),
                "curve": str(path),
            }
        )
        return
    console.show_sentences(curve.reason)
    if curve.rate is None:
        console.show(f"Stay with --learning-rate {curve.present:g}, or try other losses.")
    else:
        console.show(f"Use it by: --learning-rate {curve.rate:g}   (without it: {curve.present:g})")
    console.show(f"Curve: {path}")


def _show_batch(run: Run, size: BatchSize, json: bool) -> None:
    from dmlcore.training.finding import told

    if json:
        console.show_json(
            {
                "classes_per_batch": size.classes,
                "samples_per_class": size.samples,
                "batch_size": size.classes * size.samples,
                "memory": size.memory,
                "limit": size.limit,
                "reason": size.reason,
            }
        )
        return
    console.show_sentences(
        f"The largest batch on {run.device}: {size.classes} classes x {size.samples} samples. A step needs {told(size)};"
        f" {size.reason}."
    )
    console.show(f"Use it by: --classes-per-batch {size.classes}   (without it: {run.classes_per_batch})")
    console.show_sentences("The largest batch is not always the best one. --accumulate gives larger ones at the same memory.")
