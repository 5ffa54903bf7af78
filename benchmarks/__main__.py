"""`python -m benchmarks [losses|evaluation|training|calls|gradients|ensembles|ood|fewshot|gpu|report ...]`.

`losses` measures every cell that `benchmarks/results/losses-cpu.csv` lacks (`--selection`: what the table of goals needs),
`evaluation` retrieval metrics, `training` whole steps, `calls` those of losses on small batches, `gradients` values and
gradients of every loss. `ensembles` compares ensembles with single losses on unseen classes, `ood` does so on splits of growing
shift, and `fewshot` transfers to few samples of new classes. `gpu` checks and measures a CUDA device, and `report` fills the
measured tables of docs/reports/performance.md. The other pages of docs/reports have the name of their benchmark.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

from benchmarks.measuring import Row, environment, read, write

RESULTS = Path(__file__).parent / "results"


def _losses(options: argparse.Namespace) -> list[Row]:
    from benchmarks import losses, table

    file = options.csv or RESULTS / "losses-cpu.csv"
    if options.plot:
        from benchmarks import plots

        print(f"drew {plots.draw(read(file), options.picture or file.with_suffix('.svg'))}")
        return []
    if options.selection:
        cells = table.selection()
    else:
        sizes = [int(n) for n in options.sizes.split(",")] if options.sizes else [128, 512, 2048] if options.quick else None
        widths = tuple(int(d) for d in options.widths.split(",")) if options.widths else (128,) if options.quick else (128, 512)
        rivals = tuple(rival for rival in table.RIVALS if rival != "compiled" or not (options.no_compile or options.quick))
        cells = table.grid(sizes, widths, rivals)
    cells = [cell for cell in cells if options.only is None or options.only in cell.case]
    chosen = {cell.key for cell in cells}
    rows = read(file)
    if options.fresh:
        rows = [row for row in rows if losses.key_of(row) not in chosen]
    minutes = options.minutes or (18.0 if options.selection else None)  # two more for the evaluation
    known = {losses.key_of(row) for row in rows if losses.is_complete(row)}
    rows = losses.run(
        cells,
        environment(),
        rows,
        lambda found: write(found, file),
        seconds=options.seconds,
        cutoff=options.cutoff,
        megabytes=options.megabytes,
        minutes=minutes,
    )
    return [row for row in rows if losses.key_of(row) in chosen - known]


def _evaluation(options: argparse.Namespace) -> list[Row]:
    from benchmarks import evaluation

    about, file = environment(), options.csv or RESULTS / "evaluation-cpu.csv"
    cases = [evaluation.GOAL] if options.selection else evaluation.cases(options.quick)
    rivals = ["product", "dmlcore"] if options.selection else list(evaluation.RIVALS)
    found = evaluation.run(cases, 3 if options.quick else 1 if options.selection else 5, rivals)
    rows = [{"benchmark": "evaluation", **row, **about} for row in found]
    new = {(str(row["case"]), row["rival"]) for row in rows}
    write([row for row in read(file) if (row["case"], row["rival"]) not in new] + rows, file)
    for row in found:
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

    rows = calls.run(options.against, 1 if options.quick else 5)
    for row in rows:
        other = f"  against {row['against_microseconds']:6.0f} us" if options.against else ""
        print(f"{row['case']:20} {row['microseconds']:6.0f} us{other}")
    return [{"benchmark": "calls", **row, **environment()} for row in rows]


def _ensembles(options: argparse.Namespace) -> None:
    from benchmarks.ensembles import report, runs
    from benchmarks.ensembles.data import available

    file = options.csv or RESULTS / ("ensembles-quick.jsonl" if options.quick else "ensembles.jsonl")
    work = Path(tempfile.gettempdir()) / f"dmlcore-ensembles-{os.getuid()}"
    found = available(options.folder)
    wanted = options.only.split(",") if options.only else list(found)[: 1 if options.quick else None]
    datas = {name: data for name, data in found.items() if name in wanted}
    if not datas and not options.plot:
        raise SystemExit(f"none of {', '.join(wanted)} is in --folder {options.folder}; there is: {', '.join(found)}")
    minutes = options.minutes or (5 if options.quick else 90)
    state = runs.Runs(file, options.folder, work, options.processes, minutes, 60 if options.quick else None)
    if not options.plot:
        runs.run_all(state, datas, 2 if options.quick else None)
    report.as_json(state, file.with_suffix(".json"))
    if not options.quick:
        report.write(state, options.page)
        print(f"drew {report.draw(state, options.picture or file.with_suffix('.svg'))}")
        print(f"drew {report.draw_weights(state, file.with_name(file.stem + '-weights.svg'))}")


def _fewshot(options: argparse.Namespace) -> None:
    from benchmarks import fewshot

    file = options.csv or RESULTS / ("fewshot-quick.json" if options.quick else "fewshot.json")
    work = Path(tempfile.gettempdir()) / f"dmlcore-fewshot{'-quick' if options.quick else ''}-{os.getuid()}"
    only = options.only.split(",") if options.only else None
    limit = options.minutes or (5 if options.quick else 90)
    if options.plot:
        found = json.loads(file.read_text())
    else:
        found = fewshot.run(
            work, file, options.folder, processes=options.processes, minutes=limit, quick=options.quick, only=only
        )
    if not options.quick and only is None:
        fewshot.write_page(found, options.page or fewshot.PAGE)
        print(f"drew {fewshot.draw(found, options.picture or file.with_suffix('.svg'))}")
    print(f"results: {file}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    choices = ["losses", "evaluation", "training", "calls", "gradients", "ensembles", "ood", "fewshot", "gpu", "report", []]
    parser.add_argument("cases", nargs="*", choices=choices, help="losses and evaluation by default")
    parser.add_argument("--selection", action="store_true", help="what the table of goals needs, in at most 20 minutes")
    parser.add_argument("--quick", action="store_true", help="small sizes, no torch.compile")
    parser.add_argument("--sizes", help="numbers of samples N, comma-separated, instead of all (losses)")
    parser.add_argument("--widths", help="dimensions d, comma-separated, instead of 128,512 (losses)")
    parser.add_argument("--only", help="part of a loss case's name")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--fresh", action="store_true", help="measure again what the CSV file has (losses)")
    parser.add_argument("--seconds", type=float, default=2.5, help="of repeats per cell (losses)")
    parser.add_argument("--cutoff", type=float, default=120.0, help="wall seconds after which a cell is given up (losses)")
    parser.add_argument(
        "--megabytes", type=int, help="memory a cell may take; three quarters of what is free by default (losses)"
    )
    parser.add_argument("--minutes", type=float, help="end after that; 18 with --selection (losses), 8 (gpu)")
    parser.add_argument("--plot", action="store_true", help="draw the CSV file instead of measuring (losses; needs matplotlib)")
    parser.add_argument("--picture", type=Path, help="where --plot draws; beside the CSV file by default")
    parser.add_argument("--csv", type=Path, help="instead of benchmarks/results/NAME-cpu.csv")
    parser.add_argument("--against", help="interpreter of another installation, measured in turn (calls)")
    parser.add_argument("--folder", type=Path, help="of the feature tables (ensembles, ood, fewshot)")
    parser.add_argument("--work", type=Path, help="of unfinished results; the same folder goes on (ood)")
    parser.add_argument("--processes", type=int, default=2, help="at a time (ensembles, ood, fewshot)")
    parser.add_argument("--json", type=Path, help="write the new rows as JSON")
    parser.add_argument("--page", type=Path, help="instead of docs/reports/gradients.md or docs/reports/performance.md")
    options = parser.parse_args()
    rows: list[Row] = []
    for name in options.cases or ["losses", "evaluation"]:
        if name == "gradients":
            from benchmarks import gradients

            print(gradients.write(options.page, options.only))
        elif name == "gpu":
            from benchmarks.gpu import tables

            tables.main(options.quick, options.minutes, options.csv, options.json)
            return
        elif name == "ood":
            from benchmarks import ood

            ood.main(options)
            return
        elif name == "ensembles":
            _ensembles(options)
        elif name == "fewshot":
            _fewshot(options)
        elif name == "training":
            rows += _training(options)
        elif name == "calls":
            rows += _calls(options)
        elif name == "report":
            from benchmarks import report

            print(report.write(options.page, RESULTS if options.csv is None else options.csv))
        else:
            rows += _losses(options) if name == "losses" else _evaluation(options)
            if name == "losses" and options.selection and not options.plot and not options.only and options.csv is None:
                rows += _evaluation(options)
    if options.json:
        write(rows, None, options.json)


if __name__ == "__main__":
    main()
