"""Margin-based loss with a learnable boundary, over all triplets or over negatives sampled by distance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

import dmlcore
from dmlcore.config import check_range
from dmlcore.errors import ConfigError
from dmlcore.kernels import FunctorCall
from dmlcore.losses import Comparison, LossOptions, PairLoss, PairOptions, Rows, distances, unit
from dmlcore.losses.draws import fractions, hashes, log_inverse_density, scrambled
from dmlcore.losses.relations import check_range_of_labels

RHO_SALT = 1 << 32  # apart from the seeds that draw negatives


@dataclass(frozen=True, kw_only=True)
class BoundaryOptions(LossOptions):
    """Options of losses with a distance that divides positives from negatives."""

    margin: float = 0.2
    """Half of the gap between positives and negatives, in [0, 2]."""
    nu: float = 0.0
    """Weight of beta itself, >= 0; only with `learn_beta`."""
    beta: float = 1.2
    """Distance that divides positives from negatives, in [0, 2]; where it starts if it is learnt."""
    learn_beta: bool = False
    """Train beta."""
    per_class: bool = False
    """One beta per class of the anchor instead of one for all; needs `num_classes` and labels 0..num_classes-1."""

    def __post_init__(self) -> None:
        check_range("margin", self.margin, least=0, most=2)
        check_range("nu", self.nu, least=0)
        check_range("beta", self.beta, least=0, most=2)


class BoundaryLoss(PairLoss):
    """`relu(d_ap - beta + margin) + relu(beta - d_an + margin)` over triplets, whichever a subclass takes.

    `beta`, a parameter `[1]` or, with `per_class`, `[num_classes]`, is a constant unless `learn_beta`.
    """

    uses_classes = True

    def __init__(
        self, options: Any = None, *, num_classes: int | None = None, embedding_dim: int | None = None, **options_by_name: Any
    ) -> None:
        super().__init__(options, **options_by_name)
        if self.options.per_class and (num_classes is None or num_classes < 1):
            raise ConfigError(f"{self.name} with per_class has a beta per class and needs num_classes >= 1, got {num_classes}")
        beta = torch.full((num_classes or 1 if self.options.per_class else 1,), self.options.beta)
        if self.options.learn_beta:
            self.beta = nn.Parameter(beta)
        else:
            self.register_buffer("beta", beta)

    def betas(self, labels: Tensor) -> Tensor:
        """`[A]` the boundary of each anchor.

        Raises:
            ConfigError: with `per_class`, a label without a beta. Elsewhere as `check_range_of_labels`.
        """
        assert isinstance(self.beta, Tensor)
        if not self.options.per_class:
            return self.beta.expand(len(labels))
        if labels.ndim != 1:
            raise ConfigError(f"{self.name} with per_class needs one integer label per sample")
        check_range_of_labels(labels, len(self.beta), f"{self.name} has a beta")
        return self.beta[labels]

    def _finished(self, values: Tensor, divisors: Tensor, triplets: Tensor, beta: Tensor) -> Rows:
        """With one divisor for both hinges, and the term of beta itself.

        Args:
            values: `[2, A]`.
            divisors: `[A]`.
            triplets: `[A]`, how many triplets an anchor has.
            beta: `[A]`.
        """
        counts = divisors[None]  # [1, A]
        if self.options.learn_beta and self.options.nu > 0:
            every = counts.sum()
            if self.options.per_class:
                share = triplets * (every > 0)
            else:  # so that the sum over anchors, divided by the counts, is one beta; also where every triplet is inactive
                share = torch.where(every > 0, counts[0], triplets / triplets.sum().clamp_min(1))
            values = torch.stack([values[0] + self.options.nu * beta * share, values[1]])
        return Rows(values, counts.expand(2, -1))


class Margin(BoundaryLoss):
    """`relu(d_ap - beta + margin) + relu(beta - d_an + margin)` summed over triplets and divided by the number of non-zero
    terms, or with `average = "triplets"` by that of the triplets with such a term; `d` is the Euclidean distance of unit
    vectors. `nu beta` is added where beta is learnt.

    Over all triplets the two terms separate: each positive counts once per negative of its anchor, each negative once per
    positive, so no triplet is enumerated. `sampling = "distance_weighted"` draws one negative per pair of anchor and positive
    instead, with a probability that is the inverse of the density of distances on the sphere,
    `d^(D - 2) (1 - d^2 / 4)^((D - 3) / 2)`, distances taken as `cutoff` at least and never beyond `nonzero_loss_cutoff` (an
    anchor without such negatives draws evenly among all). The random number of a pair is a hash of `seed` and of the pair's
    embeddings: the same batch in any order draws the same, every change of the embeddings draws anew, and there is no state
    to save.

    `rho` regularises the sampled form (R-Margin): with this probability a pair's positive takes the place of its negative, and
    the anchor itself that of the positive. The pair is then pushed apart, which keeps classes from collapsing to points.

    `beta`, a parameter `[1]` or, with `per_class`, `[num_classes]`, is a constant unless `learn_beta`. The sum of `nu beta` is
    pytorch-metric-learning's: once, or once per triplet with `per_class`, then divided like the hinges.

    Fused: `sampling = "all"`, on the CPU, with the exact gradient of beta.

    Source: Wu, Manmatha, Smola, Krähenbühl, "Sampling Matters in Deep Embedding Learning", ICCV 2017, section 4; rho: Roth,
    Milbich, Sinha, Gupta, Ommer, Cohen, "Revisiting Training Strategies and Generalization Performance in Deep Metric
    Learning", ICML 2020, section 4. Deviations: the bound on the sampling weights is a bound on the distance. A triplet is
    drawn for every pair of anchor and positive, where the code of 2020 draws one for every anchor.
    """

    name = "margin"
    title = "Margin-based loss"
    paper = "Wu et al., ICCV 2017"
    aliases = ("MarginLoss", "margin_loss")
    streams = False  # how many negatives are drawn depends on the batch
    completes = True

    @dataclass(frozen=True, kw_only=True)
    class Options(BoundaryOptions, PairOptions):
        """Options of `margin`."""

        sampling: Literal["all", "distance_weighted"] = "all"
        """Which triplets: all, or one negative per pair of anchor and positive."""
        seed: int = 0
        """Of the sampling."""
        cutoff: float = 0.5
        """Distance below which all negatives are as likely, in (0, 2); only for sampling."""
        nonzero_loss_cutoff: float = 1.4
        """Distance beyond which no negative is drawn, in (0, 2], with 2 for no bound; only for sampling."""
        rho: float = 0.0
        """Probability with which a positive is pushed away instead of a negative, in [0, 1); only for sampling."""
        average: Literal["terms", "triplets"] = "terms"
        """What the sum is divided by: the number of non-zero `terms`, or of `triplets` with a non-zero term."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_range("cutoff", self.cutoff, above=0, below=2)
            check_range("nonzero_loss_cutoff", self.nonzero_loss_cutoff, above=0, most=2)
            check_range("rho", self.rho, least=0, below=1)
            if self.rho and self.sampling == "all":
                raise ConfigError(f"rho is {self.rho}, but needs sampling = 'distance_weighted', which draws the negatives")

    def row_values(self, similarities: Tensor, positive: Tensor, negative: Tensor, beta: Tensor | None = None) -> Rows:
        """The definition over all triplets; `beta` is `[A]`, or None where there is one for all."""
        if beta is None:
            assert not self.options.per_class and isinstance(self.beta, Tensor)
            beta = self.beta.expand(len(similarities))
        beta, d = beta.to(similarities.dtype), distances(similarities)
        pull = torch.relu(d - beta[:, None] + self.options.margin) * positive
        push = torch.relu(beta[:, None] - d + self.options.margin) * negative
        positives, negatives = positive.sum(1).to(d), negative.sum(1).to(d)  # [A]
        values = torch.stack([negatives * pull.sum(1), positives * push.sum(1)])  # [2, A]
        counts = torch.stack([negatives * (pull > 0).sum(1), positives * (push > 0).sum(1)])
        return self._finished(values, self._divisors(counts, positives * negatives), positives * negatives, beta)

    def _divisors(self, counts: Tensor, triplets: Tensor) -> Tensor:
        """`[A]` what each anchor adds to the divisor, over all triplets.

        Args:
            counts: `[2, A]`, triplets whose term of the positive, and of the negative, is not zero.
            triplets: `[A]`, how many an anchor has.
        """
        if self.options.average == "terms":
            return counts.sum(0)
        # all pairs of a positive and a negative are triplets, so that both terms are active in a product of shares
        return counts.sum(0) - counts[0] * counts[1] / triplets.clamp_min(1)

    def dense_rows(self, comparison: Comparison) -> Rows:
        similarities, (positive, negative), beta = (
            self.similarities(comparison),
            comparison.masks(),
            self.betas(comparison.labels),
        )
        if self.options.sampling == "all":
            return self.row_values(similarities, positive, negative, beta)
        beta, d = beta.to(similarities.dtype), distances(similarities)
        if d.shape[1] == 0 or len(d) == 0:
            return Rows(d.sum(1).expand(2, -1), torch.zeros_like(d.sum(1)).expand(2, -1))
        most = max(int(positive.sum(1).max()), 1)
        index = positive.float().topk(most, dim=1).indices  # [A, P]: each anchor's positives, then others
        counted = positive.gather(1, index) & negative.any(1, keepdim=True)
        vectors = unit(comparison.anchors), unit(comparison.other_vectors)
        draws = self.draws(*vectors, index)  # [A, P]
        ordered = d.sort(1)  # drawn from the nearest on, whatever the order of the batch
        weights = self.weights(ordered.values.detach(), negative.gather(1, ordered.indices), comparison.anchors.shape[1])
        drawn = ordered.values.gather(1, drawn_columns(weights, draws))  # [A, P]
        near = d.gather(1, index)
        if self.options.rho:
            is_switched = self.draws(*vectors, index, RHO_SALT) < self.options.rho
            near, drawn = torch.where(is_switched, torch.zeros_like(near), near), torch.where(is_switched, near, drawn)
        pull = torch.relu(near - beta[:, None] + self.options.margin) * counted
        push = torch.relu(beta[:, None] - drawn + self.options.margin) * counted
        active = [pull > 0, push > 0] if self.options.average == "terms" else [(pull > 0) | (push > 0)]
        divisors = torch.stack(active).sum((0, 2)).to(d)  # [A]
        return self._finished(torch.stack([pull.sum(1), push.sum(1)]), divisors, counted.sum(1).to(d), beta)

    def weights(self, d: Tensor, negative: Tensor, width: int) -> Tensor:
        """The probabilities of negatives up to a factor per row.

        Args:
            d: `[A, N]` distances.
            negative: `[A, N]` bool.
            width: of the embeddings.

        Returns:
            `[A, N]` float64.
        """
        cutoff = self.options.nonzero_loss_cutoff
        near = negative & (d <= cutoff) if cutoff < 2 else negative  # rounding takes distances beyond 2
        logs = log_inverse_density(d, width, self.options.cutoff)
        highest = torch.where(near, logs, torch.full_like(logs, -torch.inf)).amax(1, keepdim=True)  # [A, 1]
        has_negative = torch.isfinite(highest)
        highest = torch.where(has_negative, highest, torch.zeros_like(highest))
        weights = torch.exp(torch.where(near, logs - highest, torch.full_like(logs, -torch.inf)))
        return torch.where(has_negative, weights, negative.double())

    @torch.no_grad()
    def draws(self, anchors: Tensor, references: Tensor, index: Tensor, salt: int = 0) -> Tensor:
        """A number in [0, 1) for each anchor with each of its positives.

        Args:
            anchors: `[A, D]`.
            references: `[N, D]`.
            index: `[A, P]`, which references.
            salt: added to the seed, for draws apart.

        Returns:
            `[A, P]` float64.
        """
        keys = scrambled(_key(anchors) + scrambled(index.new_tensor(self.options.seed + salt)))  # [A]
        # not symmetric: the two directions of a pair draw apart
        return fractions(scrambled(keys[:, None] ^ _key(references)[index]))

    def functor_call(self) -> FunctorCall | str:
        if self.options.sampling != "all":
            return f"margin with sampling '{self.options.sampling}' has no fused form"
        return FunctorCall("margin", (self.options.margin,), given=self.boundaries)

    def boundaries(self, comparison: Comparison) -> Tensor:
        """`[1, A]` the boundary of each anchor."""
        return self.betas(comparison.labels)[None]

    def complete(self, rows: Rows, comparison: Comparison, context: Any) -> Rows:
        beta = context[0].to(rows.values.dtype)
        moves = beta - beta.detach()  # a positive's hinge falls with beta, a negative's rises
        values = torch.stack([rows.values[0] - rows.counts[0] * moves, rows.values[1] + rows.counts[1] * moves])
        triplets = rows.values[2].detach()
        return self._finished(values, self._divisors(rows.counts[:2], triplets), triplets, beta)


def drawn_columns(weights: Tensor, draws: Tensor) -> Tensor:
    """Columns drawn by their weights, for numbers in [0, 1).

    Args:
        weights: `[A, N]` float64, not negative.
        draws: `[A, P]` float64.

    Returns:
        `[A, P]` int64; a column of weight 0 only where the whole row is 0.
    """
    sums = weights.cumsum(1)
    total = sums[:, -1:]
    targets = torch.minimum(draws * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(sums, targets.contiguous(), right=True).clamp_max(weights.shape[1] - 1)


def _key(vectors: Tensor) -> Tensor:
    """A number for each vector `[N, D]`, by the bits of its components in float32: `[N]` int64."""
    return hashes(vectors.float().contiguous().view(torch.int32).long())


@dmlcore.hookimpl
def dmlcore_losses() -> list[type]:
    return [Margin]
