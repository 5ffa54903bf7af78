"""`dmlcore ood`: configurations on splits of growing shift, and the report that compares them. The work is the library's."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import App

from dmlcore import console
from dmlcore.config import build_options, check_range
from dmlcore.errors import ConfigError
from dmlcore.flags import COMMON, command, flag

if TYPE_CHECKING:
    from dmlcore.protocols.shift.adapting import Adaptation

PUBLISHED = {2: 1000, 5: 1500}
"""Steps of adaptation by number of shots, as published."""


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
                flag(
                    "shots",
                    str | None,
                    "Support samples of a class in adaptation, separated by commas; 0: none (default: 2 and 5, as far as the"
                    " file has them).",
                ),
                flag(
                    "adapt_steps",
                    str | None,
                    "Steps of adaptation, one number or one for each of `--shots` (default: 1000, from 5 shots on 1500).",
                ),
                flag("adapt_rate", float, "Learning rate of adaptation.", 1e-4),
                flag("episodes", int | None, "Episodes of each number of shots, the first so many (default: all of the file)."),
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
    shots: str | None,
    adapt_steps: str | None,
    adapt_rate: float,
    episodes: int | None,
    processes: int,
    keep_models: bool,
    json: bool,
    debug: bool,
) -> int:
    from dmlcore.protocols.shift import report, running
    from dmlcore.reports import pictures

    check_range("processes", processes, least=1)
    adaptation = _adaptation(splits, shots, {"steps": adapt_steps, "rate": adapt_rate, "episodes": episodes})
    cells, places = running.plan(
        splits, _words(config), data=data, seeds=seeds, adaptation=adaptation, only=_words(split), tell=console.say
    )
    console.say(f"{len(cells)} cells in {out}, {processes} at a time")
    if not pictures.can_draw():
        console.say(pictures.HOW_TO_DRAW)
    running.run(cells, places, out, processes=processes, keeps_models=keep_models, tell=console.say)
    return _show(report.write(out), json)


def _adaptation(splits: Path, shots: str | None, given: dict[str, Any]) -> Adaptation | None:
    """What is adapted to, or None; `given` has the other fields, None where the user said nothing."""
    from dmlcore.data import SplitFile
    from dmlcore.protocols.shift.adapting import Adaptation

    if shots is None:
        file = SplitFile.read(splits)
        there = [k for k in PUBLISHED if all(k in split.episodes for split in file.splits)]
        if not there:
            console.say("no adaptation: the splits have no episodes of 2 or 5 shots")
    else:
        there = [] if shots.strip() == "0" else build_options(_Shots, {"shots": shots}, "ood run").shots
    if not there:
        return None
    if given["steps"] is None:
        given["steps"] = [PUBLISHED[2 if k < 5 else 5] for k in there]
    return build_options(Adaptation, {"shots": there, **given}, "ood run")


@dataclass(frozen=True)
class _Shots:
    shots: tuple[int, ...] = ()


def _report(folder: Path, *, config: str | None, json: bool, debug: bool) -> int:
    from dmlcore.protocols.shift import report

    if not folder.is_dir():
        raise ConfigError(f"there is no folder '{folder}' of `dmlcore ood run`")
    return _show(report.write(folder, _words(config)), json)


def _show(found: dict[str, Any], json: bool) -> int:
    console.show_json(found) if json else console.show_shift(found)
    return 0
