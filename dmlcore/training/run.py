"""A run: its data, model, losses, optimiser and position, built from a configuration; saving and restoring all of it."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dmlcore import losses, plugins
from dmlcore.config import build_options
from dmlcore.data import Batches, BatchSampler, SplitFile, Splits, Transforms, batches, open_data
from dmlcore.ensemble import LossEnsemble
from dmlcore.errors import ConfigError, TrainingError
from dmlcore.evaluation import Metric
from dmlcore.models import EmbeddingModel, build_model, default_image_size
from dmlcore.training import checkpoints
from dmlcore.training.extras import Compression, Extras
from dmlcore.training.folder import RunFolder
from dmlcore.training.optimiser import build_optimiser
from dmlcore.training.settings import DEFAULT_MODELS, DEFAULT_STEPS, RunConfig, Settings


def choose_device(name: str) -> torch.device:
    """The device of a name; `auto` is CUDA where there is one.

    Raises:
        ConfigError: CUDA is asked for and is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device is '{name}', but this computer has {torch.cuda.device_count()} CUDA devices. Use --device auto."
        )
    return device


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def open_splits(config: RunConfig) -> Splits:
    """The data of a configuration, in its three parts."""
    settings = config.settings
    fractions = (settings.fractions[0], settings.fractions[1], settings.fractions[2])
    model = settings.model or DEFAULT_MODELS["images"]
    splits = open_data(
        settings.data,
        options=config.options_of("data"),
        fractions=fractions,
        seed=settings.seed,
        image_size=settings.image_size,
        default_image_size=default_image_size(model, config.options_of("model") if settings.model else None),
        class_split=SplitFile.read(settings.splits).find(settings.split) if settings.splits else None,
    )
    if settings.transforms is not None:
        splits.train.augmentation = Transforms(built(config, "transform"), splits.kind)
    return splits


def built(config: RunConfig, kind: str) -> list[Any]:
    """The chosen components of a kind that need nothing but their options: transforms, metrics, loggers."""
    found = []
    for table, chosen in config.chosen.items():
        if chosen.kind == kind:
            component: Any = plugins.find(kind, chosen.name).component
            options = getattr(component, "Options", None)
            found.append(component(None if options is None else build_options(options, config.options.get(table, {}), table)))
    return found


def build_sampler(config: RunConfig, labels: np.ndarray, classes_per_batch: int, steps: int) -> BatchSampler:
    """What composes the training batches; `labels` are dense, int64 [N]."""
    settings = config.settings
    component: Any = plugins.find("sampler", settings.sampler).component
    options = build_options(component.Options, config.options_of("sampler"), component.name)
    return component(labels, classes_per_batch, settings.samples_per_class, settings.seed, steps=steps, options=options)


def build_run_model(config: RunConfig, sample_shape: tuple[int, ...], kind: str) -> EmbeddingModel:
    """The untrained model of a configuration: the same weights each time.

    Args:
        config: completed.
        sample_shape: shape of one sample.
        kind: `images` or `features`.
    """
    settings = config.settings
    needs_norms = any(_reads_norms(config, table) for table, component in config.chosen.items() if component.kind == "loss")
    assert settings.model is not None and settings.embedding_dim is not None
    names = [table for table in _losses(config) if not _is_regulariser(config, table)]
    heads = len(names) if settings.has_heads else 1
    if settings.has_heads and not names:
        raise ConfigError("every loss is a regulariser; heads need losses of their own")
    compressor = None
    if settings.compress:
        component: Any = plugins.find("compressor", settings.compressor).component
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            compressor = component(heads * settings.embedding_dim, settings.compress, **config.options_of("compressor"))
    return build_model(
        settings.model,
        sample_shape=tuple(sample_shape),
        kind=kind,
        embedding_dim=settings.embedding_dim,
        options=config.options_of("model"),
        normalize=not needs_norms,
        seed=settings.seed,
        heads=heads,
        head_names=names if heads > 1 else (),
        shows_features=_shows_features(config),
        student=settings.student,
        compressor=compressor,
        served=settings.serve or "whole",
    )


def _losses(config: RunConfig) -> dict[str, str]:
    """Names of the losses by their tables."""
    return {table: component.name for table, component in config.chosen.items() if component.kind == "loss"}


def _reads_norms(config: RunConfig, table: str) -> bool:
    component: Any = plugins.find("loss", config.chosen[table].name).component
    return component.reads_norms(build_options(component.Options, config.options.get(table, {}), table))


def _is_regulariser(config: RunConfig, table: str) -> bool:
    return issubclass(plugins.find("loss", config.chosen[table].name).component, losses.NormLoss)


