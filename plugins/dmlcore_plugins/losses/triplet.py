"""Triplet margin loss with its minings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

import dmlcore
from dmlcore.errors import ConfigError
from dmlcore.kernels import FunctorCall
from dmlcore.losses import (
    Comparison,
    PairLoss,
    PairOptions,
    Rows,
    check_margin,
    distances,
    in_pieces,
    listed_positives,
    unit,
)

WEDL_REACH, WEDL_MARGIN = 0.1, 1.0  # of the published ensemble's semi-hard loss
Mining = Literal["all", "semihard", "semihard_hardest", "semihard_else_farthest", "hard", "easy_positive_semihard"]
NO_CHOICE = {"margin": 0.05, "mining": "all", "smooth": False, "swap": False, "distance": "euclidean", "average": "active"}


class Triplet(PairLoss):
    """`relu(d_ap - d_an + margin)` over mined triplets, `d` the distance of unit vectors, averaged over the triplets with a
    non-zero value or, with `average = "all"`, over all that mining takes. `smooth` takes softplus instead of relu; `swap` takes
    the smaller of `d_an` and `d_pn`.

    Mining: `all`; `semihard`, every negative with `d_ap < d_an <= d_ap + margin`; `semihard_hardest`, the nearest of those for
    each anchor and positive; `semihard_else_farthest`, for each anchor and positive the nearest negative with `d_an > d_ap`, or
    the farthest negative where there is none; `hard`, each anchor's farthest positive with its nearest negative;
    `easy_positive_semihard`, its nearest positive with the nearest negative beyond it. Ties of a farthest or nearest share the
    gradient evenly.

    The two triplet losses that the spherical embedding constraint was published with: `distance = "squared_euclidean"`,
    `average = "all"`, and either `margin = 1` or `mining = "semihard_else_farthest"` with `margin = 0.2`.

    `variant = "wedl"`: every triplet with `0 < d_an - d_ap <= 0.1` counts with `relu(d_ap - d_an + 1)`, averaged over those.
    The gradient is that of `semihard` with margin 0.1; the value is 0.9 above. `margin` and the rest stay at their defaults.

    Fused without `swap`, for squared distances with the minings `all`, `semihard` and `semihard_else_farthest`. Work grows with
    positives x negatives of an anchor; `all` and `semihard` without `smooth` need only the logarithm of the positives for every
    negative where classes are large.

    Source: Schroff, Kalenichenko, Philbin, "FaceNet", CVPR 2015, eq. 1-3; Hermans, Beyer, Leibe, "In Defense of the Triplet
    Loss", 2017, eq. 5 (hard); Xuan, Stylianou, Pless, "Improved Embeddings with Easy Positive Triplet Mining", WACV 2020;
    Zhang, Li, Zhang, "Deep Metric Learning with Spherical Embedding", NeurIPS 2020, as in its public code
    (semihard_else_farthest, as in TensorFlow's library); the variant: Zabihzadeh et al., "Ensemble of Loss Functions",
    MTAP 2023, as in its public code.
    """

    name = "triplet"
    title = "Triplet margin loss"
    paper = "Schroff et al., CVPR 2015"
    aliases = ("TripletMarginLoss", "TripletLoss", "triplet_margin")
    searched: ClassVar = {"margin": (0.05, 0.1, 0.2, 0.4)}
    streams = True

    @dataclass(frozen=True, kw_only=True)
    class Options(PairOptions):
        """Options of `triplet`."""

        margin: float = 0.05
        """By how much a negative should be farther than a positive, in the range of the distance."""
        mining: Mining = "all"
        """Which triplets count."""
        smooth: bool = False
        """softplus instead of relu."""
        swap: bool = False
        """Compare with the nearer of anchor-negative and positive-negative."""
        distance: Literal["euclidean", "squared_euclidean"] = "euclidean"
        """Of unit vectors: `euclidean` (0 to 2) or `squared_euclidean` (0 to 4)."""
        average: Literal["active", "all"] = "active"
        """Which triplets the value is the mean of: those with a value above 0 (`active`), or `all` that mining takes."""
        variant: Literal["standard", "wedl"] = "standard"
        """`wedl` is the semi-hard loss of the published ensemble; it has no options."""

        def __post_init__(self) -> None:
            if self.variant == "wedl":
                for name, value in NO_CHOICE.items():
                    if getattr(self, name) != value:
                        raise ConfigError(f"{name} is {getattr(self, name)!r}, but variant 'wedl' leaves no choice of it")
            check_margin("margin", self.margin, self.distance)
            if self.swap and self.mining != "all":
                raise ConfigError("swap is defined for mining = 'all' only")

    @property
    def mining(self) -> Mining:
        """Which triplets count."""
        return "semihard" if self.options.variant == "wedl" else self.options.mining

    @property
    def reach(self) -> float:
        """The largest `d_an - d_ap` of a triplet that counts."""
        return WEDL_REACH if self.options.variant == "wedl" else self.options.margin

    def _triplets(self, positives: Tensor, negatives: Tensor, counted: Tensor) -> Tensor:
        violation = positives - negatives + (WEDL_MARGIN if self.options.variant == "wedl" else self.options.margin)
        hinge = torch.logaddexp(violation, torch.zeros_like(violation)) if self.options.smooth else torch.relu(violation)
        loss = torch.where(counted, hinge, torch.zeros_like(hinge)).flatten(1)
        averaged = counted.expand_as(hinge).flatten(1) if self.options.average == "all" else loss > 0
        return torch.stack([loss.sum(1), averaged.sum(1).to(loss)])  # [2, A]: values and counts

    def _all_positives(self, d: Tensor, positives: Tensor, real: Tensor, negative: Tensor) -> Tensor:
        p, n = positives[:, :, None], d[:, None, :]  # [A, P, 1], [A, 1, N]
        counted = real[:, :, None] & negative[:, None, :]
        if self.mining == "semihard_else_farthest":
            is_beyond = counted & (n > p)  # [A, P, N]
            nearest = torch.where(is_beyond, n, torch.full_like(n, torch.inf)).amin(2, keepdim=True)  # [A, P, 1]
            farthest = torch.where(counted, n, torch.full_like(n, -torch.inf)).amax(2, keepdim=True)
            n = torch.where(torch.isfinite(nearest), nearest, farthest)
            counted = torch.isfinite(n)
            return self._triplets(p, torch.where(counted, n, torch.zeros_like(n)), counted)
        if self.mining != "all":
            counted = counted & (n > p) & (n <= p + self.reach)
        if self.mining == "semihard_hardest":
            n = torch.where(counted, n, torch.full_like(n, torch.inf)).amin(2, keepdim=True)  # [A, P, 1]
            counted = torch.isfinite(n)
            n = torch.where(counted, n, torch.zeros_like(n))
        return self._triplets(p, n, counted)

    def row_values(self, similarities: Tensor, positive: Tensor, negative: Tensor) -> Rows:
        d, mining = distances(similarities, self.options.distance), self.mining
        if d.shape[1] == 0:
            return Rows(d.sum(1)[None], torch.zeros_like(d.sum(1))[None])
        if mining in ("all", "semihard", "semihard_hardest", "semihard_else_farthest"):
            index, real = listed_positives(positive)  # [A, P]
            both = in_pieces(self._all_positives, real.shape[1] * d.shape[1], d, d.gather(1, index), real, negative)
            return Rows(both[:1], both[1:])
        far = d.new_tensor(torch.inf)
        if mining == "hard":
            p = torch.where(positive, d, -far).amax(1)
        else:
            p = torch.where(positive, d, far).amin(1)
            negative = negative & (d > p[:, None])
        n = torch.where(negative, d, far).amin(1)
        has_both = positive.any(1) & negative.any(1)
        p, n = torch.where(has_both, p, torch.zeros_like(p)), torch.where(has_both, n, torch.zeros_like(n))
        both = self._triplets(p[:, None], n[:, None], has_both[:, None])
        return Rows(both[:1], both[1:])

    def dense_rows(self, comparison: Comparison) -> Rows:
        if not self.options.swap:
            return super().dense_rows(comparison)
        vectors = unit(comparison.other_vectors)
        kind = self.options.distance
        d = distances(self.similarities(comparison), kind)  # [A, N]
        positive, negative = comparison.masks()

        def of_pairs(anchor: Tensor, other: Tensor) -> Tensor:  # pairs of anchor and positive, [Q] each
            nearer = torch.minimum(d[anchor], distances(vectors[other] @ vectors.T, kind))  # [Q, N]
            return self._triplets(d[anchor, other][:, None], nearer, negative[anchor])

        anchor, other = positive.nonzero(as_tuple=True)  # [Q]
        both = in_pieces(of_pairs, d.shape[1], anchor, other)  # [2, Q]
        both = torch.zeros(2, len(d), dtype=d.dtype, device=d.device).index_add(1, anchor, both)
        return Rows(both[:1], both[1:])

    def functor_call(self) -> FunctorCall | str:
        o, mining = self.options, self.mining
        if o.swap:
            return "triplets with swap compare a negative with every positive's own row, which the fused pass does not see"
        if mining == "easy_positive_semihard" and o.average == "all":
            return "the fused form of mining 'easy_positive_semihard' counts only triplets with a value above 0"
        if mining == "semihard_else_farthest" and o.smooth:
            return "mining 'semihard_else_farthest' is fused without smooth"
        functor, values = f"triplet_{mining}", (o.margin, float(o.smooth))
        if mining == "semihard_else_farthest":
            values = (o.margin, float(o.average == "all"))
        elif mining in ("all", "semihard"):
            values = (self.reach,)
            if o.smooth:
                functor, values = "triplet_smooth", (o.margin, float(mining == "semihard"))
        if o.distance == "squared_euclidean":
            if mining not in ("all", "semihard", "semihard_else_farthest") or o.smooth:
                return f"mining '{mining}'{' with smooth' if o.smooth else ''} is fused for Euclidean distances only"
            functor += "_squared"
        return FunctorCall(functor, values)

    @property
    def needs_vectors(self) -> bool:  # type: ignore[override]
        return self.options.swap

    @property
    def completes(self) -> bool:  # type: ignore[override]
        return self.options.variant == "wedl" or self._recounts

    @property
    def _recounts(self) -> bool:
        """Whether triplets without a value count, which the kernel does not see."""
        return self.options.average == "all" and self.mining in ("all", "hard")

    def complete(self, rows: Rows, comparison: Comparison, context: Any) -> Rows:
        if not self._recounts:
            shift = WEDL_MARGIN - WEDL_REACH if self.options.variant == "wedl" else 0.0
            return Rows(rows.values + shift * rows.counts, rows.counts)
        positives, negatives = comparison.numbers_of_pairs()  # [A], [A]
        triplets = positives * negatives
        return Rows(rows.values, (triplets if self.mining == "all" else triplets.clamp_max(1)).to(rows.counts)[None])


@dmlcore.hookimpl
def dmlcore_losses() -> list[type]:
    return [Triplet]
