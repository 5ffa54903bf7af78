"""One configuration trained with several seeds, each drawing its own split, weights and batches: means and their intervals."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dmlcore.config import check_range
from dmlcore.errors import ConfigError
from dmlcore.files import write_atomically
from dmlcore.protocols.cells import Cell, run_cells
from dmlcore.protocols.trained import headline, trained_and_moved
from dmlcore.reports.intervals import mean_and_half
from dmlcore.seals import seal
from dmlcore.training.configuration import RunConfig

SUMMARY = "seeds.json"
MOST = 1000  # seeds


def seeds_of(text: str) -> list[int]:
    """The seeds that `0-4`, `3` or `1,5,7` name.

    Raises:
        ConfigError: it names none, one twice, or more than `MOST`.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not (first.isdecimal() and (last.isdecimal() or not dash)) or len(first) + len(last) > 20:
            raise ConfigError(f"seeds is '{text}', but must be like 0-4 or 0,3,7")
        low, high = int(first), int(last or first)
        if high < low or high - low >= MOST:
            raise ConfigError(f"seeds has '{part}', but a range goes up, over {MOST} seeds at most")
        seeds += range(low, high + 1)
    if len(set(seeds)) < len(seeds) or not 2 <= len(seeds) <= MOST:
        raise ConfigError(f"seeds is '{text}', but must name 2 to {MOST} different seeds")
    return seeds


def run(
    config: RunConfig,
    seeds: Sequence[int],
    out: str | Path,
    *,
    processes: int = 1,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train with every seed, each in a run folder `seed-N`, and write `seeds.json`. Called again, it goes on.

    Args:
        config: its own seed is not used.
        seeds: different ones.
        out: folder of the results.
        processes: at a time, each with one thread.
        tell: receives lines of progress.

    Returns:
        `summary` and the folder.
    """
    check_range("processes", processes, least=1)
    out, values = Path(out), {key: value for key, value in config.as_dict().items() if key != "seed"}
    cells = [Cell(f"seed-{seed}", {"config": values, "seed": seed}) for seed in seeds]
    function = functools.partial(train_with_seed, out=str(out.resolve()))
    results = run_cells(out, cells, function, processes=processes, tell=tell)
    total = {**summary(results), "seeds": list(seeds), "folder": str(out)}
    write_atomically(out / SUMMARY, (json.dumps(seal(total), indent=2) + "\n").encode())
    return total


def train_with_seed(settings: dict[str, Any], work: Path, out: str) -> dict[str, Any]:
    """A cell: one run, which is kept.

    Args:
        settings: of the cell.
        work: the cell's own folder.
        out: where the run goes when it is done.
    """
    config = RunConfig.create(**settings["config"], seed=settings["seed"])
    result = trained_and_moved(config, work, settings, Path(out) / f"seed-{settings['seed']}")
    kept_of_result = ("metrics", "baselines", "chosen_step", "steps", "advice", "wall_seconds")
    return {**{key: result[key] for key in kept_of_result}, "headline": headline(result)}


def summary(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Means over the runs with half of their 95 % t-intervals.

    Returns:
        `metrics`: by part and measure, `[mean, half]`. `baselines`: the same by name. `gains`: the same by name, of the paired
        differences from each baseline.
    """
    runs = list(results.values())
    own = [run["metrics"] for run in runs]
    total: dict[str, Any] = {"metrics": means_of(own), "baselines": {}, "gains": {}}
    for name in runs[0]["baselines"]:
        if all(name in run["baselines"] for run in runs):
            others = [run["baselines"][name] for run in runs]
            total["baselines"][name] = means_of(others)
            total["gains"][name] = means_of([_difference(a, b) for a, b in zip(own, others, strict=True)])
    return total


def _difference(own: dict[str, Any], other: dict[str, Any]) -> dict[str, dict[str, float]]:
    return {
        part: {key: value - other[part][key] for key, value in values.items() if key in other.get(part, {})}
        for part, values in own.items()
    }


def means_of(runs: list[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Mean and half of the 95 % t-interval, by part and measure, of measures that are finite numbers in all runs.

    Args:
        runs: measures by part of each. The half of a single one is NaN.
    """
    means: dict[str, dict[str, list[float]]] = {}
    for part, measures in runs[0].items():
        for key in measures:
            values = [parts.get(part, {}).get(key) for parts in runs]
            if all(isinstance(value, int | float) and math.isfinite(value) for value in values):
                means.setdefault(part, {})[key] = list(mean_and_half([float(value) for value in values]))
    return means
