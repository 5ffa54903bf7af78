"""From a network's features at many places (of an image, or the words of a text) to one vector."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Pooling = Literal["auto", "avg", "max", "avg+max", "gem", "cls"]
_LEAST = 1e-6  # of values whose power is taken: the slope of a root is infinite at 0


class Pool(nn.Module):
    """One vector per sample of features at N places.

    Args:
        how: `avg`; `max`; `avg+max`, the sum of both; `gem`, the generalised mean `(mean(x^p))^(1/p)` of what is positive,
            whose `p` is learnt from 3 on; or `cls`, the first place, which transformers keep for the whole sample.

    Source: of `gem`: Radenović, Tolias, Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2019, eq. 3.
    """

    def __init__(self, how: Literal["avg", "max", "avg+max", "gem", "cls"]) -> None:
        super().__init__()
        self.how = how
        self.power = nn.Parameter(torch.tensor(3.0)) if how == "gem" else None

    def forward(self, places: Tensor, is_there: Tensor | None = None) -> Tensor:
        """Pooled features [B, C].

        Args:
            places: [B, N, C], the whole sample's own place first with `cls`.
            is_there: bool [B, N], at least one of each sample; False where a short sample was filled up. None: all.
        """
        if self.how == "cls":
            return places[:, 0]
        if self.how in ("max", "avg+max"):
            most = (places if is_there is None else places.masked_fill(~is_there[..., None], -torch.inf)).amax(1)
            return most if self.how == "max" else most + _mean(places, is_there)
        if self.power is not None:
            return _mean(places.clamp(min=_LEAST).pow(self.power), is_there).pow(1 / self.power)
        return _mean(places, is_there)


def rows_of(features: Tensor, channels_last: bool = False) -> Tensor:
    """Places in a row [B, N, C] of a map [B, C, H, W], or of [B, H, W, C] with `channels_last`; [B, N, C] stays as it is."""
    if features.ndim != 4:
        return features
    return features.flatten(1, 2) if channels_last else features.flatten(2).transpose(1, 2)


def _mean(values: Tensor, is_there: Tensor | None) -> Tensor:
    if is_there is None:
        return values.mean(1)
    weights = is_there[..., None].to(values.dtype)  # [B, N, 1]
    return (values * weights).sum(1) / weights.sum(1)
