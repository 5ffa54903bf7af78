"""What evaluations of a run leave for its end, where it is small: the first model, and what the best model gave for the
validation part. So nothing is embedded or fitted twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dmlcore.evaluation import evaluating
from dmlcore.ranks.dividing import DividedRows
from dmlcore.training.beginning import is_raw_features
from dmlcore.training.building import build_untrained_model

if TYPE_CHECKING:
    from dmlcore.models import EmbeddingModel
    from dmlcore.training.run import Run

MOST_BYTES = 64 << 20  # of weights, or of embeddings
Rows = Tensor | DividedRows


@dataclass
class Kept:
    """Evaluations of this process.

    Attributes:
        first: the weights before the first step, those of the fitted compressor too, where this process evaluated them.
        first_rows: what it serves for the validation part.
        best_step: step of the evaluation that `best_rows` are of.
        best_rows: all that the best model could serve for the validation part, by name; empty where they are many.
    """

    first: dict[str, Tensor] | None = None
    first_rows: Rows | None = None
    best_step: int = -1
    best_rows: dict[str, Rows] | None = None

    def rows_of_best(self, step: int) -> dict[str, Rows] | None:
        """The rows of the best model, if its evaluation was that of this step."""
        return self.best_rows if self.best_step == step else None

    def keep(self, run: Run, rows: dict[str, Rows], is_best: bool) -> None:
        """Keep what an evaluation of `run` at its present step gave."""
        if is_best:
            self.best_step, self.best_rows = run.step, rows
        if run.step == 0 and _is_baseline(run):
            # Not a copy of the model: not every module can be copied, and hooks of a copy may write into the original.
            self.first = {name: tensor.clone() for name, tensor in run.served.state_dict().items()}
            self.first_rows = rows.get(run.served.served)

    def first_model(self, run: Run) -> EmbeddingModel | None:
        """The model before its first step, if its weights were kept."""
        if self.first is None:
            return None
        splits = run.splits
        model = build_untrained_model(run.config, run.folder, splits.sample_shape, splits.kind).to(run.device)
        model.load_state_dict(self.first)
        return model


def embed_validation(run: Run) -> tuple[Rows, dict[str, Rows]]:
    """What the run serves for the validation part, and all that it could serve where this is small, else nothing."""
    model, dataset, workers = run.served, run.splits.validation, run.config.settings.data.workers
    widths: Sequence[int] = [
        model.whole_dim * (1 + (model.heads > 1)),
        0 if model.compressor is None else model.compressor.out,
        0 if model.student is None else model.student.out_features,
    ]
    if not len(dataset) or 4 * sum(widths) * len(dataset) > MOST_BYTES:
        return evaluating.embed_rows(model, dataset, workers=workers), {}
    rows: dict[str, Any] = evaluating.named_rows(model, dataset, workers=workers)
    return rows[model.served], rows


def _is_baseline(run: Run) -> bool:
    """Whether what is served now is small, and the same as `beginning.baseline_model` would make again."""
    model = run.served
    return (
        run.config.objects.model is None
        and run.processes is None
        and (model.compressor is None or run.compression.is_fitted)
        and (model.heads == 1 or torch.equal(model.shares, torch.full_like(model.shares, 1 / model.heads)))
        and not is_raw_features(run.config, model, run.splits.kind)
        and 4 * sum(tensor.numel() for tensor in model.state_dict().values()) <= MOST_BYTES
    )
