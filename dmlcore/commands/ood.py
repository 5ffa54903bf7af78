"""`dmlcore ood`: configurations on splits of growing shift, and the report that compares them. The work is the library's."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cyclopts import App

from dmlcore import console
from dmlcore.config import build_options, check_range
from dmlcore.errors import ConfigError
from dmlcore.flags import COMMON, command, flag, new_app
from dmlcore.hookspecs import hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable

    from dmlcore.protocols.shift.adapting import Adaptation

PUBLISHED = {2: 1000, 5: 1500}
"""Steps of adaptation by number of shots, as published."""


@hookimpl
def dmlcore_commands(app: App) -> None:
    text = "Out-of-distribution shift: train configurations on every split of a file, adapt them to few shots, compare them."
    ood = new_app("ood", text)
    text = "Train and evaluate every configuration on every split with every seed, then report."
    ood.command(command(_run, _run_flags(), text), name="run")
    flags = [
        flag("folder", Path, "Folder of `dmlcore ood run`.", is_positional=True),
        flag("config", str | None, "Names of configurations, separated by commas (default: all)."),
        *COMMON,
    ]
    text = "Compare the configurations of a folder: report.md, report.json, recall.svg."
    ood.command(command(_report, flags, text), name="report")
    app.command(ood, name="ood")


def _run_flags() -> list[inspect.Parameter]:
    mandatory = inspect.Parameter.empty
    return [
        flag("splits", Path, "File of splits, from `dmlcore splits`.", mandatory),
        flag("config", str, "TOML files of `dmlcore train`, separated by commas: a row of the report each.", mandatory),
        flag("out", Path, "Folder of the results; the same command goes on with what is missing there.", mandatory),
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
        flag("adapt_learn_beta", bool, "Learn the margin loss's boundary instead of holding it at 1.2, as published.", False),
        flag("adapt_augment", bool, "Change support samples at random as in training; the trunk sees every batch anew.", True),
        flag("adapt_cutoff", float, "Distance beyond which adaptation draws no negatives; 2: it draws among all.", 2.0),
        flag(
            "validation",
            Literal["classes", "samples", "none"] | None,
            "What chooses the checkpoint, in place of what the configurations say: with `none` all training classes are"
            " trained on, as published.",
        ),
        flag(
            "folds",
            int | None,
            "Train K models in each cell, each validated on another part of the training classes, and report them alone and by"
            " their embeddings side by side (Musgrave et al. 2020).",
        ),
        flag("episodes", int | None, "Episodes of each number of shots, the first so many (default: all of the file)."),
        flag("processes", int, "Cells at a time, a thread each.", 1),
        flag("keep_models", bool, "Keep every run with its best checkpoint, below `OUT/models`.", False),
        *COMMON,
    ]


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
    validation: str | None,
    folds: int | None,
    shots: str | None,
    adapt_steps: str | None,
    adapt_rate: float,
    adapt_learn_beta: bool,
    adapt_augment: bool,
    adapt_cutoff: float,
    episodes: int | None,
    processes: int,
    keep_models: bool,
    json: bool,
    debug: bool,
) -> int:
    from dmlcore.protocols.shift import report, running
    from dmlcore.reports import pictures

    check_range("processes", processes, least=1)
    rule = {"learn_beta": adapt_learn_beta, "augment": adapt_augment, "cutoff": adapt_cutoff}
    adaptation = _adaptation(splits, shots, {"steps": adapt_steps, "rate": adapt_rate, "episodes": episodes, **rule})
    cells, places = running.plan(
        splits,
        _words(config),
        data=data,
        seeds=seeds,
        adaptation=adaptation,
        only=_words(split),
        validation=validation,
        folds=folds,
        tell=console.say,
    )
    console.say(f"{len(cells)} cells in {out}, {processes} at a time")
    if not pictures.can_draw():
        console.say(pictures.HOW_TO_DRAW)
    running.run(cells, places, out, processes=processes, keeps_models=keep_models, tell=console.say)
    return _show(report.write(out), json)


def _adaptation(splits: Path, shots: str | None, fields: dict[str, Any]) -> Adaptation | None:
    """What is adapted to, or None; `fields` has the other fields, None where the user said nothing."""
    from dmlcore.data import SplitFile
    from dmlcore.protocols.shift.adapting import Adaptation

    if shots is None:
        file = SplitFile.read(splits)
        numbers = [k for k in PUBLISHED if all(k in split.episodes for split in file.splits)]
        if not numbers:
            console.say("no adaptation: the splits have no episodes of 2 or 5 shots")
    else:
        numbers = [] if shots.strip() == "0" else build_options(_Shots, {"shots": shots}, "ood run").shots
    if not numbers:
        return None
    if fields["steps"] is None:
        fields["steps"] = [PUBLISHED[2 if k < 5 else 5] for k in numbers]
    return build_options(Adaptation, {"shots": numbers, **fields}, "ood run")


@dataclass(frozen=True)
class _Shots:
    shots: tuple[int, ...] = ()


def _report(folder: Path, *, config: str | None, json: bool, debug: bool) -> int:
    from dmlcore.protocols.shift import report

    if not folder.is_dir():
        raise ConfigError(f"there is no folder '{folder}' of `dmlcore ood run`")
    return _show(report.write(folder, _words(config)), json)


def _show(comparison: dict[str, Any], json: bool) -> int:
    console.show_json(comparison) if json else show_comparison(comparison)
    return 0


def show_comparison(comparison: dict[str, Any]) -> None:
    """Configurations compared on splits of growing shift, and where the report lies."""
    from dmlcore.protocols.shift.report import percent, shots_of

    def by_split(title: str, text_of: Callable[[dict[str, Any]], str], *last: tuple[str, ...]) -> None:
        rows = []
        for split in comparison["splits"]:
            results = (configuration["splits"][split["id"]] for configuration in configurations.values())
            rows.append((split["id"], f"{split['fid']:.4g}", *(text_of(result) or "-" for result in results)))
        console.show_table([title, "FID", *configurations], [*rows, *last], numbers=True)

    configurations = comparison["configurations"]
    areas = [configuration["area"].get("recall@1") for configuration in configurations.values()]
    last = [("area over FID", "", *(percent(area) or "-" for area in areas))] if any(areas) else []
    by_split("Recall@1, %", lambda result: percent(result.get("recall@1")), *last)
    if comparison["folds"]:
        title = f"{comparison['folds']} models concatenated"
        by_split(title, lambda result: percent(result.get("concatenated", {}).get("recall@1")))
    for k in shots_of(comparison):
        by_split(f"gained by {k} shots", lambda result, k=k: percent(result["few_shot"].get(k, {}).get("gain"), signed=True))
    seeds = ", ".join(map(str, comparison["seeds"]))
    console.show(f"Means over seeds {seeds} with 95 % t-intervals; for gains, over episodes.")
    console.show(f"Report: {', '.join(comparison['files'].values())}")
