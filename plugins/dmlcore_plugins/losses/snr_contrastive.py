"""Signal-to-noise ratio contrastive loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.kernels import FunctorCall
from dmlcore.losses import Comparison, PairLoss, PairOptions, Rows, unit


class SnrContrastive(PairLoss):
    """The contrastive loss on `d(a, b) = Var(a - b) / Var(a)`, the variances taken over the components of unit vectors: `a` is
    the signal, what makes `b` another vector the noise. `relu(d_p - pos_margin)` plus `relu(neg_margin - d_n)`, each averaged
    over its pairs with a non-zero value.

    With centred vectors `a' = a - mean(a)` this is `1 + |b'|^2 / |a'|^2 - 2 a'.b' / |a'|^2`, a product of two extended vectors:
    nothing of the size anchors x references x D is made. The distance is not symmetric, so every pair is computed both ways
    (6 N^2 D operations instead of 4). An anchor whose components are all equal has no signal: its distances are 1, without
    gradient. Pairs exactly at a margin (copies, with `pos_margin = 0`) may or may not count as active: the last bit decides.

    Deviation: no penalty on the embeddings' means; add a regulariser to the ensemble where one is wanted.

    Source: Yuan et al., "Signal-to-Noise Ratio: A Robust Distance Metric for Deep Metric Learning", CVPR 2019, eq. 5 and 9.
    """

    name = "snr_contrastive"
    title = "Signal-to-noise ratio contrastive loss"
    paper = "Yuan et al., CVPR 2019"
    aliases = ("SignalToNoiseRatioContrastiveLoss", "signal_to_noise_ratio_contrastive")
    normalise = (False, False)
    reshapes = True

    @dataclass(frozen=True, kw_only=True)
    class Options(PairOptions):
        """Options of `snr_contrastive`."""

        pos_margin: float = 0.0
        """Ratio below which a positive pair costs nothing, >= 0."""
        neg_margin: float = 1.0
        """Ratio above which a negative pair costs nothing, >= 0."""

        def __post_init__(self) -> None:
            check_range("pos_margin", self.pos_margin, least=0)
            check_range("neg_margin", self.neg_margin, least=0)

    def reshaped(self, comparison: Comparison) -> Comparison:
        """Extended vectors whose products are `1 - d`; the batch becomes its own references."""
        embeddings, references = comparison.anchors, comparison.other_vectors
        dtype = embeddings.dtype if embeddings.dtype == torch.float64 else torch.float32
        with torch.autocast(embeddings.device.type, enabled=False):
            signal, noise = unit(embeddings.to(dtype)), unit(references.to(dtype))
            signal, noise = signal - signal.mean(1, keepdim=True), noise - noise.mean(1, keepdim=True)
            power = signal.square().sum(1, keepdim=True)  # [A, 1]
            silent = power <= 16 * torch.finfo(dtype).eps ** 2  # rounding of the mean leaves no less
            inverse = torch.where(silent, torch.zeros_like(power), 1 / torch.where(silent, torch.ones_like(power), power))
            anchors = torch.cat([2 * signal * inverse, -inverse], dim=1)  # [A, D + 1]
            extended = torch.cat([noise, noise.square().sum(1, keepdim=True)], dim=1)  # [N, D + 1]
        return comparison._replace(
            anchors=anchors,
            references=extended,
            reference_labels=comparison.other_labels,
            own=comparison.own_index,
        )

    def row_values(self, similarities: Tensor, positive: Tensor, negative: Tensor) -> Rows:
        d = 1 - similarities
        pull = torch.relu(d - self.options.pos_margin) * positive
        push = torch.relu(self.options.neg_margin - d) * negative
        values = torch.stack([pull.sum(1), push.sum(1)])  # [2, A]
        return Rows(values, torch.stack([(pull > 0).sum(1), (push > 0).sum(1)]).to(values))

    def functor_call(self) -> FunctorCall:
        return FunctorCall("contrastive_cosine", (self.options.pos_margin, self.options.neg_margin))


@dmlcore.hookimpl
def dmlcore_losses() -> list[type]:
    return [SnrContrastive]