def _shows_features(config: RunConfig) -> bool:
    return config.settings.classifier == "features" and "cross_entropy" in _losses(config).values()


def _columns(config: RunConfig, features: int) -> list[tuple[int, int] | None] | None:
    """The columns of the model's outputs that each loss sees; None: all of them."""
    settings = config.settings
    if not (settings.has_heads or _shows_features(config) or settings.student):
        return None
    d = settings.embedding_dim or 0
    heads = sum(not _is_regulariser(config, table) for table in _losses(config)) if settings.has_heads else 1
    found: list[tuple[int, int] | None] = []
    head = 0
    for table, name in _losses(config).items():
        if settings.has_heads and _is_regulariser(config, table):
            found.append(None)
            continue
        found.append((head * d, (head + 1) * d))
        if settings.has_heads:
            head += 1
        if name == "cross_entropy" and settings.classifier == "features":
            found[-1] = (heads * d, heads * d + features)
    return found


def build_ensemble(config: RunConfig, num_classes: int, features: int = 0) -> LossEnsemble:
    """The losses of a configuration and their weighting.

    Args:
        config: completed.
        num_classes: C of the training data.
        features: columns of the trunk's output, for losses that see it.
    """
    settings = config.settings
    columns = _columns(config, features)
    names = _losses(config)
    widths = [settings.embedding_dim if one is None else one[1] - one[0] for one in columns or [None] * len(names)]
    built = [
        losses.create(name, num_classes=num_classes, embedding_dim=width, **config.options.get(table, {}))
        for (table, name), width in zip(names.items(), widths, strict=True)
    ]
    return LossEnsemble(
        list(built),
        settings.weighting or "fixed",
        list(settings.weights) if settings.weights else None,
        weighting_options=config.options_of("weighting"),
        columns=columns,
        num_classes=num_classes,
        embedding_dim=settings.embedding_dim,
    )


@dataclass
class Best:
    """The best evaluation so far: its step and its MAP@R on the validation classes."""

    step: int = -1
    score: float = -1.0


