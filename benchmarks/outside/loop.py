"""A plain loop around a loss of pytorch-metric-learning, as a careful user writes it: the network, data and batches of a run of
dmlcore, and nothing else of it. The checkpoint of best validation is kept, and measured as a run of dmlcore is.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from benchmarks.arms import after
from benchmarks.outside.plan import MOST_RISE, WARMED, WIDTH, Cell
from dmlcore.data import create_sampler, open_data
from dmlcore.evaluation import evaluating
from dmlcore.models import build_trunk

if TYPE_CHECKING:
    from dmlcore.data import LabelledDataset, Splits

Figures = dict[str, dict[str, dict[str, float]]]


def train_plainly(cell: Cell, file: str) -> tuple[Figures, int]:
    """Figures of the compressed and of the whole embedding, by part, and the step that validation chose."""
    torch.manual_seed(cell.seed)
    splits = open_data(file, seed=cell.seed)
    trunk = build_trunk("conv", sample_shape=splits.sample_shape, kind="images", seed=cell.seed)
    model = nn.Sequential(trunk, nn.Linear(trunk.features, WIDTH))
    loss, miner = _loss(cell.system)
    assert cell.rate is not None
    optimizer = torch.optim.AdamW(model.parameters(), lr=cell.rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _factor(step, cell))
    part = splits.train
    classes = min(cell.classes, len(set(part.dense_labels.tolist())))  # as a run of dmlcore does
    batches = create_sampler("class_balanced", part.dense_labels, classes, cell.samples, seed=cell.seed, steps=cell.steps)
    generator = torch.Generator().manual_seed(cell.seed)
    best: tuple[float, int, dict[str, Any]] = (-1.0, 0, {})
    for step, rows in enumerate(batches, 1):
        model.train()
        embeddings = model(part.batch(rows, augment=True, generator=generator))
        labels = torch.from_numpy(part.dense_labels[rows])
        value = loss(embeddings, labels, miner(embeddings, labels) if miner else None)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
        if step % cell.eval_every == 0:
            reached = evaluating.evaluate(_compressed(model, splits)["validation"], splits.validation)["map@r"]
            if reached > best[0]:
                best = reached, step, copy.deepcopy(model.state_dict())
    model.load_state_dict(best[2])
    whole = {part: _embed(model, getattr(splits, part)) for part in after.PARTS}
    served = after.compressed(whole, splits.train.labels)
    return {"served": after.measure(served, splits), "whole": after.measure(whole, splits)}, best[1]


def _factor(step: int, cell: Cell) -> float:
    """The cosine on the learning rate, and a rise over the first fifth of the steps, 50 at most, where the system says so."""
    steps = min(MOST_RISE, cell.steps // 5)
    rise = min(1.0, (step + 1) / steps) if cell.system.endswith(WARMED) and steps else 1.0
    return rise * (1 + math.cos(math.pi * step / cell.steps)) / 2


def _loss(system: str) -> tuple[Any, Any]:
    """The loss with its default options, and its miner if it has one."""
    from pytorch_metric_learning import losses, miners

    name = system.removesuffix(WARMED)
    miner = miners.MultiSimilarityMiner() if name == "MultiSimilarityLoss" else None
    return getattr(losses, name)(), miner


def _compressed(model: nn.Module, splits: Splits) -> dict[str, Tensor]:
    rows = {part: _embed(model, getattr(splits, part)) for part in ("train", "validation")}
    return after.compressed(rows, splits.train.labels)


@torch.inference_mode()
def _embed(model: nn.Module, part: LabelledDataset) -> Tensor:
    model.eval()
    return nn.functional.normalize(torch.cat([model(batch) for batch in evaluating.samples(part)]))  # [N, WIDTH]
