"""One configuration trained on folds of the classes: a model for each fold, validated on it and trained on the others. All are
measured on the same test classes, each alone and by their embeddings side by side.

Source: Musgrave, Belongie, Lim, "A Metric Learning Reality Check", ECCV 2020, section 3.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from dmlcore.config import check_range
from dmlcore.data import RecordedSplit
from dmlcore.errors import ConfigError
from dmlcore.files import make_folder, plain, write_atomically
from dmlcore.locks import FolderLock
from dmlcore.protocols import repeats
from dmlcore.protocols.cells import Cell, run_cells
from dmlcore.protocols.trained import headline, trained_and_moved
from dmlcore.protocols.tuning.folds import folds_of
from dmlcore.seals import seal
from dmlcore.training.configuration import RunConfig

SUMMARY = "folds.json"
MOST = 100  # folds
MEASURED = ("metrics", "baselines", "chosen_step", "steps", "advice", "wall_seconds")  # of what a run says


def run(
    config: RunConfig,
    folds: int,
    seeds: Sequence[int],
    out: str | Path,
    *,
    processes: int = 1,
    recorded: RecordedSplit | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train a model for each fold and seed, in the run folders `seed-N/fold-M`, and write `folds.json`. Called again, it goes
    on.

    Args:
        config: its own seed is not used.
        folds: k, at least 2. Each model is trained on k - 1 folds of the training and validation classes and validated on the
            other one.
        seeds: different ones. Each draws its own folds, weights and batches, and its own split where the data have none.
        out: folder of the results.
        processes: at a time, each with one thread.
        recorded: the parts of the data for all seeds, so that all have the same test classes. None: what the data or each seed
            say.
        tell: receives lines of progress.

    Returns:
        `summary` and the folder.

    Raises:
        ConfigError: settings that folds cannot go with, or too few classes.
    """
    check_range("processes", processes, least=1)
    check_folds(folds, config)
    out = Path(out)
    values = {key: value for key, value in config.as_dict().items() if key != "seed"}
    lock = FolderLock(make_folder(out), tell)
    try:
        return _run(values, folds, seeds, out, processes, recorded, tell)
    finally:
        lock.release()


def check_folds(folds: int, config: RunConfig) -> None:
    """Refuse a number of folds, or settings that folds cannot go with."""
    check_range("folds", folds, least=2, most=MOST)
    settings = config.settings
    if settings.run.validation != "classes":
        raise ConfigError(f"folds validate on classes, but validation is {settings.run.validation}. Leave one of them out")
    if settings.losses.is_automatic:
        raise ConfigError("folds need losses by name, but plugins is auto. Choose them first by a run without --folds")


