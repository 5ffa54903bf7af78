"""Few-shot adaptation: the last linear layer of a trained model is tuned on k samples of every test class, and retrieval among
the other samples is measured before and after.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dmlcore import losses
from dmlcore.config import check_range
from dmlcore.data import LabelledDataset, batches, create_sampler
from dmlcore.errors import ConfigError
from dmlcore.evaluation import evaluating, retrieval_metrics
from dmlcore.models import EmbeddingModel
from dmlcore.training.step_counts import limited

REPORTED = ("recall@1", "recall@2", "recall@4", "map@r")  # measures of an episode
CLASSES, SAMPLES = 56, 2  # of a batch, as published
BOUNDARY_RATE = 5e-4  # of the margin loss's beta, where it is learnt
NO_CUTOFF = 2.0  # no two unit vectors are farther apart


@dataclass(frozen=True)
class Adaptation:
    """How the last layer is tuned.

    Attributes:
        shots: numbers of support samples of a class that are tried.
        steps: of Adam, for each number of shots.
        rate: of Adam.
        episodes: of those stored with the split, the first so many. None: all.
        learn_beta: train the margin loss's boundary, one per class. The published script says so, but its optimiser holds the
            last layer only, so that its boundary stays at 1.2.
        augment: change support samples at random before every step, as in training, where the data has such changes.
        cutoff: distance beyond which no negative is drawn. 2: every negative may be drawn, as in the published script.
    """

    shots: tuple[int, ...] = (2, 5)
    steps: tuple[int, ...] = (1000, 1500)
    rate: float = 1e-4
    episodes: int | None = None
    learn_beta: bool = False
    augment: bool = True
    cutoff: float = NO_CUTOFF

    def __post_init__(self) -> None:
        if len(self.steps) == 1 < len(self.shots):
            object.__setattr__(self, "steps", self.steps * len(self.shots))
        if len(self.steps) != len(self.shots):
            raise ConfigError(
                f"adapt_steps has {len(self.steps)} numbers for {len(self.shots)} numbers of shots; give one each"
            )
        if len(set(self.shots)) < len(self.shots):
            raise ConfigError(f"shots are {', '.join(map(str, self.shots))}; each may be named once")
        for shots in self.shots:
            check_range("shots", shots, least=2)  # a pair of one class is needed to learn from
        for steps in self.steps:
            check_range("adapt_steps", steps, least=1)
        check_range("adapt_rate", self.rate, above=0)
        check_range("episodes", self.episodes, least=1)
        check_range("adapt_cutoff", self.cutoff, above=0, most=2)


class Tail(nn.Module):
    """What of a model lies behind its trunk, with weights of its own.

    Args:
        model: left as it is.
    """

    def __init__(self, model: EmbeddingModel) -> None:
        super().__init__()
        trunk, model.trunk = model.trunk, nn.Identity()  # type: ignore[assignment]
        try:
            self.model = copy.deepcopy(model)
        finally:
            model.trunk = trunk
        self.model.eval().requires_grad_(False)
        self.layer.requires_grad_(True)

    @property
    def layer(self) -> nn.Module:
        """The last linear layer of what is served. A fitted compressor behind it stays."""
        student = self.model.student
        return student if self.model.served == "student" and student is not None else self.model.head

    def forward(self, features: Tensor) -> Tensor:
        """Embeddings [b, D] of trunk features [b, F], of unit norm as retrieval by cosine sees them."""
        return functional.normalize(self.model.serve(features).float(), dim=1)


def trunk_features(model: EmbeddingModel, dataset: LabelledDataset, *, workers: int | None = 0) -> Tensor:
    """Features [N, F] of a data set before the last layer, float32 on the model's device.

    They are all kept: 10^6 samples of 2,048 numbers are 8 GB.
    """
    return evaluating.embed(model.trunk, dataset, workers=workers).clone()  # the clone may take part in gradients


@dataclass(frozen=True)
class Augmented:
    """A part of the data whose support samples are changed at random, so that the trunk sees them anew in every step.

    Attributes:
        trunk: gives features [b, F]; run in evaluation mode.
        dataset: the part, with an augmentation.
        workers: processes that decode image files.
    """

    trunk: nn.Module
    dataset: LabelledDataset
    workers: int | None = 0

    def batches(self, support: np.ndarray, rows: Iterable[list[int]], seed: int) -> Iterator[Tensor]:
        """Features [b, F] of the samples at `support[rows]`, for one list of rows after the other."""
        device = next((p.device for p in self.trunk.parameters()), torch.device("cpu"))
        was_training = self.trunk.training
        positions = [support[batch].tolist() for batch in rows]
        drawn = batches(self.dataset, positions, workers=self.workers, augment=True, seed=seed)
        self.trunk.eval()
        try:
            for samples, _ in drawn:
                with torch.no_grad():
                    features = self.trunk(samples.to(device)).float()
                yield features
        finally:
            drawn.close()
            self.trunk.train(was_training)


def tune(
    tail: Tail,
    features: Tensor,
    labels: np.ndarray,
    steps: int,
    rate: float,
    seed: int,
    adaptation: Adaptation | None = None,
    changed: tuple[Augmented, np.ndarray] | None = None,
) -> Tail:
    """Tune the last layer on support samples by the margin loss with distance-weighted negatives. Returns the same tail.

    Args:
        tail: changed in place.
        features: [n, F] of the support.
        labels: int64 [n], any ids.
        steps: of Adam.
        rate: of Adam. The boundary of the loss has its own, where it is learnt.
        seed: of the batches, the negatives and the random changes.
        adaptation: what is said of the loss. None: the defaults.
        changed: the part of the data that changes samples at random, and where the support lies in it, int64 [n]. None:
            `features` are what is learnt from.
    """
    adaptation = adaptation or Adaptation()
    present, dense = np.unique(labels, return_inverse=True)
    options: dict[str, Any] = {"learn_beta": True, "per_class": True, "num_classes": len(present)}
    loss = losses.create(
        "margin",
        sampling="distance_weighted",
        nonzero_loss_cutoff=adaptation.cutoff,
        average="triplets",
        seed=seed,
        **(options if adaptation.learn_beta else {}),
    ).to(features.device)
    groups: list[dict[str, Any]] = [{"params": list(tail.layer.parameters())}]
    if adaptation.learn_beta:
        groups.append({"params": list(loss.parameters()), "lr": BOUNDARY_RATE})
    optimiser = torch.optim.Adam(groups, lr=rate)
    targets = torch.from_numpy(dense.astype(np.int64)).to(features.device)
    classes = min(CLASSES, len(present))
    drawn = list(create_sampler("class_balanced", dense, classes, SAMPLES, seed=seed, steps=limited(steps)))
    source = (features[rows] for rows in drawn)
    if changed is not None:
        source = changed[0].batches(changed[1], drawn, seed)
    for rows, batch in zip(drawn, source, strict=True):
        value = loss(tail(batch), targets[rows])
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        optimiser.step()
    return tail


def adapt(
    model: EmbeddingModel,
    features: Tensor,
    labels: np.ndarray,
    episodes: Sequence[np.ndarray],
    steps: int,
    rate: float,
    seed: int,
    adaptation: Adaptation | None = None,
    changed: Augmented | None = None,
) -> list[dict[str, dict[str, float]]]:
    """Adapt a model to every episode anew, and measure it before and after on the samples that are not support.

    Args:
        model: left as it is.
        features: [N, F] of the test part, from `trunk_features`.
        labels: int64 [N].
        episodes: positions of the support samples, each sorted int64.
        steps: of Adam.
        rate: of Adam.
        seed: of the batches.
        adaptation: what is said of the loss. None: the defaults.
        changed: the test part with random changes of its samples. None: without.

    Returns:
        `{"before": measures, "after": measures}` of every episode.
    """
    targets = torch.from_numpy(labels).to(features.device)
    measures = []
    with torch.no_grad():
        before = Tail(model)(features)
    for number, support in enumerate(episodes):
        queries = torch.from_numpy(np.setdiff1d(np.arange(len(labels)), support, assume_unique=True)).to(features.device)
        part = features[torch.from_numpy(support)]
        pictures = None if changed is None else (changed, support)
        tail = tune(Tail(model), part, labels[support], steps, rate, seed + number, adaptation, pictures)
        with torch.no_grad():
            after = tail(features[queries])
        measures.append({
            "before": _measures(before[queries], targets[queries]),
            "after": _measures(after, targets[queries]),
        })  # fmt: skip
    return measures


def _measures(embeddings: Tensor, labels: Tensor) -> dict[str, float]:
    measured: dict[str, Any] = retrieval_metrics(embeddings, labels, recall_at=(1, 2, 4))
    return {name: measured[name] for name in REPORTED}
