"""`dmlcore ood`: configurations on splits of growing shift, and the report that compares them. The work is the library's."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from cyclopts import App

from dmlcore import console
from dmlcore.config import build_options, check_range
from dmlcore.errors import ConfigError
from dmlcore.flags import COMMON, command, flag

_STEPS = "1000,1500"  # as published, for 2 and 5 shots


def ood_app() -> App:
    """The commands of `dmlcore ood`."""
    text = "Out-of-distribution shift: train configurations on every split of a file, adapt them to few shots, compare them."
    app = App(name="ood", help=text, result_action="return_value", suppress_keyboard_interrupt=False)
    app.command(
        command(
            _run,
            [
                flag("splits", Path, "File of splits, from `dmlcore splits`.", inspect.Parameter.empty),
                flag(
                    "config",
                    str,
                    "TOML files of `dmlcore train`, separated by commas: a row of the report each.",
                    inspect.Parameter.empty,
                ),
                flag(
                    "out",
                    Path,
                    "Folder of the results; the same command goes on with what is missing there.",
                    inspect.Parameter.empty,
                ),
                flag("data", str | None, "The data, where they lie elsewhere than the file of splits says."),
                flag("seeds", int, "Seeds of weights and batches: 0 to N - 1.", 3),
                flag("split", str | None, "Ids of splits, separated by commas (default: all of the file)."),
                flag("shots", str, "Support samples of a class in adaptation, separated by commas; 0: none.", "2,5"),
                flag("adapt_steps", str, "Steps of adaptation, one number or one for each of `--shots`.", _STEPS),
                flag("adapt_rate", float, "Learning rate of adaptation.", 1e-4),
                flag("episodes", int, "Episodes of each number of shots, at most those of the file.", 10),
                flag("processes", int, "Cells at a time, a thread each.", 1),
                flag("keep_models", bool, "Keep every run with its best checkpoint, below `OUT/models`.", False),
                *COMMON,
            ],
            "Train and evaluate every configuration on every split with every seed, then report.",
        ),
        name="run",
    )
    app.command(
        command(
            _report,
            [
                flag("folder", Path, "Folder of `dmlcore ood run`.", is_positional=True),
                flag("config", str | None, "Names of configurations, separated by commas (default: all)."),
                *COMMON,
            ],
            "Compare the configurations of a folder: report.md, report.json, recall.svg.",
        ),
        name="report",
    )
    return app


def _words(text: str | None) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def _run(
    *,
    splits: Path,
    config: str,
    out: Path,
    data: str | None,
    seeds: int,
    split: str | None,
    shots: str,
    adapt_steps: str,
    adapt_rate: float,
    episodes: int,
    processes: int,
    keep_models: bool,
    json: bool,
    debug: bool,
) -> int:
    from dmlcore.protocols import drawing
    from dmlcore.protocols.shift import report, running
    from dmlcore.protocols.shift.adapting import Adaptation

    check_range("processes", processes, least=1)
    adaptation = None
    if shots.strip() != "0":
        given: dict[str, Any] = {"shots": shots, "steps": adapt_steps, "rate": adapt_rate, "episodes": episodes}
        if adapt_steps == _STEPS and len(_words(shots)) == 1:
            given["steps"] = adapt_steps.split(",")[0]
        adaptation = build_options(Adaptation, given, "ood run")
    cells, places = running.plan(
        splits, _words(config), data=data, seeds=seeds, adaptation=adaptation, only=_words(split), tell=console.say
    )
    console.say(f"{len(cells)} cells in {out}, {processes} at a time")
    if not drawing.can_draw():
        console.say(drawing.HOW)
    running.run(cells, places, out, processes=processes, keeps_models=keep_models, tell=console.say)
    return _show(report.write(out), json)


def _report(folder: Path, *, config: str | None, json: bool, debug: bool) -> int:
    from dmlcore.protocols.shift import report

    if not folder.is_dir():
        raise ConfigError(f"there is no folder '{folder}' of `dmlcore ood run`")
    return _show(report.write(folder, _words(config)), json)


def _show(found: dict[str, Any], json: bool) -> int:
    console.show_json(found) if json else console.show_shift(found)
    return 0
