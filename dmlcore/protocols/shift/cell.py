"""A cell of `dmlcore ood run`: one configuration on one split with one seed. It trains, measures zero-shot retrieval of the
weights that validation chose, and adapts those same weights to the episodes. With folds it does so for a model of each.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmlcore.data import RecordedSplit, SplitFile
from dmlcore.evaluation import evaluating
from dmlcore.files import in_file_name, move_folder, remove
from dmlcore.protocols.crossing import joined_embeddings
from dmlcore.protocols.shift.adapting import Adaptation, Augmented, adapt, trunk_features
from dmlcore.protocols.shift.episodes import support_rows
from dmlcore.protocols.trained import trained
from dmlcore.protocols.tuning.folds import folds_of
from dmlcore.serving import TrainedRun
from dmlcore.training.building import open_splits
from dmlcore.training.configuration import RunConfig

if TYPE_CHECKING:
    import numpy as np

    from dmlcore.data import ClassSplit


@dataclass(frozen=True)
class Places:
    """Where a cell finds what its settings name: no part of its settings, so that a folder of results may be moved."""

    splits: str
    data: str
    models: str | None = None


def key_of(name: str, split: str, seed: int) -> str:
    """The key of a cell, of a configuration's name, a split's id and a seed."""
    return f"{in_file_name(name)}/{in_file_name(split)}/seed{seed}"


def train_and_measure(settings: dict[str, Any], work: Path, places: Places) -> dict[str, Any]:
    """A cell: train (or continue), measure, adapt.

    Args:
        settings: of the cell.
        work: the cell's own folder. A training that was interrupted in it goes on.
        places: of splits, data and models.
    """
    began, cpu = time.perf_counter(), time.process_time()
    split = SplitFile.read(places.splits).find(settings["split"]["id"])
    trained_by = {**settings["config"], "data": places.data, "splits": places.splits, "split": split.id}
    config = RunConfig.create(**trained_by, seed=settings["seed"])
    adaptation = None
    if settings["adaptation"] is not None:
        adaptation = Adaptation(**{key: _tuple(value) for key, value in settings["adaptation"].items()})
    supports = _supports(config, split, adaptation)  # first: data that lack a sample are refused before the long part
    kept = None if not places.models else Path(places.models) / key_of(settings["name"], split.id, settings["seed"])
    if "folds" in settings:
        measured = _measure_folds(config, settings, work, adaptation, supports)
    else:
        measured = _measure_model(trained(config, work, settings), TrainedRun(work / "run"), adaptation, supports)
    if kept is not None:
        for place in [_fold_of(work, number) for number in range(1, settings["folds"] + 1)] if "folds" in settings else [work]:
            _keep(place / "run", kept / place.relative_to(work))
    measured |= {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
    return {**measured, "headline": f"R@1 {measured['zero_shot']['recall@1']:.3f}  FID {split.fid:.4g}"}


def _measure_model(
    result: dict[str, Any], run: TrainedRun, adaptation: Adaptation | None, supports: dict[int, list[np.ndarray]]
) -> dict[str, Any]:
    """What a trained model gives: its measures of the test part, and those of its adaptations."""
    few_shot: dict[str, Any] = {}
    if adaptation is not None:
        opened, workers = run.open(), run.config.settings.data.workers
        test = opened.test
        features = trunk_features(run.model, test, workers=workers)
        changed = None
        if adaptation.augment and opened.train.augmentation is not None:
            changed = Augmented(run.model.trunk, test.augmented(opened.train.augmentation), workers)
        for shots, steps in zip(adaptation.shots, adaptation.steps, strict=True):
            seed = 1000 * run.config.settings.run.seed
            few_shot[str(shots)] = adapt(
                run.model, features, test.dense_labels, supports[shots], steps, adaptation.rate, seed, adaptation, changed
            )
    return {
        "zero_shot": result["metrics"]["test"],
        "validation": result["metrics"].get("validation", {}),
        "baselines": {name: parts["test"] for name, parts in result["baselines"].items()},
        "few_shot": few_shot,
        "chosen_step": result["chosen_step"],
        "steps": result["steps"],
        "data": result["data"]["parts"],
        "versions": result["versions"],
    }


def _measure_folds(
    config: RunConfig,
    settings: dict[str, Any],
    work: Path,
    adaptation: Adaptation | None,
    supports: dict[int, list[np.ndarray]],
) -> dict[str, Any]:
    """A model for each fold of the training classes: their means, and the test part by their embeddings side by side.

    Returns:
        As `_measure_model`, with means over the folds for `zero_shot`, `validation`, `baselines` and each episode. `folds`:
        what each model gives. `concatenated`: measures of the test part.
    """
    record = open_splits(config).record
    assert record is not None  # splits of classes always have one
    models, embeddings = [], []
    for number, split in enumerate(folds_of(RecordedSplit.of_json(record()), settings["folds"], settings["seed"]), start=1):
        place = _fold_of(work, number)
        result = trained(config, place, {**settings, "fold": number}, split=split)
        run = TrainedRun(place / "run")
        models.append(_measure_model(result, run, adaptation, supports))
        test = run.open().test
        embeddings.append(evaluating.embed(run.model, test, workers=run.workers))  # [N, D]
    concatenated = evaluating.measure(joined_embeddings(embeddings), test, run.measures(), config.settings.run.recall_at)[0]
    averaged = {key: _mean([model[key] for model in models]) for key in ("zero_shot", "validation", "baselines", "few_shot")}
    steps = [model["chosen_step"] for model in models]
    return {**models[0], **averaged, "chosen_step": steps, "concatenated": concatenated, "folds": models}


def _fold_of(work: Path, number: int) -> Path:
    return work / f"fold-{number}"


def _mean(values: list[Any]) -> Any:
    """The mean of equally built results, number by number; what is no number in all of them is left out."""
    first = values[0]
    if isinstance(first, dict):
        shared = [key for key in first if all(key in value for value in values)]
        means = {key: _mean([value[key] for value in values]) for key in shared}
        return {key: mean for key, mean in means.items() if mean is not None}
    if isinstance(first, list):
        return [_mean(list(column)) for column in zip(*values, strict=True)]
    return sum(values) / len(values) if all(isinstance(value, int | float) for value in values) else None


def _supports(config: RunConfig, split: ClassSplit, adaptation: Adaptation | None) -> dict[int, list[np.ndarray]]:
    """Positions of the support samples in the test part, by the number of shots and the episode."""
    if adaptation is None:
        return {}
    opened = open_splits(config)
    test = opened.test
    return {
        shots: support_rows(
            split, shots, test.rows, opened.sample_names, test.dense_labels, test.class_names, adaptation.episodes
        )
        for shots in adaptation.shots
    }


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _keep(run: Path, place: Path) -> None:
    """Move a finished run, without the checkpoints that only continue it."""
    for name in ("last", "previous"):
        remove(run / "checkpoints" / f"{name}.pt")
    move_folder(run, place)
