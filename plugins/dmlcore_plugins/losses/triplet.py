"""Triplet margin loss with its minings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.errors import ConfigError
from dmlcore.kernels import FunctorCall
from dmlcore.losses import LossOptions, PairLoss, Rows, Sides, cosine_similarities, distances, pair_masks

Mining = Literal["all", "semihard", "semihard_hardest", "hard", "easy_positive_semihard"]


class Triplet(PairLoss):
    """`relu(d_ap - d_an + margin)` over mined triplets, `d` the Euclidean distance of unit vectors, averaged over the triplets
    with a non-zero value. `smooth` takes softplus instead of relu; `swap` takes the smaller of `d_an` and `d_pn`.

    Mining: `all`; `semihard`, every negative with `d_ap < d_an <= d_ap + margin`; `semihard_hardest`, the nearest of those for
    each anchor and positive; `hard`, each anchor's farthest positive with its nearest negative; `easy_positive_semihard`, its
    nearest positive with the nearest negative beyond it. Ties of a farthest or nearest share the gradient evenly.

    Fused: `all`, `semihard`, `hard` without `smooth` and `swap`. Work grows with positives x negatives of an anchor.

    Source: Schroff, Kalenichenko, Philbin, "FaceNet", CVPR 2015, eq. 1-3; Hermans, Beyer, Leibe, "In Defense of the Triplet
    Loss", 2017, eq. 5 (hard); Xuan, Stylianou, Pless, "Improved Embeddings with Easy Positive Triplet Mining", WACV 2020.
    """

    name = "triplet"

    @dataclass(frozen=True, kw_only=True)
    class Options(LossOptions):
        """Options of `triplet`."""

        margin: float = 0.05
        """By how much a negative should be farther than a positive, in [0, 2]."""
        mining: Mining = "all"
        """Which triplets count."""
        smooth: bool = False
        """softplus instead of relu."""
        swap: bool = False
        """Compare with the nearer of anchor-negative and positive-negative."""

        def __post_init__(self) -> None:
            check_range("margin", self.margin, least=0, most=2)
            if self.swap and self.mining != "all":
                raise ConfigError("swap is defined for mining = 'all' only")

    def _hinge(self, violation: Tensor) -> Tensor:
        return torch.logaddexp(violation, torch.zeros_like(violation)) if self.options.smooth else torch.relu(violation)

    def _triplets(self, positives: Tensor, negatives: Tensor, chosen: Tensor) -> Rows:
        loss = torch.where(
            chosen, self._hinge(positives - negatives + self.options.margin), torch.zeros_like(negatives)
        )  # [A, P, N]
        return Rows(loss.sum((1, 2))[None], (loss > 0).sum((1, 2))[None].to(loss))

    def row_values(self, similarities: Tensor, positive: Tensor, negative: Tensor) -> Rows:
        d, mining = distances(similarities), self.options.mining
        if d.shape[1] == 0:
            return Rows(d.sum(1)[None], torch.zeros_like(d.sum(1))[None])
        if mining in ("all", "semihard", "semihard_hardest"):
            most = max(int(positive.sum(1).max()), 1) if len(d) else 1
            index = positive.float().topk(most, dim=1).indices  # [A, P]: each anchor's positives, then others
            p, n = d.gather(1, index)[:, :, None], d[:, None, :]  # [A, P, 1], [A, 1, N]
            chosen = positive.gather(1, index)[:, :, None] & negative[:, None, :]
            if mining != "all":
                chosen = chosen & (n > p) & (n <= p + self.options.margin)
            if mining == "semihard_hardest":
                nearest = torch.where(chosen, n, torch.full_like(n, torch.inf)).amin(2, keepdim=True)  # [A, P, 1]
                found = torch.isfinite(nearest)
                return self._triplets(p, torch.where(found, nearest, torch.zeros_like(nearest)), found)
            return self._triplets(p, n, chosen)
        far = d.new_tensor(torch.inf)
        if mining == "hard":
            p = torch.where(positive, d, -far).amax(1)
        else:
            p = torch.where(positive, d, far).amin(1)
            negative = negative & (d > p[:, None])
        n = torch.where(negative, d, far).amin(1)
        found = positive.any(1) & negative.any(1)
        p, n = torch.where(found, p, torch.zeros_like(p)), torch.where(found, n, torch.zeros_like(n))
        return self._triplets(p[:, None, None], n[:, None, None], found[:, None, None])

    def dense_rows(self, sides: Sides) -> Rows:
        if not self.options.swap:
            return super().dense_rows(sides)
        others = sides.anchors if sides.references is None else sides.references
        d = distances(self.similarities(sides))  # [A, N]
        among = distances(cosine_similarities(others, others))  # [N, N]
        positive, negative = pair_masks(sides)
        chosen = positive[:, :, None] & negative[:, None, :]  # [A, N, N]
        return self._triplets(d[:, :, None], torch.minimum(d[:, None, :], among[None]), chosen)

    def functor_call(self) -> FunctorCall | str:
        o = self.options
        if o.smooth or o.swap:
            return "triplets with smooth or swap have no fused form"
        if o.mining not in ("all", "semihard", "hard"):
            return f"triplets with mining '{o.mining}' have no fused form"
        return FunctorCall(f"triplet_{o.mining}", (o.margin,))


@dmlcore.hookimpl
def dmlcore_losses() -> list[type]:
    return [Triplet]
