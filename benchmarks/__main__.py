"""`python -m benchmarks [NAME ...]`, one or several of the following. Pages of docs/reports have the names of
their benchmarks.

- `losses` measures every case and size that `benchmarks/results/losses-cpu.csv` lacks.
- `evaluation` measures retrieval metrics.
- `training` measures whole steps.
- `calls` measures losses on small batches.
- `situations` measures what users meet beside large batches.
- `decoding` measures the reading of pictures.
- `whole_run` measures what part of a run lies outside its steps.
- `products` measures the matrix products beside the processor's peak.
- `starts` measures the opening of very many pictures.
- `house` counts the size and shape of the sources.
- `gradients` checks values and gradients of every loss.
- `fidelity` checks the published equations.
- `ensembles` compares ensembles with single losses on unseen classes.
- `defaults` chooses losses for data that did not choose them.
- `arms` compares ensembles with single losses that have the same tricks.
- `outside` compares the default for pictures with plain loops around another library's losses.
- `compression` compares the maps between which a compressor chooses.
- `field ...`, with flags of its own, compares losses and ensembles on the user's data: `field --help`.
- `ood` compares losses on splits of growing shift.
- `fewshot` transfers to few samples.
- `features` trains on features of good networks.
- `pictures` trains on pictures in two precisions.
- `distributed` runs losses on several processes, and with `--evaluation` the exact evaluation.
- `serving` loads a server.
- `scale` uses a model on a million rows.
- `gpu` checks and measures a CUDA device.
- `report` fills the measured tables of docs/reports/performance.md.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from benchmarks.measuring import Row, environment, read, write

RESULTS = Path(__file__).parent / "results"
# An action measures, prints and keeps its own file; it returns new rows for --json, or None where --json is not for it.
Action = Callable[[argparse.Namespace], list[Row] | None]


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _losses(options: argparse.Namespace) -> list[Row]:
    from benchmarks import losses

    file = options.csv or RESULTS / "losses-cpu.csv"
    if options.plot:
        from benchmarks import plots

        print(f"drew {plots.draw(read(file), options.picture or file.with_suffix('.svg'))}")
        return []
    measurements = _measurements(options)
    keys = {measurement.key for measurement in measurements}
    rows = read(file)
    if options.fresh:
        rows = [row for row in rows if losses.key_of(row) not in keys]
    complete = {losses.key_of(row) for row in rows if losses.is_complete(row)}
    rows = losses.run(
        measurements,
        environment(),
        rows,
        lambda rows: write(rows, file),
        seconds=options.seconds,
        cutoff=options.cutoff,
        megabytes=options.megabytes,
        minutes=options.minutes or (18.0 if options.selection else None),  # two more for the evaluation
    )
    new = [row for row in rows if losses.key_of(row) in keys - complete]
    # The table of goals speaks of the evaluator too.
    if options.selection and not (options.only or options.case or options.csv):
        new += _evaluation(options)
    return new


def _measurements(options: argparse.Namespace) -> list:
    """What the flags ask to measure of losses."""
    from benchmarks import cases

    if options.selection:
        measurements = cases.selection()
    else:
        sizes = _numbers(options.sizes) if options.sizes else [128, 512, 2048] if options.quick else None
        widths = tuple(_numbers(options.widths)) if options.widths else (128,) if options.quick else (128, 512)
        rivals = options.rivals.split(",") if options.rivals else cases.RIVALS
        without = {"compiled"} if options.no_compile or options.quick else set()
        measurements = cases.grid(sizes, widths, tuple(rival for rival in rivals if rival not in without))
    cases, rivals = (text.split(",") if text else None for text in (options.case, options.rivals))
    return [
        measurement
        for measurement in measurements
        if (options.only is None or options.only in measurement.case)
        and (cases is None or measurement.case in cases)
        and (rivals is None or measurement.rival in rivals)
    ]


def _evaluation(options: argparse.Namespace) -> list[Row]:
    from benchmarks import evaluation

    about, file = environment(), options.csv or RESULTS / "evaluation-cpu.csv"
    cases = [evaluation.GOAL] if options.selection else evaluation.cases(options.quick, options.only)
    rivals = ["product", "dmlcore"] if options.selection else (options.rivals or ",".join(evaluation.RIVALS)).split(",")
    sizes = _numbers(options.sizes) if options.sizes and not options.selection else []
    repeats = 3 if options.quick else 1 if options.selection else 5
    measured = [evaluation.run_large(size) for size in sizes] or evaluation.run(cases, repeats, rivals)
    rows = [{"benchmark": "evaluation", **row, **about} for row in measured]
    new = {(str(row["case"]), row["rival"]) for row in rows}
    write([row for row in read(file) if (row["case"], row["rival"]) not in new] + rows, file)
    for row in measured:
        print("  ".join(f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()))
    return rows


def _training(options: argparse.Namespace) -> list[Row]:
    from benchmarks import training

    file = options.csv or RESULTS / "training-cpu.csv"
    rows = [{"benchmark": "training", **row, **environment()} for row in training.run(4 if options.quick else 60)]
    write(rows, file)
    for row in rows:
        print(f"{row['case']:36} {row['images_per_second']:8.0f} images/s  {row['ratio_to_one_loss']:.3f} of one loss")
    return rows


def _calls(options: argparse.Namespace) -> list[Row]:
    from benchmarks import calls

    rows = []
    for width in _numbers(options.widths) if options.widths else [calls.WIDTH]:
        rows += calls.run(options.against, 1 if options.quick else 5, width)
    for row in rows:
        print(calls.text(row))
    return [{"benchmark": "calls", **row, **environment()} for row in rows]


def _situations(options: argparse.Namespace) -> list[Row]:
    from benchmarks import situations

    measured = situations.run(options.against, options.only, *((0.05, 1) if options.quick else ()))
    print("\n".join(situations.text(row) for row in measured))
    rows = [{"benchmark": "situations", **row, **environment()} for row in measured]
    file = options.csv or RESULTS / ("situations-cpu.csv" if options.against else "situations-now.csv")
    new = {row["case"] for row in rows}
    write([row for row in read(file) if row["case"] not in new] + rows, file)
    return rows


def _decoding(options: argparse.Namespace) -> list[Row]:
    from benchmarks import decoding

    rows = [{"benchmark": "decoding", **row, **environment()} for row in decoding.run(1.0 if options.quick else 15.0)]
    write(rows, options.csv or RESULTS / "decoding-cpu.csv")
    for row in rows:
        print(f"{row['case']:36} {row['rival']:12} {row['microseconds']:7.0f} us  {row['ratio_to_torchvision']:.2f}")
    return rows


def _starts(options: argparse.Namespace) -> list[Row]:
    from benchmarks import starts

    sizes = tuple(_numbers(options.sizes)) if options.sizes else starts.SIZES[: 1 if options.quick else None]
    measured = starts.run(sizes, options.against, options.only)
    rows = [{"benchmark": "starts", **row, **environment()} for row in measured]
    file = options.csv or RESULTS / "starts-cpu.csv"
    new = {starts.key_of(row) for row in rows}
    write([row for row in read(file) if starts.key_of(row) not in new] + rows, file)
    return rows


def _house(options: argparse.Namespace) -> None:
    from benchmarks import house

    figures = house.measure(options.tree or house.ROOT, options.against or sys.executable)
    print(house.text(figures))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


def _gradients(options: argparse.Namespace) -> list[Row]:
    from benchmarks import gradients

    print(gradients.write(options.page, options.only))
    return []


def _ensembles(options: argparse.Namespace) -> list[Row]:
    from benchmarks.ensembles import drawing, report, runs
    from benchmarks.ensembles.data import available

    file = options.csv or RESULTS / ("ensembles-quick.jsonl" if options.quick else "ensembles.jsonl")
    work = Path(tempfile.gettempdir()) / f"dmlcore-ensembles-{os.getuid()}"
    all_data = available(options.folder)
    names = options.only.split(",") if options.only else list(all_data)[: 1 if options.quick else None]
    data = {name: all_data[name] for name in all_data if name in names}
    if not data and not options.plot:
        raise SystemExit(f"none of {', '.join(names)} is in --folder {options.folder}; there is: {', '.join(all_data)}")
    minutes = options.minutes or (5 if options.quick else 90)
    state = runs.Runs(file, options.folder, work, options.processes, minutes, 60 if options.quick else None)
    if not options.plot:
        runs.run_all(state, data, 2 if options.quick else None)
    report.as_json(state, file.with_suffix(".json"))
    if not options.quick:
        report.write(state, options.page)
        print(f"drew {drawing.draw(state, options.picture or file.with_suffix('.svg'))}")
        print(f"drew {drawing.draw_short(state, file.with_name(file.stem + '-short.svg'))}")
        print(f"drew {drawing.draw_weights(state, file.with_name(file.stem + '-weights.svg'))}")
    return []


def _main_of(module: str) -> Action:
    """The command of a module that reads the options itself."""
    return lambda options: _module(module).main(options)


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"benchmarks.{name}")


def _fewshot(options: argparse.Namespace) -> list[Row]:
    from benchmarks import fewshot

    file = options.csv or RESULTS / ("fewshot-quick.json" if options.quick else "fewshot.json")
    work = Path(tempfile.gettempdir()) / f"dmlcore-fewshot{'-quick' if options.quick else ''}-{os.getuid()}"
    only = options.only.split(",") if options.only else None
    limit = options.minutes or (5 if options.quick else 90)
    if options.plot:
        results = json.loads(file.read_text())
    else:
        results = fewshot.run(
            work, file, options.folder, processes=options.processes, minutes=limit, quick=options.quick, only=only
        )
    if not options.quick and only is None:
        fewshot.write_page(results, options.page or fewshot.PAGE)
        print(f"drew {fewshot.draw(results, options.picture or file.with_suffix('.svg'))}")
    print(f"results: {file}")
    return []


def _defaults(options: argparse.Namespace) -> None:
    from benchmarks.defaults import report, runs, sets

    file = options.csv or RESULTS / "defaults.jsonl"
    if not options.plot:
        work = Path(tempfile.gettempdir()) / f"dmlcore-defaults-{os.getuid()}"
        data = sets.available(options.folder)
        runs.run(data, None, file, options.folder, work, options.processes)
        runs.run(data, report.picture_rate(runs.read(file)), file, options.folder, work, options.processes)
    rows = runs.read(file)
    report.write(rows, options.page or report.PAGE)
    print(f"drew {report.draw(rows, options.picture or file.with_suffix('.svg'))}")
    print(f"drew {report.draw_tricks(rows, file.with_name(file.stem + '-tricks.svg'))}")


def _pictures(options: argparse.Namespace) -> None:
    from benchmarks import pictures

    pictures.main(options.folder, options.weights, options.plot)


def _distributed(options: argparse.Namespace) -> None:
    from benchmarks import distributed, distributed_evaluation, large_memory, large_model, many_classes

    sizes = [] if options.sizes is None else [tuple(_numbers(options.sizes))]
    if options.evaluation:
        distributed_evaluation.main(*(tuple((2, count) for count in counts) for counts in sizes))
    elif options.classes is not None:
        many_classes.main(options.classes, *sizes)
    elif options.memory is not None:
        large_memory.main(options.memory, *sizes)
    elif options.model is not None:
        large_model.main(options.model)
    else:
        distributed.main(*sizes)


def _gpu(options: argparse.Namespace) -> None:
    from benchmarks.gpu import tables
    from benchmarks.gpu.first import command

    if options.first:
        command.main(options.minutes, options.csv, options.fresh)
    tables.main(options.quick, options.minutes, options.csv, options.json)


def _fidelity(options: argparse.Namespace) -> None:
    from benchmarks.fidelity import page

    differing = page.run()
    print(f"wrote {page.PAGE}")
    if differing:
        raise SystemExit("differs from the publication: " + "; ".join(row.component for row in differing))


def _report(options: argparse.Namespace) -> list[Row]:
    from benchmarks import report

    print(report.write(options.page, RESULTS if options.csv is None else options.csv))
    return []


ACTIONS: dict[str, Action] = {
    "losses": _losses,
    "evaluation": _evaluation,
    "training": _training,
    "calls": _calls,
    "situations": _situations,
    "decoding": _decoding,
    "products": _main_of("products"),
    "whole_run": _main_of("whole_run"),
    "starts": _starts,
    "house": _house,
    "gradients": _gradients,
    "fidelity": _fidelity,
    "ensembles": _ensembles,
    "ood": _main_of("ood"),
    "fewshot": _fewshot,
    "defaults": _defaults,
    "arms": _main_of("arms.command"),
    "compression": _main_of("compression"),
    "outside": _main_of("outside.command"),
    "features": lambda options: _module("features").main(options.folder, options.processes, options.plot),
    "pictures": _pictures,
    "serving": lambda options: _module("serving").main(options.plot),
    "scale": lambda options: _module("scale").main(options.plot, *map(int, [options.sizes] if options.sizes else [])),
    "distributed": _distributed,
    "gpu": _gpu,
    "report": _report,
}


def _parser() -> argparse.ArgumentParser:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, formatter_class=plain)
    add = parser.add_argument
    add("benchmarks", nargs="*", choices=[*ACTIONS, []], help="losses and evaluation by default")
    add("--selection", action="store_true", help="what the table of goals needs, in at most 20 minutes")
    add("--quick", action="store_true", help="small sizes, no torch.compile")
    add("--first", action="store_true", help="the first minutes on a device, case by case; the same command goes on (gpu)")
    add("--evaluation", action="store_true", help="exact evaluation instead of losses (distributed)")
    numbers = "comma-separated, instead of all (losses); of rows (scale); of pictures (starts); a large set (evaluation)"
    add("--sizes", help=f"of samples, {numbers}; of processes (distributed), or of vectors on two (distributed --evaluation)")
    add("--widths", help="dimensions d, comma-separated, instead of 128,512 (losses) or 64 (calls)")
    add("--case", help="names of loss cases, comma-separated, instead of all (losses)")
    add("--rivals", help="comma-separated, instead of all: fused, plain, compiled, pml (losses)")
    add("--only", help="part of a case's name")
    add("--no-compile", action="store_true", help="leave torch.compile out")
    add("--fresh", action="store_true", help="measure again what the file has (losses, gpu --first)")
    add("--seconds", type=float, default=2.5, help="of repeats per measurement (losses)")
    add("--cutoff", type=float, default=120.0, help="wall seconds after which a measurement is given up (losses)")
    add("--megabytes", type=int, help="memory a measurement may take; three quarters of what is free by default (losses)")
    add("--minutes", type=float, help="end after that; 18 with --selection (losses), 8 (gpu)")
    add("--plot", action="store_true", help="draw the CSV file instead of measuring (losses; needs matplotlib)")
    add("--picture", type=Path, help="where --plot draws; beside the CSV file by default")
    add("--csv", type=Path, help="instead of benchmarks/results/NAME-cpu.csv")
    add("--against", help="interpreter of another installation, in turn (calls, situations, starts), or that of --tree (house)")
    add("--tree", type=Path, help="root of another clone (house)")
    tables = "ensembles, ood, fewshot, features, defaults, arms, outside"
    add("--folder", type=Path, help=f"of the feature tables ({tables}), of photographs (pictures)")
    add("--weights", type=Path, help="of torchvision's mobilenet_v2, a .pth file (pictures)")
    add("--work", type=Path, help="of unfinished results; the same folder goes on (ood)")
    add("--classes", type=int, help="of a loss whose classes processes divide, instead of small ones (distributed)")
    add("--memory", type=int, help="entries that a loss is compared with, instead of small losses (distributed)")
    add("--model", type=int, help="million weights of a model that processes divide, instead of small losses (distributed)")
    add("--processes", type=int, default=2, help="at a time (ensembles, ood, fewshot, defaults, arms)")
    add("--json", type=Path, help="write the new rows as JSON")
    add("--page", type=Path, help="instead of docs/reports/gradients.md or docs/reports/performance.md")
    return parser


def main() -> None:
    if sys.argv[1:2] == ["field"]:  # all flags of `dmlcore train` are its flags too
        from benchmarks.field import command

        raise SystemExit(command.main(sys.argv[2:]))
    options = _parser().parse_args()
    names = options.benchmarks or ["losses", "evaluation"]
    if not options.benchmarks and options.selection:
        names = ["losses"]  # measures the evaluator itself
    results = [ACTIONS[name](options) for name in names]
    if options.json and None not in results:
        write([row for rows in results for row in rows or []], None, options.json)


if __name__ == "__main__":
    main()
