"""Losses between the samples of a batch whose pairs ranks divide: each pair is compared by one rank, for both of its samples.

That is for the losses whose functors keep nothing of a sample but sums over its negatives. What a rank has is merged with what
the others have, as that of threads is. Others compare the rows of each rank's samples, or all on every rank; see
`dmlcore.ensemble.division`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dmlcore.kernels import divided_passes, merging_functors
from dmlcore.losses.comparison import Comparison
from dmlcore.losses.path import Fusion, Sharing, fusion_of, is_fusable, pass_of
from dmlcore.losses.rows import RowLoss
from dmlcore.ranks import Group


def fusion_by_tiles(loss: Any, comparison: Comparison) -> Fusion | None:
    """The fused form of a loss whose pairs ranks can divide, or None.

    Args:
        loss: a member of an ensemble.
        comparison: that it is called with.
    """
    if not isinstance(loss, RowLoss) or not loss.by_rows or not loss.takes_references:
        return None
    if not comparison.anchors.is_cpu or torch.compiler.is_compiling():  # the kernels of CUDA merge no ranks
        return None
    # what is done after the kernels needs the rows of all samples
    if loss.miner is not None or loss.completes or loss.reduces or loss.rearranges or any(True for _ in loss.parameters()):
        return None
    if loss.reshapes:
        comparison = loss.reshaped(comparison)
    if comparison.references is not None or comparison.relation is not None:
        return None
    fusion = fusion_of(loss, "cpu")
    if fusion is None or fusion.call.functor not in merging_functors() or not is_fusable(loss, fusion, comparison):
        return None
    return fusion


def terms_by_tiles(
    members: Sequence[Any], comparisons: dict[int, Comparison], fusions: dict[int, Fusion], group: Group
) -> tuple[list[int], Tensor, Tensor]:
    """Indices of members whose pairs the ranks divide, their values, and their shares of samples with a value above 0.

    All ranks get the same numbers.

    Args:
        members: of the ensemble.
        comparisons: of the samples of all ranks, by the index of the member.
        fusions: by the index of the member, as `fusion_by_tiles` gives them.
        group: of the ranks.
    """
    sharing = Sharing(members)
    for index, comparison in comparisons.items():
        sharing.add(index, fusions[index], comparison)
    passes = []
    for group_ in sharing.groups:
        first = group_[0]
        passes.append(pass_of(first.fused, [member.call for member in group_], first.fusion.normalise))
    parts = [member for group_ in sharing.groups for member in group_]
    reductions = [members[member.index].options.reduction for member in parts]
    terms, shares = divided_passes(passes, reductions, group)
    return [member.index for member in parts], terms, shares
