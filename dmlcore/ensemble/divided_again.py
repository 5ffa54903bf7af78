"""The short way through a step whose pairs ranks divide, for an ensemble that went the long one before. What `division.py`
would find out again is kept. Vectors are read where the ranks have told them, and a rank gets the gradient of its own samples.
Otherwise Python and copies take a tenth of the time of 2,048 samples."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dmlcore.kernels import REDUCTIONS, DividedBatch, PreparedPass, PreparedPasses, divided_batch, extension, plan_is_watched
from dmlcore.losses.gathering import Meeting
from dmlcore.losses.path import Fusion

WORTH = 1e8
"""Samples times references times dimensions from which on dividing is quicker, as measured with gloo on a CPU."""


class DividedAgain:
    """What stays the same from step to step of an ensemble whose members are all divided by pairs. A copy of it is None.

    Args:
        members: of the ensemble.
        fusions: of all members, in the order of their terms.
        groups: the members that share a pass, pass after pass.
    """

    def __init__(self, members: Sequence[Any], fusions: Sequence[Fusion], groups: dict[bool, list[int]]) -> None:
        self.fusions = fusions
        passes = []
        for normalise, indices in groups.items():
            values = sum(fusions[index].values for index in indices)
            passes.append(PreparedPass(tuple(fusions[index].call for index in indices), values, normalise, (-1,) * values))
        self.passes = PreparedPasses(passes, 0)
        self.reductions = [REDUCTIONS[loss.options.reduction] for loss in members]

    @classmethod
    def of(cls, members: Sequence[Any], fusions: dict[int, Fusion]) -> DividedAgain | None:
        """What stays the same of members with these fused forms by index. None: they are not of the simple kind."""
        groups: dict[bool, list[int]] = {}
        for index, loss in enumerate(members):
            if index not in fusions or loss.reshapes:
                return None
            call = fusions[index].call
            if call.given is not None or call.windows is not None or call.cells:
                return None
            groups.setdefault(fusions[index].normalise[0], []).append(index)
        if [index for indices in groups.values() for index in indices] != list(range(len(members))):
            return None
        return cls(members, [fusions[index] for index in range(len(members))], groups)

    def is_of(self, ensemble: Any, embeddings: object) -> bool:
        """Whether it still says what the members of an ensemble do, and this rank may go the short way."""
        if not isinstance(embeddings, Tensor) or not embeddings.is_cpu or torch.compiler.is_compiling():
            return False
        weighting, group = ensemble.weighting, ensemble.group
        if ensemble.measures_gradients or weighting.reads_gradients or weighting.looks_ahead:
            return False
        if len(ensemble.losses) != len(self.fusions) or extension.SWITCH in os.environ or plan_is_watched():
            return False
        for loss, fusion in zip(ensemble.losses, self.fusions, strict=True):
            if not fusion.is_of(loss) or loss.miner is not None:
                return False
        return group.work != "whole" and group.transport == "full"

    def terms(self, met: Meeting) -> tuple[Tensor, list[float]] | None:
        """The values `[L]` of the members and their shares of samples with a value above 0, as `terms_by_tiles` gives them, but
        differentiable in this rank's samples.

        None, on all ranks: the batch is small, or too large, or of another kind, or the ranks share no memory.

        Args:
            met: where all ranks agreed to go this way.
        """
        comparison, counts, group = met.comparison, met.layout.sizes, met.layout.group
        board, (_, width) = group.board_for(comparison.anchors.device), comparison.anchors.shape
        if board is None or comparison.relation is not None or comparison.anchors.dtype not in (torch.float32, torch.float64):
            return None
        samples = sum(counts)
        if (group.work == "auto" and samples * samples * width < WORTH) or not board.has_met(met.told, counts):
            return None
        try:
            passes = self.passes.divide(board.native, met.layout.rank, counts, width, comparison.anchors.dtype)
        except BaseException:  # the others go on, and would wait
            board.native.leave()
            raise
        batch = DividedBatch(passes, board, self.reductions, group.factor, [])
        return divided_batch(batch, comparison.anchors), batch.shares

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # it is about the members of this process
