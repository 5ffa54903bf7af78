"""How the embedding of texts begins: a part of `python -m benchmarks features`. This text and the arms were written before any
test figure of theirs existed, and after validation curves of the first seed.

**Arms.** The trunk counts trigrams and has hidden units beside them. `today` has a head at random, 256 numbers compressed to
64, rate 2e-3. `principal, N` begins as the N principal axes of the trunk's features, rate 5e-4, not compressed. 300 steps
each, evaluated every 30.

**Rule.** Of the arms in `FOR_DEFAULT` the one with the highest mean validation MAP@R is taken. It becomes the default of the
trunk of trigrams if its test MAP@R is above that of `today` on every data set.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.defaults.sets import SETS, DataSet, prepare
from benchmarks.feature_starts import Rows, read, trained
from benchmarks.markdown import table
from benchmarks.rows import appending

RESULTS = Path(__file__).parent / "results" / "text_starts.jsonl"
SEEDS = 2
TEXTS = {
    data.name: data
    for data in (
        SETS["texts"],
        DataSet("package texts", "texts", "packages.csv", "57 sections of package descriptions"),
        DataSet("sayings", "texts", "fortunes.csv", "40 collections of sayings"),
    )
}
_PRINCIPAL: dict[str, Any] = {"head_start": "principal", "learning_rate": 5e-4, "compress": 0}
ARMS: dict[str, dict[str, Any]] = {
    "today": {"head_start": "random", "learning_rate": 2e-3, "embedding_dim": 256, "compress": 64},
    "principal, 256": {"embedding_dim": 256, **_PRINCIPAL},
    "principal, 1024": {"embedding_dim": 1024, **_PRINCIPAL},
}
LENGTH = {"steps": 300, "eval_every": 30}
FOR_DEFAULT = ("today", "principal, 256", "principal, 1024")


def run(folder: Path, tell: Callable[[str], None], file: Path = RESULTS) -> Rows:
    """Train what the file of results lacks, in this process.

    Args:
        folder: of the data sets.
        tell: receives a line for every run.
        file: of results.
    """
    rows = read(file)
    work = Path(tempfile.gettempdir()) / f"dmlcore-defaults-{os.getuid()}"
    there = [data for data in TEXTS.values() if (folder / data.file).exists()]
    with appending(file) as append:
        for seed in range(SEEDS):
            for data in there:
                for arm, settings in ARMS.items():
                    if (data.name, arm, seed) in rows:
                        continue
                    with tempfile.TemporaryDirectory(prefix="starts-") as place:
                        settings = {"model": "trigrams", **LENGTH, **settings}
                        source = str(prepare(data, seed, folder, work))
                        row = trained(data.name, source, arm, seed, settings, Path(place) / "run")
                    rows[data.name, arm, seed] = row
                    append(row)
                    tell(f"{data.name:14} {arm:20} seed {seed}  validation {row['validation']['MAP@R']:5.1f}")
    return rows


def mean(rows: Rows, data: str, arm: str, part: str) -> float:
    """MAP@R of an arm on a data set over seeds, in points."""
    return statistics.fmean(rows[data, arm, seed][part]["MAP@R"] for seed in range(SEEDS))


def complete_sets(rows: Rows) -> list[str]:
    """Data sets of which every arm has every seed."""
    return [data for data in TEXTS if all((data, arm, seed) in rows for arm in ARMS for seed in range(SEEDS))]


def taken(rows: Rows) -> str:
    """What the rule takes."""
    sets = complete_sets(rows)
    return max(FOR_DEFAULT, key=lambda arm: statistics.fmean(mean(rows, data, arm, "validation") for data in sets))


def changes(rows: Rows, arm: str) -> bool:
    """Whether an arm becomes the default by the rule."""
    return all(mean(rows, data, arm, "test") > mean(rows, data, "today", "test") for data in complete_sets(rows))


def page(rows: Rows) -> str:
    """The table of the report, and the decision."""
    sets = complete_sets(rows)
    if not sets:
        return ""
    lines = [["raw trigrams", *(f"{mean(rows, data, 'today', 'raw'):.1f}" for data in sets), "", ""]]
    for arm in ARMS:
        validation = statistics.fmean(mean(rows, data, arm, "validation") for data in sets)
        cost = statistics.fmean(rows[d, arm, s]["cpu_seconds"] / rows[d, "today", s]["cpu_seconds"]
                                for d in sets for s in range(SEEDS))  # fmt: skip
        figures = [f"{mean(rows, data, arm, 'test'):.1f}" for data in sets]
        lines.append([arm, *figures, f"{validation:.2f}", f"{cost:.1f}"])
    verdict = "becomes the default" if changes(rows, taken(rows)) else "does not become the default"
    header = ["arm", *sets, "validation", "cost"]
    return f"{table(header, lines)}\n\nThe rule takes `{taken(rows)}`, which {verdict}."
