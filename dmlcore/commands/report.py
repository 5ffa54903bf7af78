"""`dmlcore report`: the page of a run, or one that compares several."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from dmlcore import console
from dmlcore.commands.trained import LOADING
from dmlcore.flags import COMMON, command, flag
from dmlcore.hookspecs import hookimpl

RUNS = inspect.Parameter(
    "runs",
    inspect.Parameter.VAR_POSITIONAL,
    annotation=Annotated[Path, Parameter(help="Folders of runs. Several are compared with the first.")],
)


@hookimpl
def dmlcore_commands(app: App) -> None:
    flags = [
        RUNS,
        flag(
            "out",
            Path | None,
            "The .html file to write (default: `report.html` in the run's folder; for several runs `comparison.html` here).",
        ),
        *LOADING,
        *COMMON,
    ]
    text = "Write a page to look at: curves, embedding, neighbours and classes of a run, or several runs compared."
    app.command(command(_report, flags, text), name="report")


def _report(*runs: Path, out: Path | None, checkpoint: str, trust_plugins: bool, device: str, json: bool, debug: bool) -> int:
    from dmlcore.serving import write_report

    path = write_report(runs, out, checkpoint=checkpoint, device=device, trusts_plugins=trust_plugins)
    console.show_json({"report": str(path), "runs": [str(run) for run in runs]}) if json else console.show(f"Report: {path}")
    return 0
