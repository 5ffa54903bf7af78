"""The flags of `python -m benchmarks field`. Every flag that is not here is a setting or an option of `dmlcore train`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.field.arms import ENSEMBLES, SINGLES, resolve, source_of
from dmlcore.errors import ConfigError, DmlcoreError, Interrupted, status_of
from dmlcore.training.sources import Source

DESCRIPTION = """Compare single losses with ensembles on your data, as "A Metric Learning Reality Check" does: an equal search
for each arm on folds of the training classes, then repeated training of what it found, measured on the test classes apart and
side by side. The same command goes on after an interruption. Settings and options of `dmlcore train` go for all arms, such as
--data cub --cub.path DIR --model torchvision/resnet50 --steps 2000."""


def parser() -> argparse.ArgumentParser:
    """The flags of the comparison itself."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks field", description=DESCRIPTION, allow_abbrev=False)
    add = parser.add_argument
    add("--recipe", default="reality_check", help="that all arms begin with, or none (default: %(default)s, BN-Inception)")
    add("--config", type=Path, help="TOML file with settings and options of all arms")
    names = "losses, sets of losses (ms,triplet), wel, wedl, wedl_c, default or files of settings, with ; between them"
    add("--arms", default=";".join((*SINGLES, *ENSEMBLES)), help=f"{names} (default: %(default)s)")
    add("--search", action="append", default=[], help="what is searched, as of `dmlcore tune`; may be given several times")
    add("--trials", type=int, default=50, help="of each arm (default: %(default)s)")
    add("--folds", type=int, default=4, help="of the training and validation classes (default: %(default)s)")
    add("--seeds", type=int, default=10, help="number of repeats of each arm (default: %(default)s)")
    add("--pruner", default="none", help="gives up trials that fall behind: median, hyperband or none (default: %(default)s)")
    add("--processes", type=int, default=1, help="at a time, each with one thread and, where there are several, its own GPU")
    add("--devices", help="of CUDA for the processes in turn, as 0,1,2,3 (default: all that are visible)")
    add(
        "--work",
        type=Path,
        default=Path("runs/field"),
        help="folder of all results; the same one goes on (default: %(default)s)",
    )
    add("--page", type=Path, help="of the report, a .md file (default: report.md in the folder of --work)")
    add("--note", default="", help="a paragraph at the beginning of the report")
    add("--estimate", action="store_true", help="time a few steps and evaluations of each arm, say how long all takes, and end")
    add("--report", action="store_true", help="write the page from the results that are there, and end")
    add("--json", type=Path, help="write the results as JSON too")
    return parser


def main(words: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    options, rest = parser().parse_known_args(words)
    try:
        return _main(options, rest)
    except KeyboardInterrupt as interrupt:
        print(f"\n{interrupt}" if isinstance(interrupt, Interrupted) else "\ninterrupted", file=sys.stderr)
        return status_of(interrupt)
    except DmlcoreError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status


def _main(options: argparse.Namespace, rest: Sequence[str]) -> int:
    from benchmarks.field import estimate, page, stages
    from dmlcore.protocols.tuning import space

    sources = [] if options.recipe == "none" else [Source.of({"recipe": options.recipe})]
    if options.config is not None:
        sources.append(Source.read(options.config))
    typed = source_of(rest)
    arms = resolve(options.arms.split(";"), [*sources, typed])
    budget = stages.Budget(options.trials, options.folds, options.seeds, options.pruner, space.written(options.search, []))
    if options.estimate:
        costs = estimate.run(arms, budget, options.processes, _say)
        _write_json(options.json, {name: asdict(each) for name, each in costs.items()})
        return 0
    file = options.page or options.work / "report.md"
    try:
        if options.report:
            results = stages.read(arms, budget, options.work)
        else:
            place = stages.Place(options.work, options.processes, _devices(options, arms[0].config.settings.run.device))
            results = stages.run(arms, budget, place, _say)
    except Interrupted:
        page.write(stages.read(arms, budget, options.work), arms, budget, options.note, file)
        raise
    page.write(results, arms, budget, options.note, file)
    _write_json(options.json, asdict(results))
    _say(f"Look at it: {file}")
    return 0


def _devices(options: argparse.Namespace, device: str) -> tuple[str, ...]:
    """The devices of the processes; none: they compute on what the settings say."""
    if options.devices is None and (options.processes == 1 or device == "cpu"):
        return ()
    if device not in ("auto", "cuda"):
        raise ConfigError(f"device is {device}, but --processes and --devices give each process one. Leave --device out")
    if options.devices is not None:
        return tuple(name.strip() for name in options.devices.split(","))
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return tuple(visible.split(",")) if visible else tuple(str(n) for n in range(torch.cuda.device_count()))


def _write_json(file: Path | None, content: dict[str, Any]) -> None:
    if file is not None:
        file.write_text(json.dumps(content, indent=1) + "\n")


def _say(line: str) -> None:
    print(line, flush=True)
