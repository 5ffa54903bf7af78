"""Principal component analysis, or whitening within classes before it where validation classes are better served by that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import dmlcore
from dmlcore.ensemble import Projection
from dmlcore_plugins.compressors.pca import Pca
from dmlcore_plugins.compressors.wccn import Wccn


class PcaOrWccn(Projection):
    """`pca` while a run trains. At its end `wccn` is tried as well, with the best weights, and kept if the validation part
    has a higher MAP@R with it. Without validation it stays `pca`.

    Source: as of `pca` and `wccn`; the choice is ours. `docs/reports/arms.md` says what each gives.
    """

    name = "pca_or_wccn"
    uses_labels = True

    @dataclass(frozen=True, kw_only=True)
    class Options(Wccn.Options):
        """Options of `pca_or_wccn`."""

        shrinkage: float = 0.3
        """That of `wccn`, in (0, 1]."""

    def learn(self, embeddings: Tensor, labels: Tensor, seed: int) -> None:
        self._take(self._fitted(Pca(self.width, self.out), embeddings, labels))

    def refine(self, embeddings: Tensor, labels: Tensor, score: Callable[[], float], *, seed: int = 0) -> dict[str, float]:
        whitening = self._fitted(Wccn(self.width, self.out, shrinkage=self.options.shrinkage), embeddings, labels)
        plain = self._fitted(Pca(self.width, self.out), embeddings, labels)
        scores = {}
        for candidate in (whitening, plain):
            self._take(candidate)
            scores[candidate.name] = score()
        if scores["wccn"] > scores["pca"]:
            self._take(whitening)
            return scores
        return {"pca": scores["pca"], "wccn": scores["wccn"]}

    def _fitted(self, other: Projection, embeddings: Tensor, labels: Tensor) -> Projection:
        other.to(self.mean.device).fit(embeddings, labels)
        return other

    def _take(self, other: Projection) -> None:
        """Take over the map of another one."""
        with torch.inference_mode(False), torch.no_grad():
            self.mean.copy_(other.mean)
            self.axes.copy_(other.axes)
            self.is_fitted.fill_(True)


@dmlcore.hookimpl
def dmlcore_compressors() -> list[type]:
    return [PcaOrWccn]
