"""How a run ends: the best checkpoint evaluated on validation and test classes, beside its baselines, and what `result.json`
holds.
"""

from __future__ import annotations

import contextlib
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from dmlcore.data import LabelledDataset
from dmlcore.errors import TrainingError
from dmlcore.evaluation import Metric, evaluating
from dmlcore.models import EmbeddingModel
from dmlcore.training import checkpoints
from dmlcore.training.building import build_untrained_model
from dmlcore.training.run import Run
from dmlcore.version import VERSION

CHOSEN_BY = "map@r"  # of the validation classes


def final_result(run: Run) -> dict[str, Any]:
    """Load the best checkpoint into the model and evaluate it: what `result.json` holds, apart from times and warnings.

    This is the one place in a run where test classes are looked at.
    """
    best = checkpoints.load(run.folder.checkpoints, "best", run.device)
    if best["step"] != run.best.step:
        raise TrainingError(
            f"best.pt in {run.folder.checkpoints} is of step {best['step']}, but the best evaluation was at step"
            f" {run.best.step}: another process has changed it"
        )
    run.model.load_state_dict(best["model"])
    untrained = build_untrained_model(run.config, run.folder, run.splits.sample_shape, run.splits.kind).to(run.device)
    untrained.served = "whole"  # what it could be compressed to was never fitted
    parts = {part: getattr(run.splits, part) for part in ("validation", "test")}
    workers = run.config.settings.data.workers
    metrics, baselines = evaluating.compare(
        run.model, untrained, parts, kind=run.splits.kind, workers=workers, metrics=run.metrics
    )
    return {
        "run": str(run.folder.path),
        "metrics": metrics,
        "baselines": baselines,
        **named_metrics(run.model, parts, workers, run.metrics),
        "chosen_step": run.best.step,
        "chosen_by": f"{CHOSEN_BY} of the validation classes",
        "steps": run.steps,
        "seed": run.config.settings.run.seed,
        "losses": run.ensemble.describe(),
        "data": run.splits.describe(),
        "device": str(run.device),
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "versions": versions(),
        "command": " ".join(sys.argv),
    }


def named_metrics(
    model: EmbeddingModel, parts: dict[str, LabelledDataset], workers: int, metrics: Sequence[Metric] = ()
) -> dict[str, Any]:
    """`{"embeddings": {name: {part: metrics}}}` of a model that could serve more than one embedding, else nothing."""
    if model.heads == 1 and model.compressor is None and model.student is None:
        return {}
    embeddings: dict[str, dict[str, dict[str, float]]] = {}
    for part, dataset in parts.items():
        for name, values in evaluating.evaluate_named(model, dataset, workers=workers, metrics=metrics).items():
            embeddings.setdefault(name, {})[part] = values
    return {"embeddings": embeddings}


def versions() -> dict[str, str]:
    """Versions that decide about a run's numbers."""
    installed = {"dmlcore": VERSION, "python": platform.python_version()}
    for name in ("torch", "torchvision", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed
