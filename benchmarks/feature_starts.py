"""How the embedding of features begins, at what rate, and how long it trains: a part of `python -m benchmarks features`. The
page is docs/reports/features.md. This text and the arms were written before any test figure of theirs existed.

**Arms.** `today` is the default: a linear map that begins as the identity, rate 5e-4, 700 steps. `features` begins so too.
`hidden` has 256 hidden ReLU units of random weights beside the features, and a linear map of both that begins as their
principal axes, as many as there are features and at least 256. `fresh` has the same hidden units and a map at random, 256
numbers. All but `today` are evaluated every 25 steps, and none is compressed but where its name says so. The arms were drawn up
after validation curves of the first seed. Two further rows follow from arms, and train nothing more:

- `race, whole runs`: `features` and `hidden` at 2e-3 for 350 steps each. The better one on validation classes is taken.
- `race, short runs`: both for 175 steps. The better one on validation classes trains again, for 350.

Both cost 700 steps, as `today`. A `blend` lies between the start and the end of a run: each weight is that of the start and a
share of what training changed. The share of best validation MAP@R is taken.

**Rule.** Among `FIXED` the arm of the highest mean validation MAP@R over tables is taken. A race is taken instead if its mean
is more than .3 points higher. What is taken becomes the default for features if its test MAP@R minus that of `today` is above
zero by the interval over tables, is nowhere below -.5, and if it is nowhere more than .3 behind the raw features.

**Second decision.** The rule changed nothing: one fixed start gains on some tables and costs on others, and the interval
between such tables holds zero. What follows was written after that, and before any figure of the seeds in `FRESH` existed. On
these, `race, whole runs` is compared with `today` once more. It becomes the default if its mean gain on test classes is above
zero by the interval between splits of the same table, is nowhere below -.5, and if it is nowhere more than .3 behind the raw
features.

**Target.** On every table at most .3 behind the best of `FIXED` in hindsight, and never below the raw features.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks import rows as kept_rows
from benchmarks.defaults.sets import SETS, DataSet, prepare
from benchmarks.markdown import table
from dmlcore.reports.intervals import mean_and_half

RESULTS = Path(__file__).parent / "results" / "feature_starts.jsonl"
SEEDS = 2  # three were planned; time ended the runs before any test figure was read
FRESH = (2, 3)  # seeds of the second decision
HIDDEN = 256  # units
TABLES = {
    data.name: data
    for data in (
        *(SETS[name] for name in ("intents", "groceries", "emoji", "characters", "definitions", "letters")),
        DataSet("packages", "features", "packages_minilm.npz", "57 sections of package descriptions, MiniLM features"),
        DataSet("fortunes", "features", "fortunes_minilm.npz", "40 collections of sayings, MiniLM features"),
        DataSet("font features", "features", "fonts_mobilenetv2.npz", "187 fonts, MobileNetV2 features of single characters"),
    )
}
_OFTEN = {"eval_every": 25}
_FEATURES: dict[str, Any] = {"model": "identity", **_OFTEN}
_PLAIN: dict[str, Any] = {"model": "mlp", "compress": 0, **_OFTEN}
_HIDDEN: dict[str, Any] = {**_PLAIN, "head_start": "principal"}
_FRESH: dict[str, Any] = {**_PLAIN, "head_start": "random", "embedding_dim": 256}
ARMS: dict[str, dict[str, Any]] = {
    "today": {**_FEATURES, "learning_rate": 5e-4, "eval_every": 100},
    "features, 1e-3": {"learning_rate": 1e-3, **_FEATURES},
    "features, 2e-3, 350 steps": {"learning_rate": 2e-3, "steps": 350, **_FEATURES},
    "features, 4e-3, 350 steps": {"learning_rate": 4e-3, "steps": 350, **_FEATURES},
    "hidden, 1e-3": {"learning_rate": 1e-3, **_HIDDEN},
    "hidden, 1e-3, 350 steps": {"learning_rate": 1e-3, "steps": 350, **_HIDDEN},
    "hidden, 2e-3, 350 steps": {"learning_rate": 2e-3, "steps": 350, **_HIDDEN},
    "hidden, 1e-3, patience 6": {"learning_rate": 1e-3, "patience": 6, **_HIDDEN},
    "fresh, 5e-4": {"learning_rate": 5e-4, **_FRESH},
    "fresh, 2e-3": {"learning_rate": 2e-3, **_FRESH},
    "fresh, 2e-3, compressed": {"learning_rate": 2e-3, **_FRESH, "compress": 64},
    "features, 2e-3, 175 steps": {"learning_rate": 2e-3, "steps": 175, **_FEATURES},
    "hidden, 2e-3, 175 steps": {"learning_rate": 2e-3, "steps": 175, **_HIDDEN},
}
FIXED = tuple(name for name in ARMS if "175" not in name)
RACED = ("features, 2e-3, {} steps", "hidden, 2e-3, {} steps")
RACES = {"race, whole runs": 350, "race, short runs": 175}  # steps of a trial
RACE = "race, whole runs"
CONFIRMED = ("today", *(arm.format(RACES[RACE]) for arm in RACED))  # arms that have the fresh seeds
BLENDED = ("features, 2e-3, 350 steps", "hidden, 1e-3, 350 steps")
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
MARGIN, BEHIND_TODAY, BEHIND_RAW = 0.3, 0.5, 0.3  # points of MAP@R, as the rule says

Rows = dict[tuple[str, str, int], dict[str, Any]]  # by table, arm and seed


def trained(name: str, file: str, arm: str, seed: int, settings: dict[str, Any], out: Path) -> dict[str, Any]:
    """Train an arm in a folder, and return its row.

    Args:
        name: of the data.
        file: of its split.
        arm: name.
        seed: of weights and batches.
        settings: of `dmlcore.train`.
        out: folder of the run.
    """
    import torch

    from dmlcore.training import train

    torch.set_num_threads(1)
    began = time.process_time()
    result = train(out=out, data=file, seed=seed, device="cpu", report=False, **settings)
    row = {"data": name, "arm": arm, "seed": seed, "chosen_step": result["chosen_step"], "steps": result["steps_done"]}
    row |= {part: _points(result["metrics"][part]) for part in ("validation", "test")}
    raw = next(values for baseline, values in result["baselines"].items() if baseline.startswith("raw"))
    return {**row, "raw": _points(raw["test"]), "cpu_seconds": round(time.process_time() - began, 2)}


def _cell(name: str, file: str, arm: str, seed: int) -> list[dict[str, Any]]:
    """In a child: the row of an arm, and that of its blend if it has one."""
    import numpy as np

    settings = dict(ARMS[arm])
    if arm.startswith("hidden"):
        with np.load(file) as arrays:
            settings["embedding_dim"] = max(HIDDEN, arrays["x"].shape[1])
    with tempfile.TemporaryDirectory(prefix="starts-") as folder:
        row = trained(name, file, arm, seed, settings, Path(folder) / "run")
        return [row, {**row, "arm": f"{arm}, blend", **_blend(Path(folder) / "run")}] if arm in BLENDED else [row]


def _points(metrics: dict[str, float]) -> dict[str, float]:
    return {name: round(100 * metrics[key], 3) for name, key in (("R@1", "recall@1"), ("MAP@R", "map@r"))}


def _blend(out: Path) -> dict[str, Any]:
    """What lies between the start and the best step of a run: the share that validation classes choose, and its figures."""
    import torch

    from dmlcore.evaluation import evaluating
    from dmlcore.serving import TrainedRun
    from dmlcore.training.beginning import first_model

    run = TrainedRun(out, device="cpu")
    splits = run.open()
    start = first_model(run.config, splits.sample_shape, splits.kind, torch.device("cpu"), splits.train, run.folder)
    ends = start.state_dict(), {name: value.clone() for name, value in run.model.state_dict().items()}

    def figures(share: float, part: str) -> dict[str, float]:
        run.model.load_state_dict({name: torch.lerp(value, ends[1][name], share) for name, value in ends[0].items()})
        return _points(evaluating.evaluate_model(run.model, getattr(splits, part), workers=0))

    by_share = {share: figures(share, "validation") for share in SHARES}
    best = max(SHARES, key=lambda share: by_share[share]["MAP@R"])
    return {"share": best, "validation": by_share[best], "test": figures(best, "test")}


def read(file: Path = RESULTS) -> Rows:
    """The results so far."""
    return {(row["data"], row["arm"], row["seed"]): row for row in kept_rows.read(file)}


def run(folder: Path, processes: int, tell: Callable[[str], None], file: Path = RESULTS) -> Rows:
    """Train what the file of results lacks, a line for every row.

    Args:
        folder: of the tables.
        processes: at a time.
        tell: receives a line for every run.
        file: of results.
    """
    rows = read(file)
    work = Path(tempfile.gettempdir()) / f"dmlcore-defaults-{os.getuid()}"
    there = [data for data in TABLES.values() if (folder / data.file).exists()]
    cells = [(data, arm, seed) for seed in range(SEEDS) for data in there for arm in ARMS]
    cells += [(data, arm, seed) for seed in FRESH for data in there for arm in CONFIRMED]
    missing = [(data, arm, seed) for data, arm, seed in cells if (data.name, arm, seed) not in rows]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool, kept_rows.appending(file) as append:
        futures = [
            pool.submit(_cell, data.name, str(prepare(data, seed, folder, work)), arm, seed) for data, arm, seed in missing
        ]
        for number, future in enumerate(as_completed(futures), 1):
            for row in future.result():
                rows[row["data"], row["arm"], row["seed"]] = row
                append(row)
            own = future.result()[0]
            tell(f"{own['data']:14} {own['arm']:26} seed {own['seed']}  validation {own['validation']['MAP@R']:5.1f}"
                 f"  ({number} of {len(missing)})")  # fmt: skip
    return with_races(rows)


def with_races(rows: Rows) -> Rows:
    """The rows, and those of the races, which follow from them."""
    complete = dict(rows)
    for race, steps in RACES.items():
        trials = [arm.format(steps) for arm in RACED]
        for data in TABLES:
            for seed in (*range(SEEDS), *FRESH):
                if all((data, arm, seed) in rows for arm in (*trials, *(arm.format(350) for arm in RACED))):
                    validation = [rows[data, arm, seed]["validation"]["MAP@R"] for arm in trials]
                    winner = RACED[validation.index(max(validation))].format(350)
                    complete[data, race, seed] = {**rows[data, winner, seed], "arm": race, "winner": winner}
    return complete


def mean(rows: Rows, data: str, arm: str, part: str) -> float:
    """MAP@R of an arm on a table over seeds, in points."""
    return statistics.fmean(rows[data, arm, seed][part]["MAP@R"] for seed in range(SEEDS) if (data, arm, seed) in rows)


def complete_tables(rows: Rows) -> list[str]:
    """Tables of which every arm has every seed."""
    return [data for data in TABLES if all((data, arm, seed) in rows for arm in ARMS for seed in range(SEEDS))]


def taken(rows: Rows) -> str:
    """What the rule takes."""
    tables = complete_tables(rows)
    validation = {arm: statistics.fmean(mean(rows, d, arm, "validation") for d in tables) for arm in (*FIXED, *RACES)}
    fixed, race = (max(arms, key=lambda arm: validation[arm]) for arms in (FIXED, RACES))
    return race if validation[race] > validation[fixed] + MARGIN else fixed


def changes(rows: Rows, arm: str) -> bool:
    """Whether an arm becomes the default by the rule."""
    tables = complete_tables(rows)
    gains = [mean(rows, data, arm, "test") - mean(rows, data, "today", "test") for data in tables]
    above_raw = [mean(rows, data, arm, "test") - mean(rows, data, arm, "raw") for data in tables]
    average, half = mean_and_half(gains)
    return average - half > 0 and min(gains) >= -BEHIND_TODAY and min(above_raw) >= -BEHIND_RAW


def confirmed(rows: Rows) -> list[tuple[str, list[float], list[float]]]:
    """Of every table with the fresh seeds: its name, and the race minus `today` and minus the raw features by seed, in points
    of test MAP@R."""
    entries = []
    for data in TABLES:
        if all((data, arm, seed) in rows for arm in (RACE, "today") for seed in FRESH):
            race = [rows[data, RACE, seed] for seed in FRESH]
            today = [rows[data, "today", seed]["test"]["MAP@R"] for seed in FRESH]
            gains = [row["test"]["MAP@R"] - before for row, before in zip(race, today, strict=True)]
            entries.append((data, gains, [row["test"]["MAP@R"] - row["raw"]["MAP@R"] for row in race]))
    return entries


def gain_between_splits(gains: list[list[float]]) -> tuple[float, float]:
    """Mean over tables, and half of its 95 % interval by the variance between splits of a table.

    Args:
        gains: of each table by seed.
    """
    from scipy import stats

    variances = [statistics.variance(own) / len(own) for own in gains]
    freedom = sum(len(own) - 1 for own in gains)
    error = sum(variances) ** 0.5 / len(gains)
    return statistics.fmean(statistics.fmean(own) for own in gains), float(stats.t.ppf(0.975, freedom)) * error


def race_wins(rows: Rows) -> bool:
    """Whether the race becomes the default by the second decision."""
    entries = confirmed(rows)
    average, half = gain_between_splits([gains for _, gains, _ in entries])
    least = min(statistics.fmean(gains) for _, gains, _ in entries)
    above_raw = min(statistics.fmean(above) for _, _, above in entries)
    return average - half > 0 and least >= -BEHIND_TODAY and above_raw >= -BEHIND_RAW


def page(rows: Rows) -> str:
    """The tables of the report: figures, and the decision."""
    tables = complete_tables(rows)
    if not tables:
        return ""
    names = [*ARMS, *(f"{arm}, blend" for arm in BLENDED), *RACES]
    best = {data: max(mean(rows, data, arm, "test") for arm in FIXED) for data in tables}
    lines = [["raw features", *(f"{mean(rows, data, 'today', 'raw'):.1f}" for data in tables), "", "", "", "", ""]]
    for arm in names:
        test = {data: mean(rows, data, arm, "test") for data in tables}
        gains = [test[data] - mean(rows, data, "today", "test") for data in tables]
        lacks = [best[data] - test[data] for data in tables]
        average, half = mean_and_half(gains)
        validation = statistics.fmean(mean(rows, data, arm, "validation") for data in tables)
        seconds = statistics.fmean(rows[d, arm, s]["cpu_seconds"] / rows[d, "today", s]["cpu_seconds"]
                                   for d in tables for s in range(SEEDS))  # fmt: skip
        cost = "" if arm in RACES or "blend" in arm else f"{seconds:.1f}"
        lines.append([arm, *(f"{test[data]:.1f}" for data in tables), f"{average:+.2f} ± {half:.2f}",
                      f"{statistics.fmean(lacks):.2f}", f"{max(lacks):.1f}", f"{validation:.2f}", cost])  # fmt: skip
    header = ["arm", *tables, "minus `today`", "lacks, mean", "lacks, most", "validation", "cost"]
    arm = taken(rows)
    seeds = {data: [rows[data, arm, s]["test"]["MAP@R"] - rows[data, arm, s]["raw"]["MAP@R"] for s in range(SEEDS)]
             for data in tables}  # fmt: skip
    decision = [
        [data, TABLES[data].about, f"{mean(rows, data, arm, 'test') - mean(rows, data, 'today', 'test'):+.1f}",
         "{:+.1f} ± {:.1f}".format(*mean_and_half(seeds[data])), f"{best[data] - mean(rows, data, arm, 'test'):.1f}"]
        for data in tables
    ]  # fmt: skip
    verdict = "becomes the default" if changes(rows, arm) else "does not become the default"
    about = table(["table", "what it is", "minus `today`", "minus raw", "lacks"], decision)
    text = f"{table(header, lines)}\n\nThe rule takes `{arm}`, which {verdict}.\n\n{about}"
    return text + (_second(rows) if confirmed(rows) else "")


def _second(rows: Rows) -> str:
    entries = confirmed(rows)
    average, half = gain_between_splits([gains for _, gains, _ in entries])
    lines = [[data, *(f"{value:+.1f}" for value in (*gains, statistics.fmean(gains), statistics.fmean(above)))]
             for data, gains, above in entries]  # fmt: skip
    verdict = "becomes the default" if race_wins(rows) else "does not become the default"
    header = ["table", *(f"minus `today`, seed {seed}" for seed in FRESH), "mean", "minus raw"]
    return (
        f"\n\nOn fresh splits `{RACE}` minus `today` is {average:+.2f} ± {half:.2f}, by the interval between splits."
        f" By the second decision it {verdict}.\n\n{table(header, lines)}"
    )
