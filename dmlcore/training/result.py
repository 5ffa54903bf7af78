"""How a run ends: the best checkpoint evaluated on validation and test classes, beside its baselines, and what `result.json`
holds.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dmlcore.data import LabelledDataset
from dmlcore.errors import TrainingError
from dmlcore.evaluation import Metric, evaluating
from dmlcore.evaluation.metrics import RECALL_AT
from dmlcore.models import EmbeddingModel
from dmlcore.ranks.dividing import DividedRows
from dmlcore.training import checkpoints
from dmlcore.training.beginning import baseline_model, name_of_baseline
from dmlcore.training.extras import Compression
from dmlcore.training.kept import Kept
from dmlcore.training.run import Run
from dmlcore.training.versions import versions

CHOSEN_BY = "map@r"  # of the validation classes


def final_result(run: Run, rows: dict[str, Tensor | DividedRows] | None = None, kept: Kept | None = None) -> dict[str, Any]:
    """Load the best checkpoint into the model and evaluate it: what `result.json` holds, apart from times and warnings.

    This is the one place in a run where test classes are looked at. Several processes divide the work.

    Args:
        run: that is trained; its model becomes the best one.
        rows: receives the embeddings by part, [N, D].
        kept: what evaluations of this process left, which is not computed again.
    """
    best = checkpoints.load(run.folder.checkpoints, "best", "cpu" if run.models.are_divided else run.device)
    if best["step"] != run.best.step:
        raise TrainingError(
            f"best.pt in {run.folder.checkpoints} is of step {best['step']}, but the best evaluation was at step"
            f" {run.best.step}: another process has changed it"
        )
    run.models.load(run.model, best["model"])
    kept = kept or Kept()
    compression = _refine(run, best, kept)
    shape, kind = run.splits.sample_shape, run.splits.kind
    untrained = kept.first_model(run) or baseline_model(run.config, shape, kind, run.device, run.splits.train, run.folder)
    parts = {part: getattr(run.splits, part) for part in (("validation", "test") if run.validates else ("test",))}
    workers, recall_at = run.config.settings.data.workers, run.config.settings.run.recall_at
    metrics: dict[str, dict[str, Any]] = {}
    named: dict[str, dict[str, Any]] = {}
    for part, dataset in parts.items():  # each is embedded once, for all that could be served
        embeddings = (part == "validation" and kept.rows_of_best(best["step"])) or evaluating.named_rows(
            run.model, dataset, workers=workers
        )
        served = embeddings[run.model.served]
        metrics |= evaluating.evaluate_levels(served, part, dataset, run.metrics, recall_at)
        add_named(named, run.model, part, dataset, embeddings, run.metrics, {run.model.served: metrics[part]}, recall_at)
        if rows is not None:
            rows[part] = served
    baselines = evaluating.baselines_of(
        untrained,
        parts,
        name=name_of_baseline(run.config),
        kind=run.splits.kind,
        workers=workers,
        metrics=run.metrics,
        recall_at=recall_at,
        known={} if kept.first_rows is None else {"validation": kept.first_rows},
    )
    return {
        "run": str(run.folder.path),
        "metrics": metrics,
        "baselines": baselines,
        **({"embeddings": named} if named else {}),
        "advice": advice(
            metrics,
            baselines,
            is_random=run.config.settings.model.head_start == "random",
            still_rose=run.validates and 0 < run.best.step == run.step,
        ),
        **({"compression": compression} if compression else {}),
        "chosen_step": run.best.step,
        "chosen_by": chosen_by(run.config.settings.run.validation),
        "steps": run.steps,
        "steps_done": run.step,
        "seed": run.config.settings.run.seed,
        "losses": run.ensemble.describe(),
        "data": run.splits.describe(),
        "device": str(run.device),
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "versions": versions(),
        "command": " ".join(sys.argv),
    }


def _refine(run: Run, best: dict[str, Any], kept: Kept) -> dict[str, float]:
    """Let a compressor that has several maps choose one by the validation part, and write the best checkpoint with it."""
    if not run.validates:
        return {}
    known = kept.rows_of_best(best["step"]) or {}
    workers = run.config.settings.data.workers
    compression = Compression(run.model, run.config.settings.run.seed)
    scores = compression.refine(run.splits.train, run.splits.validation, known.get("whole"), workers)
    if scores:
        kept.best_step = -1  # what was kept was compressed by another map
        weights = {**best, "model": run.models.whole_state(run.model)}  # which takes all processes
        if run.writes:
            checkpoints.save(run.folder.checkpoints, "best", run.divided.without(weights))
            checkpoints.forget_best_before(run.folder.checkpoints)
    return scores


def chosen_by(validation: str) -> str:
    """What chose the checkpoint, in words."""
    return (
        "its place: it is the last one, and there is no validation"
        if validation == "none"
        else f"{CHOSEN_BY} of the validation {validation}"
    )


def advice(metrics: dict[str, Any], baselines: dict[str, Any], *, is_random: bool, still_rose: bool = False) -> list[str]:
    """Where what was trained is worse than something that needs no training, and what to try; a sentence for each.

    Args:
        metrics: by part.
        baselines: by name and part.
        is_random: the embedding head began at random.
        still_rose: the last evaluation was the best one.
    """
    sentences = []
    for name, parts in baselines.items():
        losses = [
            f"{part} {label} {metrics[part][key]:.3f} < {values[key]:.3f}"
            for part, values in parts.items()
            for label, key in (("R@1", "recall@1"), ("MAP@R", CHOSEN_BY))
            if key in values and metrics[part][key] < values[key]
        ]
        if losses:
            sentences.append(f"What was trained is worse than the {name}: {', '.join(losses)}.")
    if sentences:
        start = "--head-start principal, which begins at the features, " if is_random and "raw features" in baselines else ""
        change = "more --steps, since the last evaluation was the best" if still_rose else "a smaller --learning-rate"
        sentences.append(f"Try {start}{change}, more classes to train on, or use the {next(iter(baselines))}.")
    return sentences


def named_metrics(
    model: EmbeddingModel,
    parts: dict[str, LabelledDataset],
    workers: int | None,
    metrics: Sequence[Metric] = (),
    recall_at: Sequence[int] = RECALL_AT,
) -> dict[str, Any]:
    """`{"embeddings": {name: {part: metrics}}}` of a model that could serve more than one embedding, else nothing."""
    named: dict[str, dict[str, Any]] = {}
    if _has_several(model):
        for part, dataset in parts.items():
            embeddings = evaluating.named_rows(model, dataset, workers=workers)
            add_named(named, model, part, dataset, embeddings, metrics, recall_at=recall_at)
    return {"embeddings": named} if named else {}


def add_named(
    named: dict[str, dict[str, Any]],
    model: EmbeddingModel,
    part: str,
    dataset: LabelledDataset,
    embeddings: dict[str, Tensor | DividedRows],
    metrics: Sequence[Metric] = (),
    measured: dict[str, dict[str, Any]] | None = None,
    recall_at: Sequence[int] = RECALL_AT,
) -> None:
    """Add metrics by name and part, of a model that could serve more than one embedding. Arguments as `evaluate_named`."""
    if _has_several(model):
        for name, values in evaluating.evaluate_named(embeddings, dataset, metrics, measured, recall_at).items():
            named.setdefault(name, {})[part] = values


def _has_several(model: EmbeddingModel) -> bool:
    return model.heads > 1 or model.compressor is not None or model.student is not None
