"""Losses that are defined per anchor on its similarities to references: one row of the similarity matrix at a time.

How their values are computed together stands in `path.py`.
"""

from __future__ import annotations

import abc
import functools
import sys
from pathlib import Path
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from dmlcore.errors import PluginError
from dmlcore.kernels import FunctorCall, constant_in_graphs, partner_functors, why_not, why_not_loaded
from dmlcore.losses.base import Against, Loss
from dmlcore.losses.comparison import Comparison, compare
from dmlcore.losses.distances import unit
from dmlcore.losses.mining import Miner, WindowMiner
from dmlcore.losses.path import Fusion, Rows, compared, evaluate, reduced
from dmlcore.losses.repeating import Repetition, evaluate_again
from dmlcore.losses.streaming import streamed_rows

SAID_BY = {
    "reduce": "reduces",
    "dense_rows": "streams",
    "complete": "completes",
    "reshaped": "reshapes",
    "rearranged": "rearranges",
    "forward": "by_rows",
    "value_of": "by_rows",
}
"""Methods, and the attribute by which a class that writes one says what that means. Nothing compares methods."""


class RowLoss(Loss):
    """A loss defined per anchor on its similarities to references: one row of the similarity matrix at a time.

    An author writes `row_values`, the definition. A fused form takes `functor_call`, which names a functor of `csrc/losses`,
    and `complete` where something remains to be done after the kernel.

    Attributes:
        normalise: whether anchors and references are scaled to unit norm before they are compared (else dot products).
        kernel_normalise: the same for what the kernels compare. None: `normalise`.
        streams: whether the definition may be computed for some anchors at a time: an anchor's values must not depend on which
            other anchors there are. A class that writes `dense_rows` says it anew.
        completes: whether `complete` does something, with these options. Otherwise the kernels' averages are the loss.
        reduces: whether `reduce` is another than that of `options.reduction`.
        reshapes: whether `reshaped` makes another comparison of what the loss is called with.
        rearranges: whether the kernels compare something else than the definition, by `rearranged`.
        needs_vectors: whether the definition looks at the references beyond their similarities to the anchors.
        fuses_miners: whether the fused form is right for any pairs that windows leave.
        fuses_relations: whether the fused form is right for any positives, not just those of equal labels.
        header: the file `name.h` with the functor of a plugin's loss, which is compiled on first use. A relative path begins at
            the module's folder. None: a built-in functor, or one of a header that a hook names.
        miner: which pairs count, or None.
    """

    by_rows = True
    normalise: tuple[bool, bool] = (True, True)
    kernel_normalise: tuple[bool, bool] | None = None
    streams: ClassVar[bool] = True
    completes: bool = False
    reduces: ClassVar[bool] = False
    reshapes: ClassVar[bool] = False
    rearranges: ClassVar[bool] = False
    needs_vectors: bool = False
    fuses_miners: ClassVar[bool] = True
    fuses_relations: ClassVar[bool] = True
    header: ClassVar[Path | str | None] = None
    miner: Miner | None

    def __init__(self, options: Any = None, **options_by_name: Any) -> None:
        super().__init__(options, **options_by_name)
        self.miner = None
        self.fusions: dict[str, Fusion] = {}  # by type of device; `path.fusion_of` keeps them
        self.repetition: Repetition | None = None  # of this loss, or of an ensemble that it is the first of

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Raise for a method without the attribute that says what it means: it would be left out without a word. And for a new
        definition with the kernel of the old one: both would be used, here one and there the other."""
        super().__init_subclass__(**arguments)
        bases = cls.__mro__[: cls.__mro__.index(RowLoss)]  # with those that are no losses: a method may come from a mixin
        for method, attribute in SAID_BY.items():
            writer = next((index for index, base in enumerate(bases) if method in vars(base)), None)
            if writer is None:
                continue
            is_said = any(attribute in vars(base) for base in bases[: writer + 1])
            if method == "forward" and is_said and cls.by_rows:
                raise PluginError(
                    f"the loss class {cls.__qualname__} writes `forward`, which nobody calls while `by_rows` is True"
                )
            if not is_said:
                raise PluginError(
                    f"the loss class {cls.__qualname__} writes `{method}`, so it must say what that means by the attribute"
                    f" `{attribute}` (True or False); RowLoss explains it"
                )
        fuses = next((index for index, base in enumerate(bases) if "functor_call" in vars(base)), None)
        defines = next((index for index, base in enumerate(bases) if "row_values" in vars(base)), None)
        if fuses is not None and defines is not None and defines < fuses:
            raise PluginError(
                f"the loss class {cls.__qualname__} defines `row_values` anew, but its kernel is that of"
                f" {bases[fuses].__qualname__}; write `functor_call` too, which returns a text where there is no kernel"
            )

    def __getstate__(self) -> dict[str, Any]:
        """Without what was found out about the kernels of this process: a copy may be loaded by another."""
        return {**self.__dict__, "fusions": {}, "repetition": None}

    @abc.abstractmethod
    def row_values(self, similarities: Tensor, positive: Tensor, negative: Tensor) -> Rows:
        """The definition.

        Args:
            similarities: `[A, N]` cosines.
            positive: `[A, N]` bool, pairs of one class (never an anchor with itself) that count.
            negative: `[A, N]` bool, pairs of different classes that count.

        Returns:
            Values and counts, both `[V, A]`.
        """

    def functor_call(self) -> FunctorCall | str:
        """The functor and its options, or the reason why there is none. It depends on the loss's options alone.

        A functor that takes numbers per anchor gets them by `FunctorCall(..., given=self.method)`, a function of the comparison
        that returns `[K, A]`. The kernel sees them detached.
        """
        return f"'{self.name}' has no fused form"

    def functor_call_of_batch(self) -> FunctorCall | None:
        """Another functor for a batch on the CPU that is compared with itself, all pairs of it, by labels. It takes no numbers
        per anchor, and its averages are the term where `options.reduction` is the default. None: there is none."""
        return None

    def complete(self, rows: Rows, comparison: Comparison, context: Any) -> Rows:
        """What remains after the kernel: terms that are cheap outside it, gradients with respect to the numbers per anchor.

        A kernel's value `v` with a known derivative `r = dv / d given` gets its gradient by adding
        `r.detach() * (given - given.detach())`.

        Args:
            rows: values and counts of the kernel, `[V, A]`. For a functor with histograms, those of the positive and of the
                negative pairs, `[2, cells]`, and no counts.
            comparison: what is compared.
            context: the numbers that the functor was given, `[K, A]`, with their history, or what `rearranged` returned.
        """
        return rows

    def reduce(self, rows: Rows) -> Tensor:
        """One number from values and counts, as `options.reduction` says."""
        return reduced(rows, self.options.reduction)

    def reshaped(self, comparison: Comparison) -> Comparison:
        """What is compared, from what the loss was called with."""
        return comparison

    def rearranged(self, comparison: Comparison) -> tuple[Comparison, Any] | None:
        """What the kernels compare instead, and a context for `complete`. None: this batch has no fused form."""
        return comparison, None

    @classmethod
    def functor_header(cls) -> Path | None:
        """The file that `header` names, absolute, or None."""
        if cls.header is None:
            return None
        owner = next(base for base in cls.__mro__ if "header" in vars(base))
        return _absolute(cls.header, getattr(sys.modules.get(owner.__module__), "__file__", None))

    @property
    def why_not_fused(self) -> str:
        call = self.functor_call()
        if isinstance(call, str):
            return call
        if reason := self.why_no_kernel(call, "cpu"):
            return reason
        miner = self.miner
        if miner is None:
            return ""
        if not isinstance(miner, WindowMiner) and miner.semihard_margin is None:
            return f"the miner '{miner.name}' is no interval of similarity per anchor"
        if self.normalise != (True, True):
            return "miners choose by cosines, but this loss compares raw vectors"
        if call.functor in partner_functors() or not self.fuses_miners:
            return "its fused form needs all pairs, and a miner leaves some out"
        return ""

    def why_no_kernel(self, call: FunctorCall, device: str) -> str:
        """Why a functor cannot run on a device type, after compiling it where it is a plugin's. Empty: it can."""
        return _why_no_kernel(type(self), call.functor, device)

    def plain_matrices(self, comparison: Comparison) -> int:
        """How many matrices `[A, N]` the definition has alive, for the number of anchors that are computed at a time."""
        return 16

    def plain_rows(self, comparison: Comparison, *, stream: bool = True) -> Rows:
        """Values and counts by the definition, in float32 at least: neither half precision nor autocast reach into it.

        Args:
            comparison: what is compared.
            stream: compute for some anchors at a time where all would exceed the budget of `dmlcore.losses.streaming`.
        """

        def compute(part: Comparison) -> Rows:
            with torch.autocast(part.anchors.device.type, enabled=False):
                return self.dense_rows(part)

        comparison = comparison.in_dtype()
        if not stream or not self.streams or (comparison.mining is not None and not comparison.mining.miner.by_row):
            values, counts = compute(comparison)
        else:
            values, counts = streamed_rows(compute, comparison, self.plain_matrices(comparison), self.parameters())
        return Rows(values + comparison.zeros(), counts)

    def dense_rows(self, comparison: Comparison) -> Rows:
        """Values and counts from all similarities at once. Losses that need more than one row of them write their own."""
        return self.row_values(self.similarities(comparison), *comparison.masks())

    def similarities(self, comparison: Comparison) -> Tensor:
        """`[A, N]` cosines, or products of vectors that `normalise` leaves as they are."""
        if comparison.products is not None:
            return comparison.products
        anchors, references = comparison.anchors, comparison.other_vectors
        anchors = unit(anchors) if self.normalise[0] else anchors
        return anchors @ (unit(references) if self.normalise[1] else references).T

    def rows(self, embeddings: Tensor, labels: Tensor, *, plain: bool = False, **against: Unpack[Against]) -> Rows:
        """Values and counts per anchor, fused where possible. Arguments as `forward`. `plain` forces the definition."""
        self.check_is_whole()
        comparison = compared(self, compare(embeddings, labels, **against), advance=not plain)
        if plain:
            return self.plain_rows(comparison, stream=False)
        rows = evaluate((self,), (comparison,)).rows_of(0)
        assert rows is not None
        return rows

    def value_of(self, comparison: Comparison) -> Tensor:
        self.check_is_whole()
        comparisons = (compared(self, comparison, advance=True),)
        outcome = evaluate_again((self,), comparisons, scalar=True) or evaluate((self,), comparisons, scalar=True)
        if outcome.averaged:
            assert outcome.passed is not None
            return outcome.passed.terms
        return self.reduce(outcome.completed[0])

    def reference(self, embeddings: Tensor, labels: Tensor, **against: Unpack[Against]) -> Tensor:
        return self.reduce(self.rows(embeddings, labels, plain=True, **against))


@functools.cache
def _absolute(path: Path | str, module: str | None) -> Path:
    return (Path(module).parent / path if module else Path(path)).resolve()


@constant_in_graphs
def _why_no_kernel(loss: type[RowLoss], functor: str, device: str) -> str:
    return why_not(device) or why_not_loaded(functor, loss.functor_header(), device)
