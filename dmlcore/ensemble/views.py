"""What each loss of an ensemble sees: some columns of the embeddings (its head), the samples of some classes, or all of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dmlcore.errors import ConfigError
from dmlcore.losses import Loss
from dmlcore.losses.norms import NormLoss

Columns = tuple[tuple[int, int] | None, ...]


def columns_checked(
    columns: Sequence[tuple[int, int] | None] | None, class_masks: Tensor | None, losses: Sequence[Loss]
) -> Columns | None:
    """Columns and masks, one per loss.

    Raises:
        ConfigError: another number of them than losses, an empty or negative range, None for a loss that is no regulariser,
            heads of different lengths for a regulariser, masks that are not bool.
    """
    if class_masks is not None and (
        class_masks.ndim != 2 or len(class_masks) != len(losses) or class_masks.dtype != torch.bool
    ):
        raise ConfigError(f"class_masks must be bool [{len(losses)}, C], got {list(class_masks.shape)} of {class_masks.dtype}")
    if columns is None:
        return None
    found: Columns = tuple(None if one is None else (int(one[0]), int(one[1])) for one in columns)
    if len(found) != len(losses):
        raise ConfigError(f"columns has {len(found)} ranges for {len(losses)} losses")
    for loss, one in zip(losses, found, strict=True):
        if one is None and not isinstance(loss, NormLoss):
            raise ConfigError(f"columns has no range for {loss.name}; only regularisers of norms see every head")
        if one is not None and not 0 <= one[0] < one[1]:
            raise ConfigError(f"columns of {loss.name} are {one}, but must be (first, last + 1)")
    widths = {one[1] - one[0] for one in found if one is not None}
    if None in found and len(widths) != 1:
        raise ConfigError(f"a regulariser of norms sees heads of one length, got {sorted(widths)}")
    return found


class Views:
    """The parts of a batch that the members of an ensemble see; members with the same columns get the same tensors.

    Args:
        columns: per member, None: everything; see `LossEnsemble`.
        class_masks: `[L, C]` bool or None.
        embeddings, references: `[B, W]` and `[N, W]` or None.

    Raises:
        ConfigError: columns beyond W.
    """

    def __init__(
        self, columns: Columns | None, class_masks: Tensor | None, embeddings: Tensor, references: Tensor | None
    ) -> None:
        self.columns, self.class_masks = columns, class_masks
        self.embeddings, self.references = embeddings, references
        self._known: dict[tuple[int, int], tuple[Tensor, Tensor | None]] = {}
        last = max((one[1] for one in columns or () if one is not None), default=0)
        for rows, noun in ((embeddings, "embeddings"), (references, "references")):
            if columns is not None and rows is not None and rows.ndim == 2 and rows.shape[1] < last:
                raise ConfigError(f"{noun} have {rows.shape[1]} columns, but the losses see up to column {last}")

    def of(
        self, index: int, labels: Tensor, reference_labels: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Embeddings, labels, references and their labels of one member."""
        x, others = self._columns_of(index)
        if self.columns is not None and self.columns[index] is None:  # a regulariser: every head's rows
            return x, labels.repeat_interleave(len(x) // max(len(labels), 1), 0), None, None
        if self.class_masks is None or labels.ndim != 1:
            return x, labels, others, reference_labels
        seen = self.class_masks[index]
        if bool(seen.all()):
            return x, labels, others, reference_labels
        rows = seen[labels].nonzero().flatten()
        if others is None or reference_labels is None:
            return x[rows], labels[rows], others, reference_labels
        there = seen[reference_labels].nonzero().flatten()
        return x[rows], labels[rows], others[there], reference_labels[there]

    def whole(self, part: Tensor | None) -> tuple[Tensor, int] | None:
        """The tensor that `part`, as `of` returns it, is columns of and the first of them; None where it is no such part."""
        for (first, _), (x, others) in self._known.items():
            if part is x:
                return None if x is self.embeddings else (self.embeddings, first)
            if others is not None and part is others:
                assert self.references is not None
                return self.references, first
        return None

    def _columns_of(self, index: int) -> tuple[Tensor, Tensor | None]:
        if self.columns is None:
            return self.embeddings, self.references
        chosen = self.columns[index]
        if chosen is None:
            heads = sorted({one for one in self.columns if one is not None})
            x = torch.stack([self.embeddings[:, first:last] for first, last in heads], 1)  # [B, m, d]
            return x.flatten(0, 1), None
        if chosen not in self._known:
            first, last = chosen
            everything = (first, last) == (0, self.embeddings.shape[1])
            self._known[chosen] = (
                self.embeddings if everything else self.embeddings.narrow(1, first, last - first),
                None if self.references is None else self.references.narrow(1, first, last - first),
            )
        return self._known[chosen]
