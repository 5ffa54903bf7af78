"""A run: its parts, built from a configuration, and its position; saving and restoring all of it. How the parts are built is in
`building.py`, how they are stepped in `step.py` and `loop.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dmlcore import losses
from dmlcore.data import Batches, RecordedSplit, batches
from dmlcore.data.rotations import with_rotated_classes
from dmlcore.data.views import with_views
from dmlcore.errors import ConfigError, TrainingError, first_line
from dmlcore.evaluation import Metric
from dmlcore.evaluation.evaluating import check_names
from dmlcore.losses.parting import parts_of
from dmlcore.models import EmbeddingModel
from dmlcore.ranks.statistics import share_statistics
from dmlcore.training import building, checkpoints
from dmlcore.training.adapting import check_losses_of_label_sets, check_losses_of_views
from dmlcore.training.averaging import AveragedWeights
from dmlcore.training.beginning import first_model
from dmlcore.training.configuration import RunConfig
from dmlcore.training.divided import DividedParameters, build_divided, build_divided_memory
from dmlcore.training.extras import Compression, Extras
from dmlcore.training.folder import RunFolder
from dmlcore.training.freezing import freeze_parts
from dmlcore.training.model_shards import Models, own_state
from dmlcore.training.optimiser import build_optimiser
from dmlcore.training.passage import Passage
from dmlcore.training.processes import Processes
from dmlcore.training.random_state import random_state, restore_random_state, seed_everything
from dmlcore.training.step_counts import count_steps
from dmlcore.training.trainable import check_is_trainable


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
        recorded: the split that was kept when the run was made. None: the run is new, and draws one.
        is_resumed: the weights are replaced at once by those of a checkpoint, so what they begin with need not be there.
        processes: that train together; None: this one is alone.

    Attributes:
        config: completed `RunConfig`.
        folder: `RunFolder`; `folder.path` is the path.
        device: where the model is.
        splits: the data.
        classes_per_batch, batch_size: classes (labels, where samples have several) and samples of a batch.
        model: the embedding model.
        ensemble: the losses.
        extras: the terms beside the losses: diversity of heads, the student's.
        distillation: the wide heads' losses and what they teach, or None.
        compression: what fits or trains the model's compressor.
        memory: the memory they compare batches with, or None.
        keys: what makes the keys for losses that take them, or None.
        loss: what a batch is given to: the memory if there is one, else the ensemble.
        sampler: of batches.
        metrics: measures beside those of retrieval.
        schedule: the learning rate over the steps.
        bytes_of_a_step: memory that a step needs, about, where it was measured already.
        optimizer, optimiser: the rule of a step, and PyTorch's object of it, with a `role` in every group.
        models: the model and its copies, of which each process may have a part.
        divided: the parameters of losses and of the model of which each process has a part.
        passage: takes batches through the model.
        averaged: the running average of the weights, or None.
        step, steps: optimiser steps done, and of the whole run.
        evaluated: the last step that was evaluated, -1 before the first.
        saved: step of the last checkpoint to continue from, -1 before the first.
        best, seconds: the best evaluation, and the time trained before this process took over.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        recorded: RecordedSplit | None = None,
        is_resumed: bool = False,
        processes: Processes | None = None,
    ) -> None:
        settings, optimiser = config.settings, config.settings.optimiser
        self.folder = folder
        self.processes = processes
        self.device = building.choose_device(settings.run.device) if processes is None else processes.device
        self.splits = building.open_splits(config, recorded, is_whole=True, kept=folder.kept_trunk)
        if settings.data.views is not None:
            check_losses_of_views(config)
            self.splits = with_views(self.splits, settings.data.views, settings.run.seed)
        if settings.data.rotated_classes:
            self.splits = with_rotated_classes(self.splits)
        train = self.splits.train
        self.classes_per_batch = min(settings.data.classes_per_batch, train.num_labels)
        self.batch_size = self.classes_per_batch * settings.data.samples_per_class
        if processes is not None and self.batch_size < processes.size:
            raise ConfigError(f"a batch has {self.batch_size} samples, which {processes.size} processes cannot divide")
        self.steps = count_steps(settings, len(train) * (settings.data.views or 1), self.batch_size)
        if train.sets is not None:
            check_losses_of_label_sets(config, self.splits)
        if settings.model.head == "none" and settings.model.embedding_dim is None:
            config = building.with_width_of_trunk(config, self.splits.sample_shape, self.splits.kind, folder.kept_trunk)
        self.config = config.completed(self.splits.kind, self.steps, self.splits.sample_shape)
        # The order of what draws random numbers is part of a run's result.
        seed_everything(settings.run.seed)
        shape, kind = self.splits.sample_shape, self.splits.kind
        if is_resumed:
            model = building.build_untrained_model(self.config, folder, shape, kind).to(self.device)
        else:
            model = first_model(self.config, shape, kind, self.device, train, folder)
        if self.config.settings.model.gradient_checkpointing:
            model.trunk.checkpoint_gradients()
        self._format = torch.contiguous_format
        if self.config.settings.model.channels_last and kind == "images":
            self._format = torch.channels_last
            model.trunk.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model = model
        if processes is not None:
            share_statistics(model, processes.group, self.device)
        self.ensemble = build_divided(self.config, train.num_classes, model.trunk.features, processes).to(self.device)
        self.extras = Extras(self.model, self.config.settings)
        self.distillation = building.build_distillation(self.config, self.model, train.num_classes)
        self.memory = build_divided_memory(self.config, self.ensemble, self.model, self.batch_size, processes)
        for module in (self.extras.adversary, self.distillation, self.memory):
            if module is not None:
                module.to(self.device)
        self.keys = building.build_keys(self.config, self.ensemble, self.model, self.splits)
        self.loss: nn.Module = self.ensemble if self.memory is None else self.memory
        (self.optimizer,), (self.schedule,) = (building.build_components(self.config, k) for k in ("optimizer", "schedule"))
        check_is_trainable(self.config.settings, self.batch_size, self.optimizer, self.schedule)
        freeze_parts(model.trunk, self.config.settings.rates, settings.run.recipe)
        self.averaged = AveragedWeights(model, optimiser.average) if optimiser.average is not None else None
        self.bytes_of_a_step: int | None = None
        self.models = Models([model])
        self._build_optimiser()
        self.passage = Passage(
            model,
            self.device,
            precision=optimiser.precision,
            parts=optimiser.accumulate,
            compiles=self.config.settings.model.compile,
            computes_again=self.config.settings.model.gradient_checkpointing,
        )
        self.compression = Compression(self.model, settings.run.seed, self.served)
        self.sampler = building.build_sampler(self.config, train, self.classes_per_batch, self.steps)
        self.metrics: list[Metric] = building.build_components(self.config, "metric")
        check_names(self.metrics, {"validation": self.splits.validation, "test": self.splits.test})
        self._batches: Batches | None = None
        self.step, self.evaluated, self.saved = 0, -1, -1
        self.best = Best()
        self.seconds = 0.0

    @property
    def writes(self) -> bool:
        """Whether this process writes what the run leaves; one of several does."""
        return self.processes is None or self.processes.is_first

    @property
    def validates(self) -> bool:
        """Whether a validation part chooses the checkpoint; else the last one is taken."""
        return self.config.settings.run.validation != "none"

    @property
    def divides_model(self) -> bool:
        """Whether processes are to divide the model."""
        return self.processes is not None and self.config.settings.model.shard_model

    @property
    def served(self) -> EmbeddingModel:
        """What is evaluated: the model, or the average of its weights."""
        return self.model if self.averaged is None else self.averaged.model

    def _build_optimiser(self) -> None:
        extras, distillation = self.extras, self.distillation
        self.optimiser = build_optimiser(
            self.model,
            self.ensemble,
            self.config.settings.optimiser,
            self.optimizer,
            self.config.settings.rates,
            further=() if distillation is None else distillation.losses,
            against_heads=() if extras.adversary is None else extras.adversary.parameters(),
            rows=self.models.rows,
        )
        copied = {"trained": self.averaged and self.model, "keys": self.keys and self.keys.model}
        modules = {"ensemble": parts_of(self.ensemble)} | {n: self.models.parts(m) for n, m in copied.items() if m}
        trained = self.models.parts(self.model).values()
        self.divided = DividedParameters(modules, trained, self.optimiser, self.memory, self.processes)
        self._trained = [p for p in self.model.trunk.parameters() if p.requires_grad]

    def divide_model(self) -> None:
        """Let the processes divide the model, or raise ConfigError where it cannot be. All call this before the first step."""
        assert self.processes is not None
        copies = [copy.model for copy in (self.averaged, self.keys) if copy is not None]
        sample = self.splits.train.batch([0]).to(self.device)
        self.models = Models([self.model, *copies], self.processes.group, sample)
        self._build_optimiser()

    def keep_trunk(self) -> None:
        """Write into the folder what the trunk was made of."""
        trunk = self.model.trunk
        if self.models.are_divided:  # this process has rows of it only, so it is made once more
            shape, kind = self.splits.sample_shape, self.splits.kind
            trunk = building.build_run_model(self.config, shape, kind, self.folder.kept_trunk).trunk
        trunk.keep(self.folder.trunk)

    def freeze_trunk(self, is_frozen: bool) -> None:
        """Let the trunk train or not."""
        for parameter in self._trained:
            parameter.requires_grad_(not is_frozen)
        if is_frozen:
            self.model.trunk.eval()  # nor do its running means move

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches from the present step on, on the device: samples [B, ...] and dense labels [B], or where samples have several
        which of them, bool [B, L]."""
        settings = self.config.settings
        self._batches = batches(
            self.splits.train,
            self.sampler,
            workers=settings.data.workers,
            augment=True,
            seed=settings.run.seed,
            pinned=self.device.type == "cuda",
            part=None if self.processes is None else self.processes.part(self.batch_size),
            views=1 if self.keys is None else 2,
        )
        sets = self.splits.train.sets
        for inputs, labels in self._batches:
            labels = labels if sets is None else torch.from_numpy(sets.matrix(labels.numpy()))
            inputs = inputs.to(self.device, non_blocking=True, memory_format=self._format)
            yield inputs, labels.to(self.device, non_blocking=True)

    def end_batches(self) -> None:
        """Forget the present batches, and what was drawn ahead for them."""
        self.close()
        self._batches = None

    def close(self) -> None:
        """End what works for the run."""
        if self._batches is not None:
            self._batches.close()

    def weights(self) -> dict[str, Any]:
        """What a later evaluation needs: the model's weights and the shape of its samples."""
        return {
            "step": self.step,
            "kind": self.splits.kind,
            "sample_shape": list(self.splits.sample_shape),
            "config": self.config.as_dict(),
            "model": self.models.whole_state(self.served),
            "ensemble": self.ensemble.state_dict(),
        }

    def prepare_to_serve(self) -> None:
        """Bring what is served up to date with the training: the shares of the heads, the compressor."""
        model = self.served
        if model.heads > 1:
            has_head = [not isinstance(loss, losses.NormLoss) for loss in self.ensemble.members]
            shares = self.ensemble.weighting.importances[torch.tensor(has_head)].to(model.shares)
            if self.config.settings.ensemble.shares is not None:
                shares = shares.new_tensor(self.config.settings.ensemble.shares)
            model.shares.copy_(shares / shares.sum() if shares.sum() > 0 else torch.full_like(shares, 1 / len(shares)))
        self.compression.fit(self.splits.train, self.config.settings.data.workers)

    def save_start(self) -> None:
        """Write `checkpoints/start.pt` for a module from Python, whose first weights nobody can draw again."""
        if self.config.objects.model is None:
            return
        weights = self.weights()  # which takes all processes
        if self.writes:
            checkpoints.save_start(self.folder.checkpoints, weights)

    def save_best(self) -> Path:
        """Write `checkpoints/best.pt`; returns its path."""
        weights = self.weights()  # which takes all processes
        if not self.writes:
            return checkpoints.path_of(self.folder.checkpoints, "best")
        return checkpoints.save(self.folder.checkpoints, "best", self.divided.without(weights))

    def save(self, seconds: float) -> Path:
        """Write `checkpoints/last.pt`, from which the run continues exactly; returns its path.

        Args:
            seconds: time trained so far.
        """
        state = self.state()
        shards = self.divided.save(self.folder.checkpoints, state)
        if not self.writes:
            self.saved = self.step
            return checkpoints.path_of(self.folder.checkpoints, "last")
        state = {
            **self.divided.without(state),
            "shards": shards,
            "evaluated": self.evaluated,
            "best_step": self.best.step,
            "best_score": self.best.score,
            "seconds": seconds,
            "records": self.folder.mark_of_records(),
        }
        path = checkpoints.save(self.folder.checkpoints, "last", state)
        self.saved = self.step
        checkpoints.forget_best_before(self.folder.checkpoints)
        self.divided.forget(self.folder.checkpoints, shards)
        return path

    def state(self) -> dict[str, Any]:
        """All that a step may change, by reference."""
        # Workers draw ahead of the step, so the batches know better than the sampler where the stream is.
        position = (self._batches.state_dict() if self._batches else None) or self.sampler.state_dict()
        position = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in position.items()}
        return {
            **self.weights(),
            "trained": None if self.averaged is None else own_state(self.model),
            "passage": self.passage.state_dict(),
            "memory": None if self.memory is None else self.memory.memory_state(),
            "keys": None if self.keys is None else own_state(self.keys.model),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "compression": self.compression.state_dict(),
            "adversary": None if self.extras.adversary is None else self.extras.adversary.state_dict(),
            "distillation": None if self.distillation is None else self.distillation.state_dict(),
            "sampler": position,
            "random": random_state(self.device),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to what `state` gave."""
        self.models.load(self.served, state["model"])
        if self.averaged is not None:
            self.models.load(self.model, state["trained"])
        self.passage.load_state_dict(state["passage"])
        self.ensemble.load_state_dict(state["ensemble"])
        if self.memory is not None:
            self.memory.load_memory_state(state["memory"])
        if self.keys is not None:
            self.models.load(self.keys.model, state["keys"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state.get("schedule", {}))  # a run from before there were schedules has none
        self.compression.load_state_dict(state["compression"])
        if self.extras.adversary is not None:
            self.extras.adversary.load_state_dict(state["adversary"])
        if self.distillation is not None:
            self.distillation.load_state_dict(state["distillation"])
        self.sampler.load_state_dict(state["sampler"])
        restore_random_state(state["random"], self.device)
        self.step = state["step"]

    def saved_note(self) -> str:
        """What there is to continue from, for messages about why a run stops."""
        return "no checkpoint was saved yet" if self.saved < 0 else f"the checkpoint of step {self.saved} is intact"

    def restore(self, state: dict[str, Any]) -> None:
        """Go to where a checkpoint was saved.

        Raises:
            TrainingError: the checkpoint belongs to another model or to other data, or the best one is another than it names.
        """
        state = self.divided.completed(self.folder.checkpoints, state)
        try:
            self.load_state(state)
            self._restore_position(state)
        except Exception as error:  # whatever PyTorch and numpy make of values of wrong types and shapes
            reason = f"it has no {error}" if isinstance(error, KeyError) else first_line(error)
            raise TrainingError(
                f"the checkpoint in {self.folder.checkpoints} does not fit the run ({reason[:160]});"
                f" config.toml, the data or the checkpoint has changed since. Undo that, or start a new run."
            ) from error
        checkpoints.check_best(self.folder.checkpoints, self.best.step, self.step)

    def _restore_position(self, state: dict[str, Any]) -> None:
        evaluated, best_step = state["evaluated"], state["best_step"]
        score, seconds = float(state["best_score"]), float(state["seconds"])
        for name, number in (("evaluated", evaluated), ("best_step", best_step)):
            if number != -1 and not (checkpoints.is_count(number) and number <= state["step"]):
                raise ValueError(f"its '{name}' is wrong")
        if not (math.isfinite(score) and math.isfinite(seconds)):
            raise ValueError("its 'best_score' or 'seconds' is wrong")
        self.saved = self.step
        self.evaluated, self.best, self.seconds = evaluated, Best(best_step, score), seconds
