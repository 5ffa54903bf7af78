"""What classes share: the margin loss over triplets of three classes. With the form of losses that draw a triplet for each
anchor.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.losses import Comparison, Rows, distances
from dmlcore.losses.draws import drawn, log_inverse_density, pair_draws
from dmlcore_plugins.losses.margin import BoundaryLoss, BoundaryOptions

NEGATIVE_SALT = 1 << 32  # apart from the seeds that draw positives


class Triplets(NamedTuple):
    """A triplet of each anchor.

    Attributes:
        positive: `[A]` int64, which reference.
        negative: `[A]` int64.
        counted: `[A]` bool, whether the anchor has a triplet.
    """

    positive: Tensor
    negative: Tensor
    counted: Tensor


@dataclass(frozen=True, kw_only=True)
class TripletOptions(BoundaryOptions):
    """Options of losses that draw a triplet for each anchor."""

    seed: int = 0
    """Of the draws, >= 0."""
    average: Literal["terms", "triplets"] = "triplets"
    """What the sum is divided by: the number of non-zero `terms`, or of `triplets` with a non-zero term."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("seed", self.seed, least=0, most=2**31)


class TripletPerAnchorLoss(BoundaryLoss):
    """The margin loss over one triplet of each anchor, which a subclass draws."""

    streams = False  # the weight of beta depends on how many anchors have a triplet

    @abc.abstractmethod
    def triplets(self, comparison: Comparison, d: Tensor) -> Triplets:
        """A triplet of each anchor, drawn without a state.

        Args:
            comparison: with at least one anchor and one reference.
            d: `[A, N]` Euclidean distances of unit vectors, without history.
        """

    def row_values(self, similarities: Tensor, positive: Tensor, negative: Tensor) -> Rows:
        raise NotImplementedError("the triplets are not told by pairs; `dense_rows` is the definition")

    def dense_rows(self, comparison: Comparison) -> Rows:
        similarities = self.similarities(comparison)
        d, beta = distances(similarities), self.betas(comparison.labels).to(similarities)
        if not d.numel():
            zeros = d.sum(1).expand(2, -1)
            return Rows(zeros, zeros.detach())
        with torch.no_grad():
            positive, negative, counted = self.triplets(comparison, d.detach())
        near, far = (d.gather(1, column[:, None])[:, 0] for column in (positive, negative))  # [A] each
        pull = torch.relu(near - beta + self.options.margin) * counted
        push = torch.relu(beta - far + self.options.margin) * counted
        active = [pull > 0, push > 0] if self.options.average == "terms" else [(pull > 0) | (push > 0)]
        return self._finished(torch.stack([pull, push]), torch.stack(active).sum(0).to(d), counted.to(d), beta)


class ClassShared(TripletPerAnchorLoss):
    """`relu(d_ap - beta + margin) + relu(beta - d_an + margin)` over triplets of three classes, `y_a != y_p != y_n != y_a`,
    divided by the number of triplets with a term.

    What makes an anchor like a sample of another class can only be what classes share. So the embedding learns that, and may
    serve classes that were never seen. It is meant for a head of its own beside a loss that tells classes apart.

    Each anchor has one triplet. Its positive is drawn evenly among the samples of other classes. Its negative is drawn among
    those of third classes, with a probability that is the inverse of the density of distances on the sphere. The random number
    of a pair is a hash: see `dmlcore.losses.draws`. So the same batch in any order draws the same.

    Source: Milbich, Roth, Bharadhwaj, Sinha, Bengio, Ommer, Cohen, "DiVA: Diverse Visual Feature Aggregation for Deep Metric
    Learning", ECCV 2020, section 3.1, the class-shared features; margin and weights as in `margin`. Deviation: the authors'
    code shuffles labels and draws by those, so that a few of its triplets join samples of one class.
    """

    name = "class_shared"
    title = "Class-shared loss of DiVA"
    paper = "Milbich et al., ECCV 2020"

    @dataclass(frozen=True, kw_only=True)
    class Options(TripletOptions):
        """Options of `class_shared`."""

        cutoff: float = 0.5
        """Distance below which all negatives are as likely, in (0, 2)."""
        nonzero_loss_cutoff: float = 2.0
        """Distance beyond which no negative is drawn where there are nearer ones, in (0, 2], with 2 for no bound."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_range("cutoff", self.cutoff, above=0, below=2)
            check_range("nonzero_loss_cutoff", self.nonzero_loss_cutoff, above=0, most=2)

    @classmethod
    def least_classes(cls, options: Any) -> int:
        return 3

    def triplets(self, comparison: Comparison, d: Tensor) -> Triplets:
        options, references = self.options, comparison.other_vectors
        _, other = comparison.masks()  # [A, N], of other classes than the anchor
        positive = drawn(pair_draws(comparison.anchors, references, comparison.other_labels, options.seed), other)
        of_positives = comparison._replace(
            anchors=references[positive],
            labels=comparison.other_labels[positive],
            references=references,
            reference_labels=comparison.other_labels,
            own=positive,
        )
        third = other & of_positives.masks()[1]  # [A, N], of other classes than both
        near = third & (d <= options.nonzero_loss_cutoff) if options.nonzero_loss_cutoff < 2 else third
        has_near = near.any(1, keepdim=True)
        weights = log_inverse_density(d, references.shape[1], options.cutoff)
        weights = torch.where(has_near, weights, torch.zeros_like(weights))
        numbers = pair_draws(comparison.anchors, references, comparison.other_labels, options.seed + NEGATIVE_SALT)
        return Triplets(positive, drawn(numbers, torch.where(has_near, near, third), weights), third.any(1))


@dmlcore.hookimpl
def dmlcore_losses() -> list[type]:
    return [ClassShared]
