"""Decides by the rule of `candidates`, and judges the decision on data sets left out."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.defaults.candidates import RATES, SEEDS, Candidate, candidates
from benchmarks.defaults.runs import Key
from benchmarks.defaults.sets import SETS, DataSet
from dmlcore.reports.intervals import mean_and_half

Rows = dict[Key, dict[str, Any]]


def complete_sets(rows: Rows) -> list[DataSet]:
    """Data sets of which every candidate has a run of the first seed."""
    return [data for data in SETS.values() if all((data.name, c.name, 0) in rows for c in candidates(data.kind))]


def seeds_of(rows: Rows, data: DataSet) -> list[int]:
    """Seeds of which every candidate has a run."""
    every = candidates(data.kind)
    return [seed for seed in range(SEEDS[data.kind]) if all((data.name, c.name, seed) in rows for c in every)]


def mean(rows: Rows, data: DataSet, candidate: Candidate, part: str, measure: str = "MAP@R") -> float:
    """Of the seeds that every candidate has, in points."""
    return statistics.fmean(rows[data.name, candidate.name, seed][part][measure] for seed in seeds_of(rows, data))


def regrets(rows: Rows, data: DataSet, part: str) -> dict[Candidate, float]:
    """What each candidate lacks to the best one on the classes of a part, in points of MAP@R."""
    means = {candidate: mean(rows, data, candidate, part) for candidate in candidates(data.kind)}
    best = max(means.values())
    return {candidate: best - value for candidate, value in means.items()}


@dataclass(frozen=True)
class Default:
    """What a rule takes: a candidate for each kind of data."""

    by_kind: dict[str, Candidate]

    def of(self, data: DataSet) -> Candidate:
        return self.by_kind[data.kind]


def rated(choice: str, kind: str, lacks: dict[str, dict[Candidate, float]], sets: Sequence[DataSet]) -> Candidate:
    """Losses and weighting at the rate of least regret on data of a kind.

    Args:
        choice: the losses and the weighting.
        kind: of data.
        lacks: regrets on validation classes by data set.
        sets: that decide.
    """
    own = [c for c in candidates(kind) if c.choice == choice]
    deciding = [data for data in sets if data.kind == kind]
    if not deciding:  # the only data set of its kind is left out
        return own[0]
    return min(own, key=lambda candidate: statistics.fmean(lacks[data.name][candidate] for data in deciding))


def decide(rows: Rows, sets: Sequence[DataSet], by_kind: bool) -> Default:
    """Run the rule.

    Args:
        rows: results.
        sets: that decide.
        by_kind: whether each kind of data has its own losses and weighting; learning rates are always of a kind.
    """
    lacks = {data.name: regrets(rows, data, "validation") for data in sets}
    kinds = {kind: [data for data in sets if data.kind == kind] or list(sets) for kind in RATES}

    def regret(choice: str, among: Iterable[DataSet]) -> float:
        return statistics.fmean(lacks[data.name][rated(choice, data.kind, lacks, sets)] for data in among)

    choices = list(dict.fromkeys(c.choice for c in candidates("features")))
    alike = min(choices, key=lambda choice: regret(choice, sets))
    taken = {kind: min(choices, key=lambda c, among=among: regret(c, among)) for kind, among in kinds.items()}
    return Default({kind: rated(taken[kind] if by_kind else alike, kind, lacks, sets) for kind in RATES})


def left_out(rows: Rows, sets: Sequence[DataSet], by_kind: bool) -> dict[str, tuple[Candidate, float]]:
    """For each data set what the rule takes from the others, and what that lacks there to the best test figure in hindsight."""
    judged = {}
    for data in sets:
        taken = decide(rows, [other for other in sets if other is not data], by_kind).of(data)
        judged[data.name] = taken, regrets(rows, data, "test")[taken]
    return judged


def against(rows: Rows, sets: Sequence[DataSet], one: Default, other: Default) -> dict[str, float]:
    """Test MAP@R of a default minus that of another by data set, in points."""
    return {data.name: mean(rows, data, one.of(data), "test") - mean(rows, data, other.of(data), "test") for data in sets}


def changes(differences: dict[str, float]) -> bool:
    """Whether the default is replaced by what these differences favour."""
    average, half = mean_and_half(list(differences.values()))
    return not math.isnan(half) and average - half > 0 and min(differences.values()) >= -1.5


def today() -> Default:
    """The default of runs before this comparison."""
    return Default({kind: candidates(kind)[0] for kind in RATES})
