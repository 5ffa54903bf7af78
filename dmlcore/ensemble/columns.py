"""What each member of an ensemble sees: some columns of the embeddings (its head), or all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dmlcore.errors import ConfigError
from dmlcore.losses import Comparison, Loss
from dmlcore.losses.norms import NormLoss

Columns = tuple[tuple[int, int] | None, ...]
"""Per member the first and the last + 1 of its columns. None: a regulariser of norms, which sees every head."""


def check_columns(columns: Sequence[tuple[int, int] | None] | None, losses: Sequence[Loss]) -> Columns | None:
    """Columns, one range per loss.

    Raises:
        ConfigError: another number of them than losses, an empty or negative range, None for a loss that is no regulariser,
            heads of different lengths for a regulariser.
    """
    if columns is None:
        return None
    try:
        ranges: Columns = tuple(None if span is None else (int(span[0]), int(span[1])) for span in columns)
    except (TypeError, ValueError, IndexError):
        raise ConfigError(f"columns is {columns!r}, but must hold a range (first, last + 1) per loss") from None
    if len(ranges) != len(losses):
        raise ConfigError(f"columns has {len(ranges)} ranges for {len(losses)} losses")
    for loss, span in zip(losses, ranges, strict=True):
        if span is None and not isinstance(loss, NormLoss):
            raise ConfigError(f"columns has no range for {loss.name}; only regularisers of norms see every head")
        if span is not None and not 0 <= span[0] < span[1]:
            raise ConfigError(f"columns of {loss.name} are {span}, but must be (first, last + 1)")
    # the vectors of all heads become rows of one matrix
    widths = {span[1] - span[0] for span in ranges if span is not None}
    if None in ranges and len(widths) != 1:
        raise ConfigError(f"a regulariser of norms sees heads of one length, got {sorted(widths)}")
    return ranges


class Heads:
    """A comparison by columns. Members with the same columns get the same tensors, so that they share a pass.

    Args:
        columns: see `Columns`.
        comparison: of whole embeddings `[B, W]`, and references `[N, W]` where there are some.

    Raises:
        ConfigError: columns beyond W.
    """

    def __init__(self, columns: Columns, comparison: Comparison) -> None:
        self.columns, self.comparison = columns, comparison
        self._views: dict[tuple[int, int], Comparison] = {}
        last = max((span[1] for span in columns if span is not None), default=0)
        for vectors, noun in ((comparison.anchors, "embeddings"), (comparison.references, "references")):
            if vectors is not None and vectors.shape[1] < last:
                raise ConfigError(f"{noun} have {vectors.shape[1]} columns, but the losses see up to column {last}")

    def view(self, index: int) -> Comparison:
        """What one member compares."""
        span, whole = self.columns[index], self.comparison
        if span is None:
            return self._every_head()
        if span not in self._views:  # the same tensors for the same columns: passes are shared by the identity of tensors
            first, last = span
            # columns that are everything stay the tensor itself, so that losses share its pass with losses without columns
            is_whole = span == (0, whole.anchors.shape[1])
            self._views[span] = whole._replace(
                anchors=whole.anchors if is_whole else whole.anchors.narrow(1, first, last - first),
                references=None if whole.references is None else whole.references.narrow(1, first, last - first),
                keys=None if whole.keys is None else whole.keys.narrow(1, first, last - first),
            )
        return self._views[span]

    def _every_head(self) -> Comparison:
        """The vectors of all heads, sample by sample, for a regulariser of norms."""
        whole = self.comparison
        spans = sorted({span for span in self.columns if span is not None})
        vectors = torch.stack([whole.anchors[:, first:last] for first, last in spans], 1)  # [B, m, d]
        return Comparison(vectors.flatten(0, 1), whole.labels.repeat_interleave(len(spans), 0))

    def whole(self, part: Tensor | None) -> tuple[Tensor, int] | None:
        """The tensor that `part`, as `view` returns it, is columns of and the first of them. None: it is no such part."""
        # with it the kernels write the gradients of all heads into one tensor, without a copy for each head
        for (first, _), view in self._views.items():
            if part is view.anchors:
                return None if part is self.comparison.anchors else (self.comparison.anchors, first)
            if part is not None and part is view.references:
                assert self.comparison.references is not None
                return self.comparison.references, first
        return None
