"""One optimiser step on one batch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dmlcore.errors import PluginError, TrainingError, of_all
from dmlcore.training import optimiser, schedule
from dmlcore.training.climbing import Climb
from dmlcore.training.diagnosis import why_not_finite
from dmlcore.training.measurements import Measurements, StepRecord, effective_rank

if TYPE_CHECKING:
    from dmlcore.training.run import Run


def take_step(run: Run, inputs: Tensor, labels: Tensor, factor: float | None = None) -> StepRecord:
    """Train on a batch and count the step.

    Args:
        run: its model, losses, optimiser and `step` are changed.
        inputs: [B, ...], or [2 B, ...] for losses that take keys: the second views behind the first ones. With several
            processes this one's part of them.
        labels: [B] int64, of all.
        factor: on the learning rates; None: the schedule's.

    Raises:
        TrainingError: a loss or gradient is not finite, and no parameter was changed; or the memory of the device is full.
        PluginError: a loss that is no single number.
    """
    settings, number = run.config.settings, run.step + 1
    inputs, second_views = (inputs, None) if run.keys is None else inputs.chunk(2)
    of_roles = schedule.role_factors(run.step, settings.rates) if factor is None else {}
    if factor is None:
        factor = schedule.factor(run.schedule, run.step, run.steps, settings.optimiser.warmup)
    rates = optimiser.set_rates(run.optimiser, factor, of_roles)
    _let_train(run.model)
    run.freeze_trunk(number <= settings.rates.freeze)
    _let_train(run.loss)
    run.optimiser.zero_grad(set_to_none=True)
    run.ensemble.measures_gradients = number % settings.run.log_every == 0
    climb = Climb(run) if run.optimizer.climbs else None
    try:
        embeddings, total, extra_terms = _pass(run, inputs, labels, second_views)
        measured = _measure(run, total, extra_terms, embeddings)
        if climb is not None and climb.begin():
            with climb:
                _pass(run, inputs, labels, second_views)
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"step {number}: not enough memory on {run.device} for a batch of {len(labels)}."
            f" --accumulate {2 * settings.optimiser.accumulate} halves what the model needs and gives the same gradient;"
            f" --precision bf16 or a smaller --classes-per-batch needs less as well."
        ) from error
    run.passage.unscale(run.optimiser)
    norms = optimiser.clip(run.optimiser, settings.optimiser.clip, run.divided.parts)
    measured.gradient_norms = {"model": norms[0], "losses": norms[1]}
    record = measured.fetch()  # of all samples, so that all processes raise together
    reason = why_not_finite(record, run.ensemble, embeddings, labels)
    overflows = run.passage.scaler.is_enabled() and math.isfinite(record.total)  # the step is left out
    if reason and not overflows:
        raise of_all(
            TrainingError(
                f"step {number}: {reason}. Training stops; {run.saved_note()} (in {run.folder.checkpoints})."
                f" Try a smaller --learning-rate, or other options of that loss."
            )
        )
    if run.ensemble.measures_gradients:
        record.effective_rank = effective_rank(embeddings)
    record.is_skipped = not run.passage.step(run.optimiser)
    run.step = record.step = number
    if run.averaged is not None:
        run.averaged.update(run.model, number)
    if run.keys is not None:
        run.keys.follow(run.model)
    record.learning_rates = rates
    online_loss = run.compression.step(inputs, run.processes)
    if online_loss is not None:
        record.extra_terms["compressor"] = online_loss
    return record


def _let_train(module: nn.Module) -> None:
    """`module.train()`, which takes a tenth of a millisecond even where nothing changes."""
    if not all(part.training for part in module.modules()):
        module.train()


def _pass(run: Run, inputs: Tensor, labels: Tensor, second_views: Tensor | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Forward and backward: embeddings, total and terms beside the losses. Gradients are added."""
    own = outputs = run.passage.outputs(inputs)  # [B, W]
    if run.processes is not None:
        outputs = run.processes.whole(own, len(labels))
        run.ensemble.layout = run.processes.layout(len(labels))
    embeddings = run.model.losses_part(outputs)
    embeddings.retain_grad()  # for the diagnosis
    total = run.loss(embeddings, labels, **_keys(run, second_views, len(labels)))
    _check_is_a_number(total, run.ensemble.names)
    extra_terms = run.extras.terms(outputs)
    if run.distillation is None:
        total = sum(extra_terms.values(), start=total)
    else:
        taught, terms = run.distillation.join(total, outputs, labels, run.step)
        total = sum(extra_terms.values(), start=taught)
        extra_terms |= terms
    run.passage.backward(total, own)
    if run.processes is not None:
        run.processes.sum_gradients(run.models.whole_parameters)
        run.models.take_gradients()
    return embeddings, total, extra_terms


def _keys(run: Run, second_views: Tensor | None, count: int) -> dict[str, Tensor]:
    """What the losses are given beside the batch: the keys of all samples, where a loss takes any."""
    if run.keys is None or second_views is None:
        return {}
    keys = run.keys.keys(second_views, run.passage)
    return {"keys": keys if run.processes is None else run.processes.whole(keys, count)}


def _measure(run: Run, total: Tensor, extra_terms: dict[str, Tensor], embeddings: Tensor) -> Measurements:
    ensemble = run.ensemble
    terms, active = ensemble.terms, ensemble.active  # each makes all of them anew
    gradients = ensemble.gradient_norms if ensemble.measures_gradients else {}
    return Measurements(
        total=total,
        gradient_norms={},
        terms={name: terms[name] for name in ensemble.names},
        active={name: active[name] for name in ensemble.names},
        weights=ensemble.weights,
        extra_terms=extra_terms,
        embedding_norms=_embedding_norms(run, embeddings),
        loss_gradient_norms=gradients,
        loss_gradient_cosines=ensemble.gradient_cosines if gradients else None,
    )


def _embedding_norms(run: Run, embeddings: Tensor) -> dict[str, Tensor]:
    """Mean and standard deviation of the norms of raw embeddings (of all heads); nothing where the model normalises."""
    model = run.model
    if model.normalize:
        return {}
    heads = embeddings.detach()[:, : model.whole_dim].unflatten(1, (model.heads, model.head_dim))  # [B, m, D]
    norms = torch.linalg.vector_norm(heads.float(), dim=2)  # [B, m]
    return {"mean": norms.mean(), "deviation": norms.std(correction=0)}


def _check_is_a_number(total: object, names: list[str]) -> None:
    if not isinstance(total, Tensor) or total.ndim:
        shape = f"shape {tuple(total.shape)}" if isinstance(total, Tensor) else type(total).__name__
        raise PluginError(f"the ensemble of {', '.join(names)} gave {shape} instead of one number")
