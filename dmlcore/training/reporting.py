"""The page of a run, `report.html`: what it needs is gathered here, for a run that ends and for one that is loaded."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmlcore.data import Splits
from dmlcore.evaluation import evaluating
from dmlcore.files import write_atomically
from dmlcore.models import EmbeddingModel
from dmlcore.reports.run_facts import RunFacts, look
from dmlcore.reports.run_page import run_page
from dmlcore.training.configuration import RunConfig
from dmlcore.training.folder import RunFolder
from dmlcore.training.versions import versions


def gather(
    folder: RunFolder,
    config: RunConfig,
    model: EmbeddingModel,
    splits: Splits,
    *,
    step: int,
    result: dict[str, Any] | None,
    device: torch.device,
    embeddings: Tensor | None = None,
    with_umap: bool = False,
) -> RunFacts:
    """Look at the test part with the model of a finished run, else at the validation part.

    Args:
        folder: of the run, whose records are read.
        config: completed.
        model: of the best checkpoint.
        splits: the run's data.
        step: of the checkpoint.
        result: what `result.json` holds; None: the run is not finished, and test classes stay unseen.
        device: where the model is.
        embeddings: [N, D] of the test part, where the model has given them already.
        with_umap: draw UMAP too, where it is installed.

    Raises:
        TrainingError: the records are damaged.
    """
    name = "validation" if result is None else "test"
    dataset = getattr(splits, name)
    why_not = evaluating.why_not_ranked(dataset)
    if embeddings is None and not why_not:
        embeddings = evaluating.embed(model, dataset, workers=config.settings.data.workers)
    then = (result or {}).get("versions", {})
    return RunFacts(
        folder=folder.path,
        settings=config.as_dict(),
        records=folder.records(),
        result=result,
        data=(result or {}).get("data") or splits.describe(),
        step=step,
        environment={
            **(then or versions()),
            "device": (result or {}).get("device") or str(device),
            "this page was made on": f"{platform.platform()}, {torch.get_num_threads()} threads",
        },
        view=None if embeddings is None or why_not else look(embeddings, dataset, name, splits.sample_names),
        why_not_ranked=f"{name} classes: {why_not}." if why_not else "",
        with_umap=with_umap,
    )


def write_page(facts: RunFacts) -> Path:
    """Write `report.html` into the run's folder; returns its path.

    Raises:
        TrainingError: it cannot be written.
    """
    path = RunFolder(facts.folder).report
    write_atomically(path, run_page(facts))
    return path
