"""What an optimiser step measures: tensors while they are on the device, numbers after one transfer, and the record of
`metrics.jsonl` in the end.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@dataclass
class Measurements:
    """What a step measures on the device; scalars where nothing else is said.

    Attributes:
        total: what the optimiser lowers.
        gradient_norms: before clipping, of the `model` and of the `losses`' own parameters.
        terms: value of each loss.
        active: share of the anchors of each loss that have a gradient.
        weights: [L], of the losses.
        extra_terms: values of the terms beside the losses.
        embedding_norms: `mean` and `deviation` of raw embeddings' norms; empty where the model normalises.
        loss_gradient_norms: of each loss by itself, with respect to the embeddings; empty in most steps.
        loss_gradient_cosines: [L, L] between the gradients of the losses, or None.
    """

    total: Tensor
    gradient_norms: dict[str, Tensor]
    terms: dict[str, Tensor]
    active: dict[str, Tensor]
    weights: Tensor
    extra_terms: dict[str, Tensor] = field(default_factory=dict)
    embedding_norms: dict[str, Tensor] = field(default_factory=dict)
    loss_gradient_norms: dict[str, Tensor] = field(default_factory=dict)
    loss_gradient_cosines: Tensor | None = None

    def fetch(self) -> StepRecord:
        """The same as numbers, by one transfer from the device: each transfer would wait for it."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors = list(_tensors(values.values()))
        if self.total.is_cpu:  # nothing waits, and each operation costs more than a number
            numbers = itertools.chain.from_iterable(map(_numbers, tensors))
        else:
            flat = torch.cat([tensor.detach().to(self.total.device, torch.float32).reshape(-1) for tensor in tensors])
            numbers = iter(flat.tolist())
        fetched = {name: _with_numbers(value, numbers) for name, value in values.items()}
        names = list(self.terms)
        fetched["weights"] = dict(zip(names, fetched["weights"], strict=True))
        cosines = fetched["loss_gradient_cosines"] or []
        pairs = itertools.combinations(range(len(cosines)), 2)
        fetched["loss_gradient_cosines"] = {f"{names[i]}, {names[j]}": cosines[i][j] for i, j in pairs}
        return StepRecord(**fetched)


@dataclass
class StepRecord:
    """The numbers of a step, named as in `Measurements`, and what is added on the way to `metrics.jsonl`.

    Attributes:
        step: number of the step, from 1.
        learning_rates: by role.
        images_per_second: of the whole step, with fetching the batch.
        effective_rank: of the batch's embeddings; None in most steps.
        is_skipped: gradients overflowed in float16, and no parameter was changed.
    """

    total: float
    gradient_norms: dict[str, float]
    terms: dict[str, float]
    active: dict[str, float]
    weights: dict[str, float]
    extra_terms: dict[str, float]
    embedding_norms: dict[str, float]
    loss_gradient_norms: dict[str, float]
    loss_gradient_cosines: dict[str, float]
    step: int = 0
    learning_rates: dict[str, float] = field(default_factory=dict)
    images_per_second: float = 0.0
    is_skipped: bool = False
    effective_rank: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The line of `metrics.jsonl`; what is not measured in every step is left out where it was not."""
        optional = {
            "extra_terms": self.extra_terms,
            "embedding_norms": self.embedding_norms,
            "loss_gradient_norms": self.loss_gradient_norms,
            "loss_gradient_cosines": self.loss_gradient_cosines,
        }
        return {
            "kind": "step",
            "step": self.step,
            "total": self.total,
            "terms": self.terms,
            "weights": self.weights,
            "active": self.active,
            "learning_rates": self.learning_rates,
            "gradient_norms": self.gradient_norms,
            "images_per_second": self.images_per_second,
            **{name: values for name, values in optional.items() if values},
            **({"is_skipped": True} if self.is_skipped else {}),
            **({} if self.effective_rank is None else {"effective_rank": self.effective_rank}),
        }


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, dict):
            yield from value.values()
        elif value is not None:
            yield value


def _numbers(tensor: Tensor) -> list[float]:
    """The numbers of a tensor, one after the other, as float32 holds them."""
    tensor = tensor if tensor.dtype == torch.float32 else tensor.float()
    return [tensor.item()] if tensor.ndim == 0 else tensor.flatten().tolist()


def _with_numbers(value: Any, numbers: Iterator[float]) -> Any:
    """The value with each of its tensors replaced by a number, a list or a list of rows, in the order of `_tensors`."""
    if value is None:
        return None
    if isinstance(value, dict):
        return {key: _with_numbers(entry, numbers) for key, entry in value.items()}
    if value.ndim == 0:
        return next(numbers)
    return [_with_numbers(row, numbers) for row in value]


def effective_rank(embeddings: Tensor) -> float:
    """Exponential of the entropy of the spectrum of unit embeddings [B, D], in [1, min(B, D)].

    Source: Roy, Vetterli, "The Effective Rank", EUSIPCO 2007.
    """
    values = torch.linalg.svdvals(functional.normalize(embeddings.detach().double(), dim=1))
    shares = values / values.sum().clamp_min(1e-300)
    return math.exp(float(-(shares * shares.clamp_min(1e-300).log()).sum()))
