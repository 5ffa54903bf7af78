"""A plain loop around losses of pytorch-metric-learning: the same network, data, batches, steps and rates as a run of
dmlcore, and nothing else of it. Adam with the cosine schedule, an embedding of 64 numbers, the best step of validation.
"""

from __future__ import annotations

import copy
import importlib
import itertools
from dataclasses import dataclass
from typing import Any

from benchmarks.defaults.candidates import RATE, RATES, SMALL, STEPS

LENGTH = 64  # of embeddings: what the default serves on pictures
CLASSES, SAMPLES = 32, 4  # of a batch


@dataclass(frozen=True)
class Outside:
    """A loss of pytorch-metric-learning.

    Attributes:
        loss: its class.
        rate: over the rate of today.
    """

    loss: str
    rate: float = 1.0

    @property
    def name(self) -> str:
        return f"plain loop, {self.loss}" + (f", rate x {self.rate:g}" if self.rate != 1 else "")

    def figures(self, file: str, seed: int) -> dict[str, dict[str, float]]:
        """Metrics of validation and test, at the best step of validation by MAP@R."""
        import torch
        from torch import nn

        from dmlcore.data import create_sampler, open_data
        from dmlcore.evaluation import evaluating
        from dmlcore.models import build_trunk

        torch.manual_seed(seed)
        splits = open_data(file, seed=seed)
        trunk = build_trunk("conv", sample_shape=splits.sample_shape, kind="images", options=SMALL["images"]["conv"], seed=seed)
        model = nn.Sequential(trunk, nn.Linear(trunk.features, LENGTH))
        loss = getattr(importlib.import_module("pytorch_metric_learning.losses"), self.loss)()
        steps = STEPS["images"]
        optimizer = torch.optim.Adam(model.parameters(), lr=self.rate * RATE["images"])
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        part = splits.train
        batches = create_sampler("class_balanced", part.dense_labels, CLASSES, SAMPLES, seed=seed, steps=steps)
        generator = torch.Generator().manual_seed(seed)
        best: tuple[float, dict[str, Any]] = (-1.0, {})
        for step, rows in enumerate(itertools.islice(batches, steps), 1):
            model.train()
            value = loss(model(part.batch(rows, augment=True, generator=generator)), torch.from_numpy(part.dense_labels[rows]))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
            if step % (steps // 5) == 0:
                reached = self._measure(model, splits.validation, evaluating)["map@r"]
                best = max(best, (reached, copy.deepcopy(model.state_dict())), key=lambda pair: pair[0])
        model.load_state_dict(best[1])
        return {part: self._measure(model, getattr(splits, part), evaluating) for part in ("validation", "test")}

    @staticmethod
    def _measure(model: Any, part: Any, evaluating: Any) -> dict[str, float]:
        import torch

        model.eval()
        with torch.inference_mode():
            rows = [model(batch) for batch in evaluating.samples(part)]
        return evaluating.evaluate(torch.nn.functional.normalize(torch.cat(rows)), part)


def plain_loops() -> list[Outside]:
    """Both losses at both rates."""
    return [Outside(loss, rate) for loss in ("MultiSimilarityLoss", "SupConLoss") for rate in RATES["images"]]
