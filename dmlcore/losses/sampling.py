"""Which classes take part in a batch, where a loss with proxies leaves some out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dmlcore.losses.draws import fractions, hashes, scrambled


@dataclass(frozen=True)
class ClassSampling:
    """Each class takes part by chance, and those of the batch always do.

    The draws are hashes of the seed, the labels of the batch and the number of the class. So they are the same whatever the
    order of the batch and the number of processes are, and a run that is resumed draws what it would have drawn.

    Attributes:
        fraction: chance of a class, in (0, 1).
        seed: of the draws.
    """

    fraction: float
    seed: int

    @torch.no_grad()
    def drawn(self, classes: Tensor, labels: Tensor) -> Tensor:
        """Which of some classes take part: `[c]` int64, rising.

        Args:
            classes: `[C]` int64, rising and without gaps.
            labels: `[B]` int64 of the batch.
        """
        key = scrambled(hashes(labels[:, None]).sum() + self.seed)
        takes_part = fractions(scrambled(key ^ scrambled(classes))) < self.fraction
        if len(classes):
            own = labels - classes[0]
            takes_part[own[(own >= 0) & (own < len(classes))]] = True
        return takes_part.nonzero()[:, 0]