class Run:
    """Everything a run consists of.

    Args:
        config: what to do; completed here, so that `run.config` leaves nothing open.
        folder: where its files lie.

    Attributes:
        config: completed `RunConfig`.
        folder: `RunFolder`; `folder.path` is the path.
        device: where the model is.
        splits: the data.
        model: the embedding model.
        ensemble: the losses.
        extras: the terms beside the losses: diversity of heads, the student's.
        compression: what fits or trains the model's compressor.
        memory: the memory they compare batches with, or None.
        loss: what a batch is given to: the memory if there is one, else the ensemble.
        sampler: composes the batches.
        metrics: measures beside those of retrieval.
        optimiser: AdamW with a `role` in every group.
        step: optimiser steps done.
        steps: optimiser steps of the whole run.
        evaluated: the last step that was evaluated, -1 before the first.
        best: the best evaluation.
        seconds: time trained before this process took over.
    """

    def __init__(self, config: RunConfig, folder: RunFolder) -> None:
        settings = config.settings
        self.folder = folder
        self.device = choose_device(settings.device)
        self.splits = open_splits(config)
        train = self.splits.train
        self.classes_per_batch = min(settings.classes_per_batch, train.num_classes)
        self.batch_size = self.classes_per_batch * settings.samples_per_class
        self.steps = _count_steps(settings, len(train), self.batch_size)
        self.config = config.completed(self.splits.kind, self.steps)
        seed_everything(settings.seed)
        self.model = build_run_model(self.config, self.splits.sample_shape, self.splits.kind).to(self.device)
        self.ensemble = build_ensemble(self.config, train.num_classes, self.model.trunk.features).to(self.device)
        self.extras = Extras(self.model, self.config.settings)
        self.memory = self._build_memory()
        self.loss: nn.Module = self.ensemble if self.memory is None else self.memory
        self.optimiser = build_optimiser(self.model, self.ensemble, settings)
        self.compression = Compression(self.model, settings.seed)
        self.sampler = build_sampler(self.config, train.dense_labels, self.classes_per_batch, self.steps)
        self.metrics: list[Metric] = built(self.config, "metric")
        self._batches: Batches | None = None
        self.step = 0
        self.evaluated = -1
        self.best = Best()
        self.seconds = 0.0

    def _build_memory(self) -> losses.CrossBatchMemory | None:
        settings = self.config.settings
        if settings.memory == 0:
            return None
        if settings.memory < self.batch_size:
            raise ConfigError(f"memory is {settings.memory}, but must hold at least a batch, {self.batch_size} samples")
        width = self.model.whole_dim + (self.model.trunk.features if self.model.shows_features else 0)
        memory = losses.CrossBatchMemory(self.ensemble, settings.memory, width, warmup=settings.memory_warmup)
        return memory.to(self.device)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches from the present step on: samples [B, ...] and dense labels [B], on the device."""
        settings = self.config.settings
        self._batches = batches(
            self.splits.train,
            self.sampler,
            workers=settings.workers,
            augment=True,
            seed=settings.seed,
        )
        for inputs, labels in self._batches:
            yield inputs.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)

    def weights(self) -> dict[str, Any]:
        """What a later evaluation needs: the model's weights and the shape of its samples."""
        return {
            "step": self.step,
            "kind": self.splits.kind,
            "sample_shape": list(self.splits.sample_shape),
            "model": self.model.state_dict(),
            "ensemble": self.ensemble.state_dict(),
        }

    def prepare_to_serve(self) -> None:
        """Bring what is served up to date with the training: the shares of the heads, the compressor."""
        if self.model.heads > 1:
            is_head = [not isinstance(loss, losses.NormLoss) for loss in self.ensemble.members]
            shares = self.ensemble.weighting.importances[torch.tensor(is_head)].to(self.model.shares)
            self.model.shares.copy_(shares / shares.sum() if shares.sum() > 0 else torch.full_like(shares, 1 / len(shares)))
        self.compression.fit(self.splits.train, self.config.settings.workers)

    def save_best(self) -> Path:
        """Write `checkpoints/best.pt`; returns its path."""
        return checkpoints.save(self.folder.checkpoints, "best", self.weights())

    def save(self, seconds: float) -> Path:
        """Write `checkpoints/last.pt`, from which the run continues exactly; returns its path.

        Args:
            seconds: time trained so far.
        """
        # Workers draw ahead of the step, so the batches know better than the sampler where the stream is.
        position = (self._batches.state_dict() if self._batches else None) or self.sampler.state_dict()
        position = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in position.items()}
        state = {
            **self.weights(),
            "memory": None if self.memory is None else self.memory.memory_state(),
            "optimiser": self.optimiser.state_dict(),
            "compression": self.compression.state_dict(),
            "sampler": position,
            "random": _random_state(self.device),
            "evaluated": self.evaluated,
            "best_step": self.best.step,
            "best_score": self.best.score,
            "seconds": seconds,
        }
        return checkpoints.save(self.folder.checkpoints, "last", state)

    def restore(self, state: dict[str, Any]) -> None:
        """Go to where a checkpoint was saved.

        Raises:
            TrainingError: the checkpoint belongs to another model or to other data.
        """
        try:
            self.model.load_state_dict(state["model"])
            self.ensemble.load_state_dict(state["ensemble"])
            if self.memory is not None:
                self.memory.load_memory_state(state["memory"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.compression.load_state_dict(state["compression"])
            self.sampler.load_state_dict(state["sampler"])
        except (KeyError, TypeError, RuntimeError, ValueError, ConfigError) as error:
            raise TrainingError(
                f"the checkpoint in {self.folder.checkpoints} does not fit the run ({str(error).splitlines()[0]});"
                f" config.toml or the data has changed since. Undo that, or start a new run."
            ) from error
        _restore_random_state(state["random"], self.device)
        self.step, self.evaluated = state["step"], state["evaluated"]
        self.best = Best(state["best_step"], state["best_score"])
        self.seconds = state["seconds"]


def _count_steps(settings: Settings, samples: int, batch_size: int) -> int:
    steps = settings.steps or DEFAULT_STEPS
    if settings.epochs is not None:
        steps = max(1, -(-settings.epochs * samples // batch_size))
    return limited(steps)


def limited(steps: int) -> int:
    """A number of optimiser steps, or fewer where `DML_MAX_STEPS` says so.

    Raises:
        ConfigError: it says something else.
    """
    limit = os.environ.get("DML_MAX_STEPS", "")
    if limit and not (limit.isdigit() and int(limit)):
        raise ConfigError(f"DML_MAX_STEPS is '{limit}', but must be a whole number >= 1")
    return min(steps, int(limit)) if limit else steps


def _random_state(device: torch.device) -> dict[str, Any]:
    numpy_state: Any = np.random.get_state(legacy=False)
    inner = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in numpy_state["state"].items()}
    return {
        "python": random.getstate(),
        "numpy": {**numpy_state, "state": inner},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def _restore_random_state(state: dict[str, Any], device: torch.device) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    inner = {
        key: np.array(value, dtype=np.uint32) if isinstance(value, list) else value
        for key, value in state["numpy"]["state"].items()
    }
    np.random.set_state({**state["numpy"], "state": inner})
    torch.set_rng_state(state["torch"].cpu())
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