def _run(
    values: dict[str, Any],
    folds: int,
    seeds: Sequence[int],
    out: Path,
    processes: int,
    recorded: RecordedSplit | None,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    for seed in seeds:
        _write_folds(RunConfig.create(**values, seed=seed), folds, out, recorded)
    place, about = str(out.resolve()), {"config": values, "folds": folds}
    training = [Cell(_key(seed, n), {**about, "seed": seed, "fold": n}) for seed in seeds for n in range(1, folds + 1)]
    results = run_cells(out, training, functools.partial(train_fold, out=place), processes=processes, tell=tell)
    joining = [Cell(f"seed-{seed}/concatenated", {**about, "seed": seed}) for seed in seeds]
    joined = run_cells(out, joining, functools.partial(measure_joined, out=place), processes=processes, tell=tell)
    total = {**summary(results, joined, folds), "seeds": list(seeds), "folds": folds, "folder": str(out)}
    write_atomically(out / SUMMARY, (json.dumps(seal(total), indent=2) + "\n").encode())
    return total


def train_fold(settings: dict[str, Any], work: Path, out: str) -> dict[str, Any]:
    """A cell: the run of one fold, which is kept.

    Args:
        settings: of the cell.
        work: the cell's own folder.
        out: of the results.
    """
    config = RunConfig.create(**settings["config"], seed=settings["seed"])
    place = Path(out) / _key(settings["seed"], settings["fold"])
    split = RecordedSplit.read(_split_of(Path(out), settings["seed"], settings["fold"], settings["folds"]))
    result = trained_and_moved(config, work, settings, place, split)
    return {**{key: result[key] for key in MEASURED}, "headline": headline(result)}


def measure_joined(settings: dict[str, Any], work: Path, out: str) -> dict[str, Any]:
    """A cell: the test classes by the embeddings of all folds side by side.

    Args:
        settings: of the cell.
        work: not used.
        out: of the results.
    """
    from dmlcore.evaluation import evaluating
    from dmlcore.serving import TrainedRun

    parts, measures, recall_at, test = [], [], (), None
    for fold in range(1, settings["folds"] + 1):
        trained = TrainedRun(Path(out) / _key(settings["seed"], fold))
        test, measures, recall_at = trained.open().test, trained.measures(), trained.config.settings.run.recall_at
        parts.append(evaluating.embed(trained.model, test, workers=trained.workers))  # [N, D]
    assert test is not None
    embeddings = joined_embeddings(parts)
    metrics = {"test": evaluating.measure(embeddings, test, measures, recall_at)[0]}
    return {"metrics": metrics, "embedding_dim": embeddings.shape[1], "headline": headline({"metrics": metrics})}


def joined_embeddings(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Embeddings of several models side by side, each of unit norm, and the whole of unit norm again.

    Args:
        parts: [N, D_i] each.

    Returns:
        [N, sum of D_i].
    """
    return functional.normalize(torch.cat([functional.normalize(part, dim=1) for part in parts], dim=1), dim=1)


def summary(results: dict[str, dict[str, Any]], joined: dict[str, dict[str, Any]], folds: int) -> dict[str, Any]:
    """Means with half of their 95 % t-intervals: over the seeds, or with one seed over the folds.

    Args:
        results: of the folds, seed by seed.
        joined: of the embeddings side by side, one for each seed.
        folds: of each seed.

    Returns:
        `metrics`, `baselines` and `gains` of the single models, as `repeats.summary` gives them. `concatenated`: by part and
        measure, `[mean, half]`, with a half of None for one seed. `embedding_dim`: of the concatenated embeddings.
    """
    of_folds = list(results.values())
    if len(joined) == 1:
        total = repeats.summary(results)
    else:
        by_seed = [of_folds[first : first + folds] for first in range(0, len(of_folds), folds)]
        total = repeats.summary({str(n): _mean_of(runs) for n, runs in enumerate(by_seed)})
    first = next(iter(joined.values()))
    concatenated = plain(repeats.means_of([result["metrics"] for result in joined.values()]))  # NaN becomes None
    return {**total, "concatenated": concatenated, "embedding_dim": first["embedding_dim"]}


def _mean_of(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The means over the folds of a seed, in the form of a run's result."""
    names = [name for name in runs[0]["baselines"] if all(name in run["baselines"] for run in runs)]
    return {
        "metrics": _means([run["metrics"] for run in runs]),
        "baselines": {name: _means([run["baselines"][name] for run in runs]) for name in names},
    }


def _means(runs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    return {part: {key: pair[0] for key, pair in values.items()} for part, values in repeats.means_of(runs).items()}


def _write_folds(config: RunConfig, folds: int, out: Path, recorded: RecordedSplit | None) -> None:
    """Keep the folds of a seed, so that all its models have the same ones also where the data grow meanwhile.

    Raises:
        ConfigError: no classes or too few, or samples with several labels.
    """
    from dmlcore.training.building import open_splits

    seed = config.settings.run.seed
    files = [_split_of(out, seed, fold, folds) for fold in range(1, folds + 1)]
    if all(file.exists() for file in files):
        return
    if recorded is None:
        splits = open_splits(config)
        assert splits.record is not None
        if not splits.has_labels:
            raise ConfigError(
                f"'{splits.name}' has no classes that folds could divide. Leave --folds out: a run by --views holds samples out"
            )
        if splits.train.sets is not None:
            raise ConfigError("the samples have several labels, so no folds share no class. Leave --folds out")
        recorded = RecordedSplit.of_json(splits.record())
    parts = folds_of(recorded, folds, seed)
    make_folder(files[0].parent)
    for file, split in zip(files, parts, strict=True):
        write_atomically(file, split.to_json())


def _key(seed: int, fold: int) -> str:
    return f"seed-{seed}/fold-{fold}"


def _split_of(out: Path, seed: int, fold: int, folds: int) -> Path:
    return out / "splits" / f"seed-{seed}-fold-{fold}-of-{folds}.json"
