"""The model of a finished (or stopped) run, loaded: called on samples, given data that fits it, evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmlcore.data import LabelledDataset, Splits, Table, open_data
from dmlcore.errors import ConfigError, DataError
from dmlcore.evaluation import evaluating
from dmlcore.models import EmbeddingModel
from dmlcore.training import checkpoints
from dmlcore.training.building import build_components, build_run_model, choose_device, open_splits
from dmlcore.training.changes import check_unchanged
from dmlcore.training.configuration import RunConfig
from dmlcore.training.folder import RunFolder
from dmlcore.training.result import named_metrics

PARTS = ("train", "validation", "test")


class TrainedRun:
    """The model of a run.

    Args:
        folder: the run's folder.
        checkpoint: `best`, `last` or `previous`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        ConfigError: there is no run or no such checkpoint, or its `config.toml` was changed.
        TrainingError: the checkpoint is damaged; the message names one that is intact.
    """

    def __init__(self, folder: str | Path, *, checkpoint: str = "best", device: str = "auto") -> None:
        self.folder = RunFolder.open(folder)
        self.config = RunConfig.read_run(self.folder.config)
        self.device = choose_device(device)
        state = checkpoints.load(self.folder.checkpoints, checkpoint)
        check_unchanged(self.folder, self.config, state["config"])
        self.kind: str = state["kind"]
        self.sample_shape: tuple[int, ...] = tuple(state["sample_shape"])
        self.step: int = state["step"]
        self.model: EmbeddingModel = build_run_model(self.config, self.sample_shape, self.kind)
        try:
            self.model.load_state_dict(state["model"])
        except RuntimeError as error:
            raise ConfigError(
                f"the checkpoint does not fit {self.folder.config}, which was changed since: {str(error).splitlines()[0]}"
            ) from error
        self.model.to(self.device).eval()

    def __call__(self, samples: Tensor) -> Tensor:
        """Embeddings [b, D] of samples [b, ...], without gradients."""
        with torch.inference_mode():
            return self.model.serve(samples.to(self.device))

    def open(self, data: str | None = None, options: dict[str, Any] | None = None) -> Splits:
        """The run's own data, or other data brought to the shape the model takes.

        Raises:
            DataError: the data has another kind or shape.
        """
        if self._is_own(data) and not options:
            return open_splits(self.config)
        size = self.sample_shape[1] if self.kind == "images" else None
        settings = self.config.settings
        fractions = (settings.data.fractions[0], settings.data.fractions[1], settings.data.fractions[2])
        assert data is not None
        splits = open_data(data, options=options, fractions=fractions, seed=settings.run.seed, image_size=size)
        self.check_fits(data, splits)
        return splits

    def check_fits(self, data: str, samples: Splits | Table) -> None:
        """Refuse data that the model cannot take.

        Args:
            data: its name, for the message.
            samples: what it holds.

        Raises:
            DataError: the data has another kind or shape.
        """
        if samples.kind != self.kind or tuple(samples.sample_shape) != self.sample_shape:
            raise DataError(
                f"'{data}' holds {samples.kind} of shape {tuple(samples.sample_shape)}, but the run in {self.folder.path} was"
                f" trained on {self.kind} of shape {self.sample_shape}"
            )

    def _is_own(self, data: str | None) -> bool:
        own = self.config.settings.data.source
        assert own is not None
        return data is None or data == own or (Path(own).is_absolute() and Path(data).expanduser().resolve() == Path(own))

    def evaluate(self, data: str | None = None, options: dict[str, Any] | None = None) -> dict[str, Any]:
        """Metrics and baselines: of the run's validation and test classes, or of all classes of other data."""
        splits = self.open(data, options)
        is_own = self._is_own(data) and not options
        notes = list(splits.notes)
        if not is_own and self._is_own(data):
            notes.append("the options are not the run's: some of these classes may have been trained on")
        parts = {part: getattr(splits, part) for part in PARTS[1:]} if is_own else {"all": _whole(splits)}
        untrained = build_run_model(self.config, self.sample_shape, self.kind).to(self.device)
        untrained.served = "whole"
        workers = self.config.settings.data.workers
        measures = build_components(self.config, "metric")
        metrics, baselines = evaluating.compare(self.model, untrained, parts, kind=self.kind, workers=workers, metrics=measures)
        return {
            "run": str(self.folder.path),
            "step": self.step,
            "data": splits.name,
            "metrics": metrics,
            "baselines": baselines,
            **named_metrics(self.model, parts, workers, measures),
            "notes": notes,
        }


def _whole(splits: Splits) -> LabelledDataset:
    """All samples of the data as one part."""
    parts = [getattr(splits, part) for part in PARTS]
    labels = np.concatenate([part.labels for part in parts])
    names = [""] * (int(labels.max()) + 1)
    for part in parts:
        for label, dense in zip(part.labels.tolist(), part.dense_labels.tolist(), strict=True):
            names[label] = part.class_names[dense]
    return LabelledDataset(parts[0].samples, np.concatenate([part.rows for part in parts]), labels, names, splits.sample_shape)
