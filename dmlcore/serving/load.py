"""The model of a finished (or stopped) run, loaded: called on samples, given data that fits it, evaluated."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmlcore import plugin_files, trust
from dmlcore.data import LabelledDataset, RecordedSplit, Splits, Table, load_table
from dmlcore.errors import ConfigError, DataError
from dmlcore.evaluation import evaluating
from dmlcore.files import expanded
from dmlcore.models import EmbeddingModel
from dmlcore.training import checkpoints
from dmlcore.training.beginning import baseline_model, name_of_baseline
from dmlcore.training.building import (
    build_components,
    build_run_model,
    choose_device,
    images_of,
    open_splits,
)
from dmlcore.training.changes import check_unchanged
from dmlcore.training.configuration import RunConfig
from dmlcore.training.folder import NO_SPLIT, RunFolder
from dmlcore.training.objects import check_objects, parted
from dmlcore.training.result import named_metrics

OF_A_MODEL = ("loss", "model", "compressor")  # kinds without which no model is built


@dataclass(frozen=True)
class Parts:
    """Data as a trained run takes them.

    Attributes:
        name: of the data.
        parts: `train`, `validation`, `test` and `none` (in none of these) of the run's own data; else `all`.
        notes: what the user should know.
        has_labels: whether the labels mean anything.
    """

    name: str
    parts: dict[str, LabelledDataset]
    notes: list[str] = field(default_factory=list)
    has_labels: bool = True


class TrainedRun:
    """The model of a run.

    Args:
        folder: the run's folder.
        checkpoint: `best`, `last` or `previous`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        trusts_plugins: run the files of code that the folder's `config.toml` names, whoever made it.
        data, model, losses: the objects that the run was given in Python, if it was. Without the data, only other data can be
            evaluated.

    Raises:
        ConfigError: there is no run or no such checkpoint, or its `config.toml` was changed.
        TrainingError: the checkpoint is damaged; the message names one that is intact.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        checkpoint: str = "best",
        device: str = "auto",
        trusts_plugins: bool = False,
        data: Any = None,
        model: Any = None,
        losses: Any = None,
    ) -> None:
        _, self._objects = parted(data, model, losses, {})
        self.folder = RunFolder.open(folder)
        self._trusts_plugins = trusts_plugins
        self.config = self._read_config()
        check_objects(self._objects, self.config.names(), str(self.folder.path), ("model", "loss"))
        self.device = choose_device(device)
        self._recorded = RecordedSplit.read(self.folder.split) if self.folder.split.exists() else None
        state = checkpoints.load(self.folder.checkpoints, checkpoint)
        check_unchanged(self.folder, state["config"])
        self.kind: str = state["kind"]
        self.sample_shape: tuple[int, ...] = tuple(state["sample_shape"])
        self.step: int = state["step"]
        with trust.reading(self._source()):
            self.model: EmbeddingModel = build_run_model(self.config, self.sample_shape, self.kind, self.folder.kept_trunk)
        try:
            self.model.load_state_dict(state["model"])
        except (RuntimeError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"the checkpoint does not fit {self.folder.config}, which was changed since: {str(error).splitlines()[0]}"
            ) from error
        self.model.trunk.merge()
        self.model.to(self.device).eval()

    def __call__(self, samples: Tensor) -> Tensor:
        """Embeddings [b, D] of samples [b, ...], without gradients."""
        with torch.inference_mode():
            return self.model.serve(samples.to(self.device))

    def _source(self, *kinds: str) -> trust.Folder:
        return trust.Folder(self.folder.path, (*OF_A_MODEL, *kinds), self._trusts_plugins)

    def _read_config(self, *kinds: str) -> RunConfig:
        """The configuration; of the components in files, only those that the model and some kinds need are imported."""
        return RunConfig.read_run(self.folder.config, self._source(*kinds)).with_objects(self._objects)

    def _untrained(self, train: LabelledDataset | None) -> EmbeddingModel | None:
        with trust.reading(self._source()):
            return baseline_model(self.config, self.sample_shape, self.kind, self.device, train, self.folder)

    def open(self) -> Splits:
        """The run's own data, split as when the run was made.

        Raises:
            DataError: the data has another kind or shape, or classes that were renamed since; or classes may be called held out
                that were trained on.
        """
        check_objects(self._objects, self.config.names(), str(self.folder.path))
        with trust.reading(self._source("data")):
            splits = open_splits(self._read_config("data"), self._recorded, kept=self.folder.kept_trunk)
        self.check_fits(splits.name, splits)
        if self._recorded is None:
            self._check_counts(splits)
        return splits

    def parts(self, data: Any = None, options: dict[str, Any] | None = None) -> Parts:
        """The run's own data in its parts, or other data brought to the shape the model takes, as one part, `all`.

        Args:
            data: a name, a path, or the data themselves, as `open_data` takes them. None: the run's own.
            options: of the data.

        Raises:
            DataError: as `open`.
        """
        if isinstance(data, str):
            plugin_files.remember(plugin_files.absolute(data))  # the user named it now
        if self._is_own(data) and not options:
            splits = self.open()
            named = {"train": splits.train, "validation": splits.validation, "test": splits.test, "none": splits.rest}
            return Parts(splits.name, {name: part for name, part in named.items() if part is not None}, list(splits.notes))
        size = self.sample_shape[1] if self.kind == "images" else None
        assert data is not None
        with trust.reading(self._source()):
            images = images_of(self.config, self.folder.kept_trunk)
        source, table = load_table(
            data, options=options, image_size=size, interpolation=images.interpolation, needs_labels=False
        )
        name = data if isinstance(data, str) else source.name
        self.check_fits(name, table)
        rows = np.arange(len(table.labels))
        whole = LabelledDataset(table.samples, rows, table.labels, table.class_names, table.sample_shape)
        notes = [*table.skipped, *self._notes_on_trained(table)]
        if self._is_own(data):
            notes.append("the options are not the run's: some of these classes may have been trained on")
        return Parts(name, {"all": whole}, notes, table.has_labels)

    def _notes_on_trained(self, table: Table) -> list[str]:
        if self._recorded is None:
            return []
        is_trained = self._recorded.trained_on(table)
        if not is_trained.any():
            return []
        count, classes = int(is_trained.sum()), len(np.unique(table.labels[is_trained]))
        return [f"not held out: {count:,} of these {len(is_trained):,} samples, of {classes:,} classes, were trained on"]

    def _check_counts(self, splits: Splits) -> None:
        """Refuse a split that was drawn anew, for want of the run's own, and differs from what the run's result says of it."""
        splits.notes.append(NO_SPLIT.format(folder=self.folder.path))
        about = self.folder.read_result().get("data") if self.folder.result.exists() else None
        parts = about.get("parts") if isinstance(about, dict) else None
        if parts is not None and parts != splits.describe()["parts"]:
            raise DataError(
                f"{splits.name} has changed since the run in {self.folder.path} was made, which keeps no split.json: classes"
                f" would be called held out that were trained on. Evaluate it on other data by --data, or train again"
            )

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

    def _is_own(self, data: Any) -> bool:
        own = self.config.settings.data.source
        assert own is not None
        if data is not None and not isinstance(data, str):
            return False
        return data is None or data == own or (Path(own).is_absolute() and expanded(data).resolve() == Path(own))

    def evaluate(self, data: Any = None, options: dict[str, Any] | None = None) -> dict[str, Any]:
        """Metrics and baselines: of the run's validation and test classes, or of all classes of other data. Arguments as of
        `parts`.

        Raises:
            DataError: the data cannot be used, or has no labels.
        """
        opened = self.parts(data, options)
        if not opened.has_labels:
            raise DataError(
                f"'{opened.name}' has no labels, so nothing can be measured on it. `dmlcore embed` writes its embeddings"
            )
        parts = {name: part for name, part in opened.parts.items() if name in ("validation", "test", "all")}
        notes = [*opened.notes, *(f"{name}: {why}" for name, part in parts.items() if (why := evaluating.why_not_ranked(part)))]
        parts = {name: part for name, part in parts.items() if len(part)}
        untrained = self._untrained(opened.parts.get("train"))
        workers = self.config.settings.data.workers
        with trust.reading(self._source("metric")):
            measures = build_components(self._read_config("metric"), "metric")
        metrics, baselines = evaluating.compare(
            self.model, untrained, parts, name=name_of_baseline(self.config), kind=self.kind, workers=workers, metrics=measures
        )
        return {
            "run": str(self.folder.path),
            "step": self.step,
            "data": opened.name,
            "metrics": metrics,
            "baselines": baselines,
            **named_metrics(self.model, parts, workers, measures),
            "notes": notes,
        }
