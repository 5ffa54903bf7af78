"""A prior of embeddings that fill the sphere evenly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.losses import PairLoss, PairOptions, Rows, masked_logsumexp


class UniformPrior(PairLoss):
    """`log(mean_n exp(-t |x_a - x_n|^2))` over all other samples, of unit vectors, whatever their labels; mean over anchors.

    The mean of the kernel is an estimate of the density at the anchor. So the loss is the Kullback-Leibler divergence of the
    embeddings' distribution from the uniform one on the sphere, up to a constant. It is meant as a further member of an
    ensemble with a small weight, as in `--plugins ms,uniform_prior --weights 1,0.1`.

    Source: Sinha, Roth, Goyal, Ghassemi, Larochelle, Garg, "Uniform Priors for Data-Efficient Transfer", 2020 (the prior);
    Wang, Isola, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the Hypersphere", ICML
    2020, section 4.2.1 (this estimate). Deviation: the first of them matches the distributions by an adversary that learns to
    tell embeddings from uniform samples. Here nothing is learnt beside the model, and nothing is drawn.
    """

    name = "uniform_prior"
    title = "Uniform prior on the sphere"
    paper = "Sinha et al., 2020; Wang and Isola, ICML 2020"
    aliases = ("UniformityLoss", "uniformity_regularization")

    @dataclass(frozen=True, kw_only=True)
    class Options(PairOptions):
        """Options of `uniform_prior`."""

        t: float = 2.0
        """Sharpness of the kernel, > 0: how local the estimate of the density is."""

        def __post_init__(self) -> None:
            check_range("t", self.t, above=0)

    def row_values(self, similarities: Tensor, positive: Tensor, negative: Tensor) -> Rows:
        compared = positive | negative
        number = compared.sum(1).to(similarities)  # [A]
        logs = masked_logsumexp(-self.options.t * (2 - 2 * similarities), compared) - number.clamp_min(1).log()
        values = torch.where(number > 0, logs, torch.zeros_like(logs))[None]  # [1, A]
        return Rows(values, (number > 0).to(values)[None])


@dmlcore.hookimpl
def dmlcore_losses() -> list[type]:
    return [UniformPrior]
