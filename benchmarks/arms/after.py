"""What needs trained models only: compression, whitening, re-ranking, and networks whose weights are averaged."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.arms.plan import LENGTH, Cell
from dmlcore.evaluation import evaluating
from dmlcore.plugins import registry
from dmlcore.serving import TrainedRun

if TYPE_CHECKING:
    from dmlcore.data import Splits
    from dmlcore.models import EmbeddingModel

LOWER = 4
"""By how much the rate of members that go on from one start is below that of the start: far from it, averages are no model."""
PARTS = ("train", "validation", "test")
Figures = dict[str, dict[str, dict[str, float]]]


def compressed(parts: dict[str, Tensor], labels: np.ndarray, compressor: str = "pca") -> dict[str, Tensor]:
    """Unit vectors of `LENGTH` numbers: what a compressor learns from the training part, for all parts."""
    fitted = registry("compressor")[compressor].component(parts["train"].shape[1], LENGTH)
    fitted.fit(parts["train"], torch.from_numpy(labels))
    return {name: functional.normalize(fitted(rows)) for name, rows in parts.items()}


def embeddings_of(model: EmbeddingModel, splits: Splits) -> dict[str, Tensor]:
    """The whole embeddings [N, W] of all parts."""
    return {part: evaluating.embed_named(model, getattr(splits, part), only="whole")["whole"] for part in PARTS}


def measure(parts: dict[str, Tensor], splits: Splits) -> dict[str, dict[str, float]]:
    """MAP@R and R@1 in points, of validation and test classes."""
    return {part: points(evaluating.evaluate(parts[part], getattr(splits, part))) for part in PARTS[1:]}


def points(metrics: dict[str, Any]) -> dict[str, float]:
    """The figures that are kept."""
    return {name: round(100 * metrics[key], 3) for name, key in (("MAP@R", "map@r"), ("R@1", "recall@1"))}


def after_training(folder: Path) -> Figures:
    """Figures of what is done to a trained run, by the names of `plan.AFTER`."""
    run = TrainedRun(folder, device="cpu")
    splits = run.open()
    whole = embeddings_of(run.model, splits)
    served = compressed(whole, splits.train.labels)
    figures: Figures = {"whitened": measure(compressed(whole, splits.train.labels, "wccn"), splits)}
    for name, method in (("expanded", "query-expansion"), ("reciprocal", "k-reciprocal")):
        figures[name] = {"test": points(evaluating.rerank(served["test"], splits.test, method))}
    return figures


def soup(cell: Cell, file: str, out: Path) -> dict[str, dict[str, float]]:
    """Train half of the steps, let members go on from there for the other half, each with its loss and batches of its own, and
    measure the network whose weights are their mean.

    Source: Wortsman et al., "Model Soups", ICML 2022. Deviation: the members begin with a half-trained network, not with one
    that was trained on other data.
    """
    from dmlcore.training import train

    half = cell.settings["steps"] // 2
    settings: dict[str, Any] = {**cell.settings, "steps": half, "eval_every": half, "log_every": half}
    settings |= {"data": file, "device": "cpu", "report": False}
    start = train(out=out / "start", plugins=cell.losses, seed=cell.seed, **settings)["run"]
    rate = TrainedRun(start, device="cpu").config.settings.optimiser.learning_rate
    assert rate is not None  # completed
    runs = []
    for number, loss in enumerate(cell.members):
        own: dict[str, Any] = {
            name: value for name, value in settings.items() if not isinstance(value, dict) or name in ("conv", loss)
        }
        own |= {"plugins": (loss,), "learning_rate": rate / LOWER, "seed": cell.seed + 1000 * (number + 1)}
        runs.append(TrainedRun(train(out=out / str(number), init=start, **own)["run"], device="cpu"))
    splits = runs[0].open()
    model = averaged([run.model for run in runs])
    estimate_statistics(model, splits)
    return measure(compressed(embeddings_of(model, splits), splits.train.labels), splits)


@torch.no_grad()
def averaged(models: list[EmbeddingModel]) -> EmbeddingModel:
    """The first model, with the mean of the weights of all."""
    states = [model.state_dict() for model in models]
    for name, weight in states[0].items():
        if weight.is_floating_point():
            weight.copy_(torch.stack([state[name] for state in states]).mean(0))
    return models[0]


@torch.no_grad()
def estimate_statistics(model: EmbeddingModel, splits: Splits) -> None:
    """Batch normalisation of averaged weights needs statistics of its own: the mean over batches of the training part."""
    layers = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean over batches
    model.trunk.train()
    for inputs in evaluating.samples(splits.train):
        model.trunk(inputs)
    model.trunk.eval()
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
