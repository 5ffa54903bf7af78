"""Self-distillation: wide heads with losses of their own teach the embedding their similarities while all of them train."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dmlcore.ensemble import LossEnsemble, similarity_matching
from dmlcore.training.setting_groups.model import ModelSettings

if TYPE_CHECKING:
    from dmlcore.models import EmbeddingModel


class Distillation(nn.Module):
    """`(L + mean_k L_k) / 2 + w mean_k KL_k + w_f KL_f` in place of the losses `L` of the embedding. `L_k` are those of wide
    head `k`, and `KL_k` is `similarity_matching` of the embedding to it, with `KL_f` to the trunk's features.

    The wide heads learn from their losses only, since no gradient of the matching reaches them. The embedding is the whole of
    all heads where there are several.

    Args:
        model: with wide heads.
        ensembles: the losses of each.
        settings: the weights, the temperature, and from when on the features teach.

    Source: Roth, Milbich, Ommer, Cohen, Ghassemi, "Simultaneous Similarity-based Self-Distillation for Deep Metric Learning"
    (S2SD), ICML 2021, and the authors' code. Deviation: their wide heads may see the features pooled in another way than the
    embedding does.
    """

    def __init__(self, model: EmbeddingModel, ensembles: Sequence[LossEnsemble], settings: ModelSettings) -> None:
        super().__init__()
        self._model = [model]  # not a part of this module: its weights are kept with the run's
        self.ensembles = nn.ModuleList(ensembles)
        self.weight, self.temperature = settings.distill_weight, settings.distill_temperature
        self.features_weight, self.features_after = settings.distill_features_weight, settings.distill_features_after

    @property
    def losses(self) -> list[LossEnsemble]:
        """The losses of each wide head."""
        return list(self.ensembles)  # type: ignore[arg-type]

    def join(self, total: Tensor, outputs: Tensor, labels: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective with what the wide heads add, and its terms by name.

        Args:
            total: of the losses on the embedding.
            outputs: `[B, W]` of the model in training.
            labels: `[B]` or `[B, L]`.
            step: steps done before this one.
        """
        (model,) = self._model
        whole, parts = model.whole(outputs), model.distill_parts(outputs)
        wide = parts[: len(self.ensembles)]
        of_heads = torch.stack([loss(part, labels) for loss, part in zip(self.losses, wide, strict=True)]).mean()
        matching = torch.stack([self._matching(whole, part) for part in wide]).mean()
        terms = {"wide heads": of_heads / 2, "distillation": self.weight * matching}
        if self.features_weight and step >= self.features_after:
            terms["distillation of features"] = self.features_weight * self._matching(whole, parts[-1])
        return sum(terms.values(), start=total / 2), terms

    def _matching(self, whole: Tensor, teacher: Tensor) -> Tensor:
        return similarity_matching(whole, teacher, temperature=self.temperature, with_self=True)
