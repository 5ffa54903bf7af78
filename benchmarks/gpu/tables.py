"""All tables in turn, each within its share of the time; rows are kept as they come."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu import checks, evaluation, losses
from benchmarks.gpu.devices import Cuda, Device, why_not_measured
from benchmarks.gpu.turns import Budget
from benchmarks.measuring import Row, write

RESULTS = Path(__file__).parents[1] / "results"


@dataclass(frozen=True)
class Plan:
    """What is measured, and for how long.

    Attributes:
        sizes, widths: of the losses.
        small: sizes of the table of calls.
        contrast, contrast_width: batches of the table `infonce`.
        evaluated: numbers of samples of the evaluator.
        minutes: for everything; a table begins with what those before it left.
        seconds: of repeats per group of arms.
        repeats: of every arm, where the time allows.
        tests: run the tests marked `gpu` as well as the quick check.
    """

    sizes: tuple[int, ...] = (128, 512, 2048, 8192, 32768)
    widths: tuple[int, ...] = (128, 512)
    small: tuple[int, ...] = (128, 512)
    contrast: tuple[int, ...] = (32768, 65536)
    contrast_width: int = 512
    evaluated: tuple[int, ...] = (60_000, 1_000_000)
    minutes: float = 8.0
    seconds: float = 1.0
    repeats: int = 30
    tests: bool = True


QUICK = Plan((512, 2048), (128,), (512,), (8192,), 512, (60_000,), 2.0, 0.3, 10, False)
SHARES = {"correctness": 0.15, "calls": 0.05, "infonce": 0.1, "evaluation": 0.25, "losses": 0.44}
"""Of the whole time, in this order; what a table leaves goes to the last, which fills it."""


def run(
    plan: Plan,
    device: Device,
    keep: Callable[[list[Row]], None],
    say: Callable[[str], None] = print,
    test: Callable[[float], Row] = checks.device_tests,
) -> list[Row]:
    """Check and measure.

    Args:
        plan: sizes and times.
        device: whose clock counts.
        keep: gets all rows after every table.
        say: gets a line per row.
        test: runs the tests of the device within some seconds; a row.

    Returns:
        All rows.
    """
    whole, began = 60 * plan.minutes, device.now()
    about = device.about()
    rows: list[Row] = []

    def add(new_rows: Iterator[Row]) -> None:
        for row in new_rows:
            rows.append({"benchmark": "gpu", **row, **about})
            say(line(row))
        keep(rows)

    build: Row = {"table": "build", "case": "kernels", **device.build()}
    add(iter([build]))
    if build["status"] != "ok":
        return rows
    ends = began
    for table, share in SHARES.items():
        ends = began + whole if table == "losses" else ends + share * whole
        budget = Budget(device, ends, plan.repeats)
        if table == "correctness":
            add(checks.quick(device))
            if plan.tests:
                add(iter([test(budget.left())]))
        elif table == "calls":
            add(losses.run_graphs(device, budget, plan.small, plan.widths))
        elif table == "infonce":
            add(losses.run_contrast(device, budget, plan.contrast, plan.contrast_width, 4 * plan.seconds))
        elif table == "evaluation":
            add(evaluation.run(device, budget, plan.evaluated, plan.widths, 4 * plan.seconds))
        else:
            add(losses.run_losses(device, budget, plan.sizes, plan.widths, plan.seconds))
    return rows


def line(row: Row) -> str:
    """A row as text."""
    names = [f"{row[name]}" for name in ("table", "case", "rival") if row.get(name)]
    names += [f"{name}={row[name]}" for name in ("n", "d") if name in row]
    names += [str(row[name]) for name in ("dtype", "precision") if name in row]
    if row["status"] != "ok" or "milliseconds" not in row:
        return " ".join([*names, row["status"], str(row.get("detail", ""))]).strip()
    texts = [f"{row['milliseconds']:.3f} ms"]
    texts += [f"{row['ratio']:.2f} x products"] if "ratio" in row else []
    texts += [f"{row['device_ms']:.3f} ms on the device"] if "device_ms" in row else []
    texts += [f"{row['gigapairs']:.1f} gigapairs/s"] if "gigapairs" in row else []
    texts += [f"{row['peak_mb']:.1f} MB"] if "peak_mb" in row else []
    return " ".join([*names, "  ", *texts])


def failed(rows: list[Row]) -> list[Row]:
    """Rows that must not be: a build or a result that is wrong, or an own arm that does not run. Rivals may fail."""
    own = ("fused", "fused graph", "dmlcore")
    return [
        row
        for row in rows
        if row["status"] == "error" and (row["table"] in ("build", "correctness") or row.get("rival") in own)
    ]


def main(quick: bool, minutes: float | None, csv: Path | None, json: Path | None) -> None:
    """The command: measure the current device into `benchmarks/results/gpu.csv` and `gpu.json`.

    Raises:
        SystemExit: 2 where there is no CUDA device, 1 where a check or an own arm failed.
    """
    reason = why_not_measured()
    if reason:
        print(reason, file=sys.stderr)
        raise SystemExit(2)
    plan = QUICK if quick else Plan()
    if minutes:
        plan = Plan(**{**vars(plan), "minutes": minutes})
    csv = csv or RESULTS / ("gpu-quick.csv" if quick else "gpu.csv")
    json = json or csv.with_suffix(".json")
    rows = run(plan, Cuda(), lambda rows_so_far: write(rows_so_far, csv, json), lambda text: print(text, flush=True))
    print(f"{len(rows)} rows in {csv} and {json}")
    wrong = failed(rows)
    for row in wrong:
        print(f"failed: {line(row)}", file=sys.stderr)
    raise SystemExit(1 if wrong else 0)
