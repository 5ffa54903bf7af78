"""Tables of the ensembles, from the lines of results."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

from benchmarks.ensembles.arms import ETAS, FEW_SEEDS, LENGTH, LOSSES, PUBLISHED, SEC, arms
from benchmarks.ensembles.runs import Runs
from benchmarks.markdown import fill, table
from dmlcore.reports.intervals import mean_and_half as interval

PAGE = Path(__file__).parents[2] / "docs" / "reports" / "ensembles-in-detail.md"
NAMES = {"map@r": "MAP@R", "recall@1": "R@1"}


def survivors(samples: list[list[float]], level: float = 0.05) -> list[bool]:
    """Which mean differences stay significant when all of them are looked at: t-tests against 0 with Holm's correction.

    Source: Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics 1979.
    """
    from scipy import stats

    tested = [index for index, values in enumerate(samples) if len(values) > 2 and statistics.stdev(values) > 0]
    p_values = {index: float(stats.ttest_1samp(samples[index], 0.0).pvalue) for index in tested}
    significant = [False] * len(samples)
    for rank, index in enumerate(sorted(tested, key=p_values.__getitem__)):
        if p_values[index] > level / (len(tested) - rank):
            break
        significant[index] = True
    return significant


class DataResults:
    """The rows of one data set, and paired differences between its arms.

    Args:
        runs: the results.
        data: name of the data set.
    """

    def __init__(self, runs: Runs, data: str) -> None:
        self.data = data
        self.rows = {(row["stage"], row["arm"], row["seed"]): row for row in runs.rows.values() if row["data"] == data}
        counts = [sorted(seed for stage, arm, seed in self.rows if stage == "singles" and arm == loss) for loss in LOSSES]
        self.seeds = sorted(set.intersection(*map(set, counts)))
        self.ranking = runs.ranking(data, self.seeds) if self.seeds else []

    def value(self, stage: str, arm: str, seed: int, metric: str, embedding: str | None = None, part: str = "test") -> float:
        """A figure of a run in points; NaN where there is none."""
        row = self.rows.get((stage, arm, seed))
        if row is None:
            return math.nan
        if embedding is None:
            return 100 * row["served"][part][metric]
        return 100 * row["embeddings"][embedding][part][metric] if embedding in row["embeddings"] else math.nan

    def differences(
        self, arm: tuple[str, str, str | None], other: tuple[str, str, str | None], metric: str = "map@r"
    ) -> list[float]:
        """By seed; each side is a stage, an arm and an embedding (None: what is served)."""
        pairs = (
            (self.value(arm[0], arm[1], s, metric, arm[2]), self.value(other[0], other[1], s, metric, other[2]))
            for s in self.seeds
        )
        return [value - rival for value, rival in pairs if not math.isnan(value - rival)]


def _say(values: list[float], survives: bool = False) -> str:
    if not values:
        return ""
    mean, half = interval(values)
    text = f"{mean:+.2f}" + ("" if math.isnan(half) else f" ± {half:.2f}")
    return (f"**{text}**" if not math.isnan(half) and mean - half > 0 else text) + (" *" if survives else "")


def _size(settings: dict[str, Any], losses: int, nets: bool, name: str) -> int:
    """Numbers in an embedding of an arm."""
    if name == "student":
        return settings["student"]
    if name == "compressed":
        return LENGTH if nets else settings["compress"]
    return settings["embedding_dim"] * (losses if nets or settings.get("ensemble") in ("heads", "wedl") else 1)


def _embeddings(results: DataResults, arm: str) -> list[str]:
    embeddings = next(
        (row["embeddings"] for (stage, name, _), row in results.rows.items() if (stage, name) == ("arms", arm)), {}
    )
    names = [name for name in ("whole", "compressed", "student") if name in embeddings]
    return names if len(names) != 1 else [""]


def singles(data_sets: list[DataResults], metric: str = "map@r") -> str:
    """Test figures of every loss with the options and the rate chosen; the best of validation in bold."""
    lines: list[list[str]] = []
    for loss in LOSSES:
        entries: list[str] = []
        for results in data_sets:
            mean = statistics.fmean(results.value("singles", loss, s, metric) for s in results.seeds)
            options = results.rows["singles", loss, results.seeds[0]]["settings"].get(loss, {})
            text = f"{mean:.1f}"
            entries.append(
                (f"**{text}**" if results.ranking[0] == loss else text) + "".join(f" ({k} {v:g})" for k, v in options.items())
            )
        lines.append([loss, *entries])
    frozen = [
        f"{statistics.fmean(100 * results.rows['singles', LOSSES[0], s]['raw']['test'][metric] for s in results.seeds):.1f}"
        for results in data_sets
    ]
    return table(["loss", *(results.data for results in data_sets)], [*lines, ["frozen features", *frozen]])


def against_best(data_sets: list[DataResults], metric: str = "map@r") -> str:
    """Every arm's difference to the best single of validation: in bold where the interval is above zero, with a star where the
    difference (to either side) survives Holm's correction for all rows of its column. Beside it the numbers in an embedding,
    and the CPU time of a run over that of the best single on the same split (median)."""
    rows_of_table: list[tuple[str, str]] = []
    for arm in arms():
        names = dict.fromkeys(name for results in data_sets for name in _embeddings(results, arm.name))
        rows_of_table += [(arm.name, name) for name in names]
    columns: list[list[str]] = []
    for results in data_sets:
        best = ("singles", results.ranking[0], None)
        values = [results.differences(("arms", arm, name or None), best, metric) for arm, name in rows_of_table]
        columns.append([_say(*pair) for pair in zip(values, survivors(values), strict=True)])
    lines = []
    for (arm, name), *entries in zip(rows_of_table, *columns, strict=True):
        if any(entries):
            rows = [row for results in data_sets for (stage, n, _), row in results.rows.items() if (stage, n) == ("arms", arm)]
            size = _size(rows[0]["settings"], len(rows[0]["losses"]), rows[0].get("nets", False), name or "whole")
            lines.append([arm + (f" ({name})" if name else ""), str(size), _cost(data_sets, arm), *entries])
    return table(["arm", "size", "cost", *(results.data for results in data_sets)], lines)


def _cost(data_sets: list[DataResults], arm: str) -> str:
    ratios = [
        row["cpu_seconds"] / results.rows["singles", results.ranking[0], seed]["cpu_seconds"]
        for results in data_sets
        for (stage, name, seed), row in results.rows.items()
        if (stage, name) == ("arms", arm) and seed in results.seeds
    ]
    return f"{statistics.median(ratios):.1f}" if ratios else ""


PAIRS = (
    ("T3 heads", "same: b x 3", "whole"),
    ("T3 heads", "same: b x 3", "compressed"),
    ("E4 heads", "same: b x 4", "whole"),
    ("E4 heads", "same: b x 4", "compressed"),
    ("T3 heads", "wide: b, 256", "compressed"),
    ("T3 wide, equal norms", "wide: b, 256", "compressed"),
    ("T3 wide", "wide: b, 256", "compressed"),
    ("T3 heads, equal norms", "same: b x 3", "compressed"),
    ("T3 heads, held_out", "same: b x 3", "compressed"),
    ("T3 heads, dropout", "same: b x 3, dropout", "compressed"),
    ("T3 heads, classes", "same: b x 3, classes", "compressed"),
    ("T3 wide heads", "same wide: b x 3, 256", "compressed"),
    ("T3 wide heads, equal norms", "same wide: b x 3, 256", "compressed"),
    ("D3 heads", "same: b x 3", "compressed"),
    ("D3 wide heads", "same wide: b x 3, 256", "compressed"),
    ("D3 wide heads", "same wide: b x 3, 256", "whole"),
    ("D3 wide heads", "wide: b, 256", "compressed"),
    ("D3 wide, equal norms", "wide: b, 256", "compressed"),
    ("WEDL_C 64: E4", "same: b x 4, lin_tanh_lin", "compressed"),
    ("T3 heads, student", "same: b x 4, student", "student"),
    ("T3 heads, views", "same: b x 3, views", "compressed"),
    ("nets: T3", "nets: b x 3", "whole"),
    ("nets: T3", "nets: b x 3", "compressed"),
    ("R3 wide heads, untuned", "same wide: b x 3, 256", "compressed"),
    ("R3 wide heads, untuned", "wide: b, 256", "compressed"),
    ("R3 wide, equal norms, untuned", "wide: b, 256", "compressed"),
    ("M3 wide, equal norms, untuned", "wide: b, 256", "compressed"),
    ("M3 wide, equal norms, untuned", "same wide: b x 3, 256", "compressed"),
)


def against_controls(data_sets: list[DataResults], metric: str = "map@r") -> str:
    """Ensembles beside the same cost with one loss."""
    lines = []
    for arm, control, name in PAIRS:
        entries = [_say(results.differences(("arms", arm, name), ("arms", control, name), metric)) for results in data_sets]
        if any(entries):
            lines.append([f"{arm} - {control} ({name})", *entries])
    return table(["difference at equal size", *(results.data for results in data_sets)], lines)


SERVED = (
    ("wide: b, 256", "compressed"),
    ("same: b x 4", "compressed"),
    ("E3 wide", "compressed"),
    ("T3 heads", "compressed"),
    ("T3 wide heads", "compressed"),
    ("WEDL: E4", "compressed"),
    ("WEDL_C 64: E4", "compressed"),
    ("T3 heads, student", "student"),
)


def served(data_sets: list[DataResults], metric: str = "recall@1") -> str:
    """What is served at the length of a single embedding minus the whole it comes from."""
    lines = []
    for arm, name in SERVED:
        entries = [_say(results.differences(("arms", arm, name), ("arms", arm, "whole"), metric)) for results in data_sets]
        if any(entries):
            lines.append([f"{arm} ({name} - whole)", *entries])
    return table(["difference", *(results.data for results in data_sets)], lines)


def weights(data_sets: list[DataResults]) -> str:
    """First and last weights of the shared ensembles that learn them, on the first data set and seed."""
    lines = []
    results = data_sets[0]
    for (stage, arm, seed), row in results.rows.items():
        if stage == "arms" and seed == results.seeds[0] and ("shared, " in arm or arm.startswith("WE")):
            steps = sorted(row["weights"], key=int)
            ends = [", ".join(f"{w:.3g}" for w in row["weights"][step]) for step in (steps[0], steps[-1])]
            lines.append([arm, ", ".join(row["losses"]), *ends])
    return table(["arm", "losses", "first", "last"], lines)


SEC_GAINS = {  # R@1 with SEC minus without on CUB, Cars, SOP, In-Shop: Zhang, Li, Zhang, NeurIPS 2020, as in the authors' table
    "ms 2 / 40": "2.7, 1.7, 2.4, 1.8",
    "triplets, squared": "7.5, 7.1, 6.2, 3.2",
    "semi-hard, squared": "2.0, 5.0, 3.1, 2.5",
    "n-pair, one of a class": "4.6, 3.7, 2.6, 2.2",
}


def sec(data_sets: list[DataResults], metric: str = "map@r") -> str:
    """With the spherical embedding constraint minus without, beside the gains in R@1 that its paper reports."""
    lines = []
    for name in SEC:
        for eta in ETAS:
            with_it = f"{name} + sec {eta}"
            entries = [
                _say(results.differences(("arms", with_it, None), ("arms", name, None), metric)) for results in data_sets
            ]
            if any(entries):
                lines.append([f"{with_it} - {name}", *entries, SEC_GAINS[name]])
    return table(["difference", *(results.data for results in data_sets), "paper"], lines)


def recipe(data_sets: list[DataResults], metric: str = "map@r") -> str:
    """The recipe of WEDL and its four losses alone, and the recipe minus the best of them by validation."""
    names = [f"{loss} of WEDL" for loss in PUBLISHED]
    ensembles = [("recipe wedl", "whole"), ("recipe wedl", "compressed"), ("recipe wedl_c", "compressed")]
    lines = []
    for arm, embedding in [*((name, None) for name in names), *ensembles]:
        entries = []
        for results in data_sets:
            values = [results.value("arms", arm, seed, metric, embedding) for seed in range(FEW_SEEDS)]
            entries.append("" if any(map(math.isnan, values)) else f"{statistics.fmean(values):.1f}")
        lines.append([arm + (f" ({embedding})" if embedding else ""), *entries])
    for arm, embedding in ensembles:
        entries = []
        for results in data_sets:
            validation = {n: [results.value("arms", n, s, metric, None, "validation") for s in range(FEW_SEEDS)] for n in names}
            best = max(names, key=lambda name, scores=validation: sum(scores[name]))
            entries.append(_say(results.differences(("arms", arm, embedding), ("arms", best, None), metric)))
        lines.append([f"{arm} ({embedding}) minus the best loss", *entries])
    return table(["arm", *(results.data for results in data_sets)], lines)


def costs(data_sets: list[DataResults]) -> str:
    """Median milliseconds of a training step, everything included, one thread."""
    lines = []
    for name in [arm.name for arm in arms() if arm.few or arm.central]:
        entries = []
        for results in data_sets:
            milliseconds = [row["step_ms"] for (stage, arm, _), row in results.rows.items() if (stage, arm) == ("arms", name)]
            entries.append(f"{statistics.median(milliseconds):.1f}" if milliseconds else "")
        if any(entries):
            lines.append([name, *entries])
    return table(["arm", *(results.data for results in data_sets)], lines)


BLOCKS = {f.__name__: f for f in (singles, against_best, against_controls, weights, recipe, sec, costs)} | {"kept": served}


def summary(runs: Runs) -> list[DataResults]:
    """Data sets whose singles are complete."""
    names = dict.fromkeys(row["data"] for row in runs.rows.values())
    return [results for results in (DataResults(runs, name) for name in names) if results.seeds]


def write(runs: Runs, page: Path | None = None) -> str:
    """Fill the markers `<!-- table: NAME [METRIC] -->` to `<!-- end -->` of the page, and return the text."""
    data_sets = summary(runs)
    return fill(page or PAGE, lambda name, metric: BLOCKS[name](data_sets, *([metric] if metric else [])))


def as_json(runs: Runs, file: Path) -> None:
    """Mean differences and half intervals of every arm, by data set, embedding and metric."""
    summaries: dict[str, Any] = {}
    for results in summary(runs):
        entry: dict[str, Any] = {
            "best_single": results.ranking[0],
            "ranking": results.ranking,
            "seeds": results.seeds,
            "arms": {},
        }
        for arm in arms():
            for name in _embeddings(results, arm.name):
                for metric in NAMES:
                    values = results.differences(
                        ("arms", arm.name, name or None), ("singles", results.ranking[0], None), metric
                    )
                    if values:
                        mean, half = interval(values)
                        figures = entry["arms"].setdefault(arm.name, {}).setdefault(name or "served", {})
                        figures[metric] = {"difference": round(mean, 3), "half_interval": round(half, 3), "seeds": len(values)}
        summaries[results.data] = entry
    file.write_text(json.dumps(summaries, indent=1) + "\n")
