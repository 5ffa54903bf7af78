"""The model of a finished (or stopped) run: it knows the data of its run too, and evaluates itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from dmlcore import trust
from dmlcore.data import LabelledDataset, RecordedSplit, Splits, Table
from dmlcore.data.crops import resize_for_test
from dmlcore.data.images import Interpolation
from dmlcore.errors import ConfigError, DataError, first_line
from dmlcore.evaluation import Metric
from dmlcore.files import expanded
from dmlcore.models import EmbeddingModel, weights_follow
from dmlcore.serving.evaluation import EvaluationOptions, evaluate
from dmlcore.serving.inputs import Parts, named_by_user
from dmlcore.serving.model import Model
from dmlcore.serving.samples import Preparation
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

NAMED = 10  # classes in a note
OF_A_MODEL = ("loss", "model", "compressor")  # kinds without which no model is built
MEASURED = ("metrics", "baselines", "advice", "chosen_step", "chosen_by")
OF_A_CARD = ("losses", "data", "steps", "seed", "versions", *MEASURED)  # of `result.json`


class TrainedRun(Model):
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

    has_data = True

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
        on_device = choose_device(device)
        self._recorded = RecordedSplit.read(self.folder.split) if self.folder.split.exists() else None
        state = checkpoints.load(self.folder.checkpoints, checkpoint)
        check_unchanged(self.folder, state["config"])
        self.step: int = state["step"]
        kind, sample_shape = state["kind"], tuple(state["sample_shape"])
        with trust.reading(self._source()):
            with weights_follow():
                model = build_run_model(self.config, sample_shape, kind, self.folder.kept_trunk)
            images = images_of(self.config, self.folder.kept_trunk)
        try:
            model.load_state_dict(state["model"])
        except (RuntimeError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"the checkpoint does not fit {self.folder.config}, which was changed since: {first_line(error)}"
            ) from error
        model.trunk.merge()
        model.to(on_device).eval()
        interpolation = _interpolation(state["config"], images.interpolation)
        name = f"the run in {self.folder.path}"
        resize = _resize(state["config"], sample_shape) if kind == "images" else 0
        super().__init__(model, name, Preparation(kind, sample_shape, interpolation, resize), on_device)

    @property
    def about(self) -> dict[str, Any]:
        """What `result.json` says of its training, without places on this computer.

        Raises:
            TrainingError: that is damaged.
        """
        result = self.folder.read_result() if self.folder.result.exists() else {}
        about = {key: result[key] for key in OF_A_CARD if key in result}
        if self.step != about.get("chosen_step"):  # another checkpoint, which nobody has measured
            about = {key: value for key, value in about.items() if key not in MEASURED}
        data = about.get("data")
        if isinstance(data, dict):
            about["data"] = {"name": Path(str(data.get("name"))).name, "kind": self.kind, "parts": data.get("parts")}
        return about

    def _source(self, *kinds: str) -> trust.Folder:
        return trust.Folder(self.folder.path, (*OF_A_MODEL, *kinds), self._trusts_plugins)

    def _read_config(self, *kinds: str) -> RunConfig:
        """The configuration; of the components in files, only those that the model and some kinds need are imported."""
        return RunConfig.read_run(self.folder.config, self._source(*kinds)).with_objects(self._objects)

    @property
    def identity(self) -> dict[str, Any]:
        return {"run": str(self.folder.path), "step": self.step}

    @property
    def workers(self) -> int | None:
        return self.config.settings.data.workers

    def baseline(self, train: LabelledDataset | None) -> tuple[str, EmbeddingModel | None]:
        with trust.reading(self._source()):
            untrained = baseline_model(self.config, self.sample_shape, self.kind, self.device, train, self.folder)
        return name_of_baseline(self.config), untrained

    @property
    def recall_at(self) -> Sequence[int]:
        return self.config.settings.run.recall_at

    def measures(self) -> list[Metric]:
        with trust.reading(self._source("metric")):
            return build_components(self._read_config("metric"), "metric")

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
        data = named_by_user(data)
        if self._is_own(data) and not options:
            splits = self.open()
            named = {"train": splits.train, "validation": splits.validation, "test": splits.test, "none": splits.rest}
            if self.config.settings.run.validation == "none":
                del named["validation"]
            parts = {name: part for name, part in named.items() if part is not None}
            return Parts(splits.name, parts, list(splits.notes), splits.has_labels, splits.sample_names, splits.paths)
        assert data is not None
        opened = super().parts(data, options)
        if self._is_own(data):
            opened.notes.append("the options are not the run's: some of these classes may have been trained on")
        return opened

    def _notes(self, table: Table) -> list[str]:
        if self._recorded is None:
            return []
        is_trained = self._recorded.trained_on(table)
        if not is_trained.any():
            return []
        count, classes = int(is_trained.sum()), np.unique(table.labels[is_trained])
        named = ", ".join(f"'{table.class_names[label]}'" for label in classes[:NAMED]) + (
            ", ..." if len(classes) > NAMED else ""
        )
        return [
            f"not held out: {count:,} of these {len(is_trained):,} samples, of {len(classes):,} classes, were trained on"
            f" ({named})"
        ]

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

    def _is_own(self, data: Any) -> bool:
        own = self.config.settings.data.source
        assert own is not None
        if data is not None and not isinstance(data, str):
            return False
        return data is None or data == own or (Path(own).is_absolute() and expanded(data).resolve() == Path(own))

    def evaluate(
        self, data: Any = None, options: dict[str, Any] | None = None, *, rerank: str | None = None, **how: Any
    ) -> dict[str, Any]:
        """Metrics and baselines: of the run's validation and test classes, or of all classes of other data.

        Args:
            data, options: as of `parts`.
            rerank: also measure re-ranking by this method, one of `reranking.METHODS`.
            how: further fields of `EvaluationOptions`.

        Raises:
            ConfigError: there is no such method, or an option is out of range.
            DataError: the data cannot be used, or has no labels.
        """
        return evaluate(self, data, options, EvaluationOptions(rerank=rerank, **how)).result


def _interpolation(config: dict[str, Any], of_trunk: Interpolation) -> Interpolation:
    """How the run's pictures were resized: as the options of its data say, of which no code is needed here, or as its trunk
    prefers."""
    for table in config.values():
        if isinstance(table, dict) and table.get("interpolation") in get_args(Interpolation):
            return table["interpolation"]
    return of_trunk


def _resize(config: dict[str, Any], sample_shape: tuple[int, ...]) -> int:
    """Pixels to which the shorter side of the run's pictures was resized before the cut; 0: as much as covers it."""
    for table in config.values():
        if isinstance(table, dict) and table.get("crops", "square") != "square":
            return resize_for_test(sample_shape[-1], table.get("resize"))
    return 0
