"""Samples, plans and results for the tests of few-shot transfer: small, drawn from a seed. They remember what was fetched."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from torch import Tensor

from dmlcore.data.sources import Table
from dmlcore.data.stores import FeatureStore
from dmlcore.protocols.fewshot.budgets import budget_of
from dmlcore.protocols.fewshot.cell import Plan
from dmlcore.protocols.fewshot.samples import Samples

SHORT = {"epochs": 3, "target_epochs": 4, "patience": 2, "episodes": 6, "episode_patience": 4, "episode_check": 2, "batch": 16}


class Traced(FeatureStore):
    """A store that remembers what was fetched, in order."""

    def __init__(self, values: np.ndarray) -> None:
        super().__init__(values)
        self.fetched: list[np.ndarray] = []

    def fetch(self, indices: np.ndarray) -> Tensor:
        self.fetched.append(np.array(indices))
        return super().fetch(indices)


def samples_of(classes: int = 12, count: int = 12, width: int = 8, groups: bool = False) -> Samples:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), count)
    x = (rng.normal(size=(classes, width))[labels] + 0.7 * rng.normal(size=(len(labels), width))).astype(np.float32)
    order = rng.permutation(len(labels))
    names = [f"c{label}" for label in range(classes)]
    parted = ["low" if label < classes // 2 else "high high" for label in range(classes)] if groups else None
    return Samples(Table("features", Traced(x[order]), labels[order], names, (width,), class_groups=parted))


def plan_of(**changes: Any) -> Plan:
    plan = Plan(
        data="",
        data_options={},
        image_size=None,
        source_classes="c0-c5",
        target_classes=None,
        n=3,
        source_n=4,
        shots=[1, 4],
        losses=[],
        loss_options={},
        model="mlp",
        model_options={"hidden": 8},
        embedding_dim=6,
        init="default",
        stopping="paper",
        budget=dataclasses.asdict(budget_of("cpu", SHORT)),
        seed=0,
        replication=0,
    )
    return dataclasses.replace(plan, **changes)


def figures(result: dict[str, Any]) -> dict[str, Any]:
    """A result without times."""
    if isinstance(result, dict):
        return {key: figures(value) for key, value in result.items() if key != "seconds"}
    return result
