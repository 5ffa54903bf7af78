"""Decides question 6 of `plan`: three settings race, and the best one on validation classes is kept."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from benchmarks.outside import plan, rises, rule
from benchmarks.outside.plan import DATA, TODAY, Cell
from benchmarks.outside.rule import BySeed, Verdict
from benchmarks.outside.stored import Rows, figure

PARTS = ("compare", "long")


def cells(rows: Rows, data: str, seed: int, part: str) -> list[Cell]:
    """The runs of the racers, in the order of `plan.RACERS`."""
    if part == "compare":
        return [plan.rise_cell(data, seed, racer) for racer in plan.RACERS]
    long = [rises.long_cell(rows, data, seed, "default" if racer == TODAY else racer) for racer in plan.RACERS]
    return [cell for cell in long if cell is not None]


def winner(rows: Rows, raced: Sequence[Cell]) -> int | None:
    """The place of the best run on validation classes, of equals the first. None: not all have been run."""
    if any(cell not in rows for cell in raced):
        return None
    scores = [figure(rows, cell, part="validation") for cell in raced]
    return scores.index(max(scores))


def seeds_of(part: str) -> Sequence[int]:
    """The seeds that the race is judged with."""
    return plan.NEW_SEEDS if part == "compare" else plan.LONG_SEEDS


def places(rows: Rows, data: str, part: str) -> list[int]:
    """Which racer won with each seed."""
    every = [winner(rows, cells(rows, data, seed, part)) for seed in seeds_of(part)]
    return [place for place in every if place is not None]


def figures(rows: Rows, data: str, part: str, name: str = "served") -> BySeed:
    """Test MAP@R of the race by seed."""
    own: BySeed = {}
    for seed in seeds_of(part):
        raced = cells(rows, data, seed, part)
        if (place := winner(rows, raced)) is not None:
            own[seed] = figure(rows, raced[place], name)
    return own


def others(rows: Rows, data: str, part: str, other: str, name: str = "served") -> BySeed:
    """The same of today's default, or of the best plain loop, `rule.BEST`."""
    if part == "compare":
        return rises.new_figures(rows, data, None if other == rule.BEST else TODAY, name)
    return rises.long_figures(rows, data, other, name)


def verdicts(rows: Rows, part: str, other: str, name: str = "served") -> dict[str, Verdict]:
    """The race beside today's default or the best plain loop, by rule 1."""
    return rule.judge({data: (figures(rows, data, part, name), others(rows, data, part, other, name)) for data in DATA})


def conditions(rows: Rows) -> dict[str, bool | None]:
    """What rule 6 asks. None: not run."""
    met: dict[str, bool | None] = {}
    for part, where in zip(PARTS, ("with new seeds", "in longer runs"), strict=True):
        beside, gained = verdicts(rows, part, rule.BEST), [v.interval[0] for v in verdicts(rows, part, "default").values()]
        is_run = all(verdict.word for verdict in beside.values()) and not any(math.isnan(gain) for gain in gained)
        met[f"not below the best plain loop {where}"] = (
            all(verdict.word != "below" for verdict in beside.values()) if is_run else None
        )
        met[f"gains {plan.LEAST_GAIN} over the default {where}"] = (
            statistics.fmean(gained) >= plan.LEAST_GAIN if is_run else None
        )
    return met
