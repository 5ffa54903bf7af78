"""What the kernels are told: functors with their options, and what they compare. Plain data; `fused.py` computes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from dmlcore.kernels import extension

Target = tuple[int, int]
"""Where the gradient of a side goes: the index of a tensor and the first of its columns."""


@dataclass(frozen=True)
class FunctorCall:
    """A functor of `csrc/losses` with its options.

    Attributes:
        functor: the name it is listed under.
        options: its options in the order the header lists them.
        given: `[K, A]` numbers per anchor, for functors that take such. Constants for the kernel. A loss may give a function
            of the comparison that returns them.
        windows: `[4, A]` similarities: the lowest and highest of the positives that count for this loss, then of the negatives,
            inclusive. None: all. Constants.
        cells: of the two histograms together, for functors that make some of the whole batch.
        semihard: a margin. Only the pairs of triplets with `d_p < d_n <= d_p + semihard` count, `d` the Euclidean distance of
            unit vectors: positives that have such a negative, negatives that have such a positive. None: all. CPU only.
    """

    functor: str
    options: tuple[float, ...]
    given: Tensor | Callable[[Any], Tensor] | None = field(default=None, compare=False)
    windows: Tensor | None = field(default=None, compare=False)
    cells: int = 0
    semihard: float | None = None

    @property
    def is_mined(self) -> bool:
        """Whether some pairs do not count."""
        return self.windows is not None or self.semihard is not None


class Relations(NamedTuple):
    """Which pairs are what, besides equal labels.

    Attributes:
        own: `[A]` int64, the reference that is the anchor itself or -1: never a pair.
        starts, positives: the positives of anchor `i` are the references `positives[starts[i]:starts[i + 1]]`, ascending, int64
            `[A + 1]` and `[P]`. Everything else is a negative and labels are not looked at. None: equal labels.
    """

    own: Tensor | None = None
    starts: Tensor | None = None
    positives: Tensor | None = None


class Pass(NamedTuple):
    """What is compared with what, by which functors.

    Attributes:
        anchors: `[A, D]` floating point. Half precisions are computed in float32.
        anchor_labels: `[A]` int64 on the same device.
        references: `[N, D]`, or None: the anchors themselves, without each anchor's pair with itself.
        reference_labels: `[N]` int64, or None with `references`.
        calls: the functors.
        normalise: whether anchors and references are scaled to unit norm (a zero vector stays zero, with zero gradient).
        relations: which pairs are the anchor itself, and which are positives where labels do not say.
        anchors_in, references_in: the tensor they are columns of and the first of these columns, where passes see parts of one
            tensor: its gradient is then written at once.
        owners: per value the term its average, `sum(values) / max(sum(counts), 1)`, is added to, -1: none. None: no terms.
    """

    anchors: Tensor
    anchor_labels: Tensor
    references: Tensor | None
    reference_labels: Tensor | None
    calls: tuple[FunctorCall, ...]
    normalise: tuple[bool, bool] = (True, True)
    relations: Relations = Relations()
    anchors_in: tuple[Tensor, int] | None = None
    references_in: tuple[Tensor, int] | None = None
    owners: tuple[int, ...] | None = None

    @property
    def size(self) -> tuple[int, int, int]:
        """Values per anchor, anchors, cells of histograms."""
        functors = extension.functors(self.anchors.device.type)
        values = sum(functors[call.functor][1] if call.functor in functors else 0 for call in self.calls)
        return values, self.anchors.shape[0], sum(call.cells for call in self.calls)
