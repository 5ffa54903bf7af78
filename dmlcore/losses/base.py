"""What every loss is: options, a forward pass to a scalar, its definition in plain PyTorch, and how its rows are reduced."""

from __future__ import annotations

import abc
import functools
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from dmlcore.config import build_options
from dmlcore.errors import ConfigError
from dmlcore.kernels import FunctorCall, Pass, Relations, functors, fused_passes, partner_functors, reason_against, why_missing
from dmlcore.losses.geometry import unit
from dmlcore.losses.mining import Compared, Extremes, Measure, Miner, Mining, WindowMiner, Windows, build_miner
from dmlcore.losses.relations import Positives, Relation, label_matrix, positives_of, related, share_a_label
from dmlcore.losses.streaming import streamed_rows


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """Options every loss has."""

    reduction: Literal["default", "mean", "sum", "none"] = "default"
    """How the anchors' values become one number: `default` as the loss defines it, `mean` over all anchors, `sum`, or `none`
    for one value per anchor."""


@dataclass(frozen=True, kw_only=True)
class PairOptions(LossOptions):
    """Options of every loss between samples."""

    miner: str | None = None
    """Which pairs count, by a miner's name with options where wanted, as in `multi_similarity(epsilon=0.2)`; `none`: all."""


class Sides(NamedTuple):
    """What a loss compares with what.

    Attributes:
        anchors: `[A, D]`.
        anchor_labels: `[A]` int64; with a relation any tensor of `A` rows.
        references: `[N, D]`, or None: the anchors themselves.
        reference_labels: `[N]` int64 (or `N` rows), or None.
        own: `[A]` int64, the reference that is the anchor itself, or -1: never a pair. Only with references.
        relation: which pairs are positives; None: equal labels.
        mining: which of them count; None: all.
        lists: the positives by the relation, once they were listed.
    """

    anchors: Tensor
    anchor_labels: Tensor
    references: Tensor | None
    reference_labels: Tensor | None
    own: Tensor | None = None
    relation: Relation | None = None
    mining: Mining | None = None
    lists: Positives | None = None


def pair_masks(sides: Sides) -> tuple[Tensor, Tensor]:
    """Which pairs of anchors and references count as positives, and which as negatives: two bool matrices `[A, N]`.

    An anchor with itself is neither, nor is what a miner leaves out.
    """
    labels = sides.anchor_labels
    others = labels if sides.reference_labels is None else sides.reference_labels
    positive = labels[:, None] == others[None, :] if sides.relation is None else related(sides.relation, labels, others)
    negative = ~positive
    own = torch.arange(len(labels), device=labels.device) if sides.references is None else sides.own
    if own is not None and positive.shape[1]:
        is_own = torch.arange(positive.shape[1], device=labels.device)[None, :] == own[:, None]  # [A, N]
        positive, negative = positive & ~is_own, negative & ~is_own
    if sides.mining is None:
        return positive, negative
    with torch.no_grad():
        mining = sides.mining
        anchors, references = (
            unit(vectors.detach().to(sides.anchors.dtype)) for vectors in (mining.anchors, mining.references)
        )
        rows = torch.arange(len(anchors), device=labels.device) + mining.first
        compared = Compared(anchors, references, rows, mining.draw)
        return mining.miner.masks(anchors @ references.T, positive, negative, compared)


class Rows(NamedTuple):
    """Unreduced results: `values` and `counts`, both `[V, A]`. The default reduction is sum(values) / sum(counts) of each of
    the V rows, added up."""

    values: Tensor
    counts: Tensor


def check_inputs(
    embeddings: Tensor,
    labels: Tensor,
    references: Tensor | None,
    reference_labels: Tensor | None,
    relation: Relation | Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Relation | None]:
    """Labels and what relates them, after checking everything a loss is called with; arguments as `Loss.forward`.

    Returns:
        Labels and reference labels, int64, or bool `[N, L]` for label matrices, or as they are for a relation given as a
        function; and the relation, None for equal labels.

    Raises:
        ConfigError: a wrong number of dimensions, a wrong dtype, lengths or widths or devices that do not agree, references
            without labels.
    """
    if isinstance(relation, Tensor):  # the labels, by another name
        if relation.ndim != 2:
            raise ConfigError(f"relation must be a label matrix [B, L] or a function, got the shape {list(relation.shape)}")
        labels, relation = relation, None
    is_matrix = relation is None and isinstance(labels, Tensor) and labels.ndim == 2

    def check(rows: Tensor, ids: Tensor, noun: str) -> Tensor:
        for given, what in ((rows, noun), (ids, f"labels of {noun}")):
            if not isinstance(given, Tensor):
                raise ConfigError(f"{what} must be a tensor, got {type(given).__name__}")
        if rows.ndim != 2 or not rows.is_floating_point():
            raise ConfigError(f"{noun} must be a floating point matrix [B, D], got {list(rows.shape)} of {rows.dtype}")
        if rows.shape[1] == 0:
            raise ConfigError(f"{noun} have no dimensions: shape {list(rows.shape)}")
        if ids.device != rows.device:
            raise ConfigError(f"labels of {noun} are on {ids.device}, but {noun} are on {rows.device}")
        wanted = f"{rows.shape[0]}, L" if is_matrix else f"{rows.shape[0]}" + (", ..." if relation is not None else "")
        fits = ids.ndim == (2 if is_matrix else 1) or (relation is not None and ids.ndim > 0)
        if not fits or ids.shape[0] != rows.shape[0]:
            raise ConfigError(f"labels of {noun} must have the shape [{wanted}], got {list(ids.shape)}")
        if relation is not None:
            return ids
        if is_matrix:
            return label_matrix(ids, noun)
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise ConfigError(f"labels of {noun} must be whole numbers (int64), got {ids.dtype}")
        return ids.long()

    labels = check(embeddings, labels, "embeddings")
    if (references is None) != (reference_labels is None):
        raise ConfigError("references and reference_labels must be given together")
    if references is not None and reference_labels is not None:
        reference_labels = check(references, reference_labels, "references")
        if references.shape[1] != embeddings.shape[1]:
            raise ConfigError(f"references have {references.shape[1]} dimensions, but embeddings have {embeddings.shape[1]}")
        if references.device != embeddings.device:
            raise ConfigError(f"references are on {references.device}, but embeddings are on {embeddings.device}")
        if is_matrix and reference_labels.shape[1] != labels.shape[1]:
            raise ConfigError(
                f"labels of references are a matrix of {reference_labels.shape[1]} columns, but those of embeddings of"
                f" {labels.shape[1]}"
            )
    return labels, reference_labels, share_a_label if is_matrix else relation


def with_relations(sides: Sides, own: Tensor | None, relation: Relation | None) -> Sides:
    """Sides with what `forward` was told about them.

    Raises:
        ConfigError: `own` without references, or of another shape or dtype than `[A]` int64.
    """
    if own is None and relation is None:
        return sides
    if own is not None:
        if sides.references is None:
            raise ConfigError("own says which reference an embedding is; it needs references")
        if own.shape != sides.anchors.shape[:1] or own.dtype != torch.int64:
            raise ConfigError(
                f"own must be int64 of shape {list(sides.anchors.shape[:1])}, got {list(own.shape)} of {own.dtype}"
            )
    return sides._replace(own=sides.own if own is None else own, relation=relation)


class RowMeasure:
    """The extremes of all rows of two sides by the kernels; those of all pairs are computed once."""

    def __init__(self, sides: Sides) -> None:
        self.sides = sides
        self.all: Extremes | None = None

    @torch.no_grad()
    def __call__(self, windows: Windows | None) -> Extremes:
        if windows is None and self.all is not None:
            return self.all
        values, counts, _ = run_together(self.sides, (FunctorCall("row_extremes", (0.0,), windows=windows),), (True, True))
        signs = values.new_full((4, 1), torch.inf)  # no copy of numbers of the host: a CUDA graph takes none
        signs[1::2].neg_()
        found = Extremes(*torch.where(counts == 0, signs, values).unbind())
        if windows is None:
            self.all = found
        return found


def with_lists(sides: Sides) -> Sides:
    """Sides with every anchor's positives listed, as the kernels need them for a relation."""
    return sides if sides.relation is None or sides.lists is not None else sides._replace(lists=positives_of(sides))


def pass_of(
    sides: Sides, calls: tuple[FunctorCall, ...], normalise: tuple[bool, bool], owners: tuple[int, ...] | None = None
) -> Pass:
    """Several functors on two sides as a pass of the kernels; the last two as `Pass`."""
    anchor_labels, reference_labels, relations = sides.anchor_labels, sides.reference_labels, Relations(sides.own)
    if sides.relation is not None:
        lists = with_lists(sides).lists
        assert lists is not None
        relations = Relations(sides.own, lists.start, lists.index)
        anchor_labels = lists.start[:-1]  # looked at by nobody
        reference_labels = None if sides.references is None else lists.start.new_zeros(len(sides.references))
    return Pass(sides.anchors, anchor_labels, sides.references, reference_labels, calls, normalise, relations, owners=owners)


def run_together(sides: Sides, calls: tuple[FunctorCall, ...], normalise: tuple[bool, bool]) -> tuple[Tensor, Tensor, Tensor]:
    """Values and counts `[V, A]` of several functors in one pass over the similarities of two sides, and their tables."""
    return fused_passes([pass_of(sides, calls, normalise)]).of(0)


def table_rows(table: Tensor) -> Rows:
    """What `complete` of a loss with a table gets: histograms of positive and negative pairs, `[2, cells]`; no counts."""
    return Rows(table.view(2, -1), table.new_zeros(2, 0))


@functools.cache
def _absolute(path: Path | str, module: str | None) -> Path:
    return (Path(module).parent / path if module else Path(path)).resolve()


@torch.compiler.assume_constant_result
def _why_no_kernel(loss: type[RowLoss], functor: str, device: str) -> str:
    """Why a loss's functor cannot run on a device type, after compiling it where it is a plugin's; or an empty string."""
    return reason_against(device) or why_missing(functor, loss.functor_header(), device)


class Loss(nn.Module, abc.ABC):
    """A metric learning loss. Subclasses set `name` and `Options` and write `forward`; most are a `PairLoss` or `ProxyLoss`.

    Args:
        options: an instance of `Options`, or None for the defaults.
        num_classes, embedding_dim: for losses that own proxies (`needs_classes`); ignored by others.
        given: options by name instead of `options`.

    Raises:
        ConfigError: an unknown option or a value out of range.
    """

    name: ClassVar[str]
    Options: ClassVar[type] = LossOptions
    needs_classes: ClassVar[bool] = False
    uses_classes: ClassVar[bool] = False
    """Whether `create` hands on `num_classes` where it is known, to a loss that does not always need it."""
    needs_norms: ClassVar[bool] = False
    takes_references: ClassVar[bool] = True
    """Whether it compares samples with samples. Other losses refuse references; an ensemble calls those without any."""
    sees_features: ClassVar[bool] = False
    """Whether it learns from the trunk's features instead of an embedding where `classifier = features` asks for it."""
    searched: ClassVar[dict[str, tuple[Any, ...]]] = {}
    """What a search for the members of an ensemble tries: an option's name and its values, the default first."""

    def __init__(
        self, options: Any = None, *, num_classes: int | None = None, embedding_dim: int | None = None, **given: Any
    ) -> None:
        super().__init__()
        if options is not None and given:
            raise ConfigError(f"{self.name}: give either an Options object or options by name, not both")
        self.options: Any = options if options is not None else build_options(self.Options, given, self.name)

    @abc.abstractmethod
    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        references: Tensor | None = None,
        reference_labels: Tensor | None = None,
        own: Tensor | None = None,
        relation: Relation | Tensor | None = None,
    ) -> Tensor:
        """The loss.

        Args:
            embeddings: `[B, D]` floating point, raw: the loss normalises when its definition does.
            labels: `[B]` int64, positives have equal ones; or a binary matrix `[B, L]`, positives share at least one label.
            references: `[N, D]` to compare with instead of the batch itself; gradients flow to both.
            reference_labels: `[N]` int64, or `[N, L]` beside a matrix.
            own: `[B]` int64, which reference is the sample itself (-1: none) and so no pair; needs references.
            relation: which pairs are positives, where `labels` does not say: a matrix `[B, L]` as above, used instead of
                labels, or a function of two blocks of labels that returns a bool matrix `[a, b]`. Labels may then be any
                tensors whose first dimension counts samples; the function is called block by block.

        Returns:
            Scalar (or `[B]` for `reduction = "none"`).
        """

    def reference(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        references: Tensor | None = None,
        reference_labels: Tensor | None = None,
        own: Tensor | None = None,
        relation: Relation | Tensor | None = None,
    ) -> Tensor:
        """The definition in plain PyTorch: differentiable, any dtype and device, no extension. Arguments as `forward`."""
        more: dict[str, Any] = {name: x for name, x in (("own", own), ("relation", relation)) if x is not None}
        return self.forward(embeddings, labels, references=references, reference_labels=reference_labels, **more)

    @property
    def is_fused(self) -> bool:
        """Whether `forward` runs in the fused pass: on the CPU, and on CUDA devices where `kernels.info` finds kernels for
        them, float64 excepted there."""
        return not self.why_not_fused

    @property
    def why_not_fused(self) -> str:
        """The reason `forward` runs in plain PyTorch, or an empty string."""
        return f"'{self.name}' has no fused form"

    @classmethod
    def reads_norms(cls, options: Any) -> bool:
        """Whether, with these options, embeddings must not be normalised before."""
        return cls.needs_norms

    def parameter_roles(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by the optimiser group they belong to: `proxies`, `scalars`."""
        proxies = getattr(self, "proxies", None)
        scalars = [parameter for parameter in self.parameters() if parameter is not proxies]
        return {"proxies": [proxies] if isinstance(proxies, nn.Parameter) else [], "scalars": scalars}

    def extra_repr(self) -> str:
        return f"{self.options}, {'fused' if self.is_fused else 'plain: ' + self.why_not_fused}"


class RowLoss(Loss):
    """A loss defined per anchor on its similarities to references: one row of the similarity matrix at a time.

    Subclasses write `row_values`, the definition, and for a fused form name a functor of `csrc/losses` by `functor_call`.

    Attributes:
        normalise: whether anchors and references are scaled to unit norm before they are compared (else dot products).
        streams: whether the definition may be computed for some anchors at a time: an anchor's values must not depend on which
            other anchors there are. None: yes, unless `dense_rows` is overridden.
        fuses_miners: whether the fused form is right for any pairs that windows leave.
        header: the file `name.h` with the functor of a plugin's loss, which is compiled on first use; a relative path begins at
            the module's folder. None: a built-in functor, or one of a header that a hook names.
    """

    normalise: tuple[bool, bool] = (True, True)
    streams: ClassVar[bool | None] = None
    fuses_miners: ClassVar[bool] = True
    header: ClassVar[Path | str | None] = None

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
        """The functor and its options, or the reason why there is none for these options."""
        return f"'{self.name}' has no fused form"

    @classmethod
    def functor_header(cls) -> Path | None:
        """The file that `header` names, absolute, or None."""
        if cls.header is None:
            return None
        owner = next(one for one in cls.__mro__ if "header" in vars(one))
        return _absolute(cls.header, getattr(sys.modules.get(owner.__module__), "__file__", None))

    @abc.abstractmethod
    def sides(self, embeddings: Tensor, labels: Tensor, references: Tensor | None, reference_labels: Tensor | None) -> Sides:
        """What is compared with what; arguments as `forward`."""

    def given(self, sides: Sides) -> Tensor | None:
        """`[K, A]` numbers per anchor that the functor takes beside its options. The kernel sees them detached."""
        return None

    def complete(self, rows: Rows, sides: Sides, given: Tensor | None) -> Rows:
        """What remains after the kernel: terms that are cheap outside it, gradients with respect to `given`.

        A kernel's value `v` with a known derivative `r = dv / d given` gets its gradient by adding
        `r.detach() * (given - given.detach())`.
        """
        return rows

    @property
    def completes(self) -> bool:
        """Whether `complete` does something, with these options: else the kernels' averages need nothing after them."""
        return type(self).complete is not RowLoss.complete

    @property
    def is_averaged(self) -> bool:
        """Whether the kernels' averages are all that is left of its rows: the default reduction, and nothing to complete."""
        return self.options.reduction == "default" and type(self).reduce is RowLoss.reduce and not self.completes

    @property
    def why_not_fused(self) -> str:
        call = self.functor_call()
        if isinstance(call, str):
            return call
        if reason := _why_no_kernel(type(self), call.functor, "cpu"):
            return reason
        miner = self._miner()
        if miner is not None and not isinstance(miner, WindowMiner):
            return f"the miner '{miner.name}' is no interval of similarity per anchor"
        if miner is not None and self.normalise != (True, True):
            return "miners choose by cosines, but this loss compares raw vectors"
        if miner is not None and (call.functor in partner_functors() or not self.fuses_miners):
            return "its fused form needs all pairs, and a miner leaves some out"
        return ""

    def call_for(self, embeddings: Tensor, sides: Sides) -> FunctorCall | None:
        """The functor to run for such embeddings, or None: plain PyTorch. The CUDA kernels take no float64."""
        call = self.functor_call()
        if (
            isinstance(call, str)
            or _why_no_kernel(type(self), call.functor, embeddings.device.type)
            or (embeddings.is_cuda and embeddings.dtype == torch.float64)
            or (call.functor in partner_functors() and not self._has_partners(sides))
            or not self._is_minable(sides)
        ):
            return None
        return call

    def _has_partners(self, sides: Sides) -> bool:
        """Whether every positive of an anchor has that anchor among its own positives, as losses that couple them need."""
        return sides.references is None and sides.mining is None and sides.relation in (None, share_a_label)

    def _miner(self) -> Miner | None:
        miner = getattr(self, "miner", None)
        assert miner is None or isinstance(miner, Miner)
        return miner

    def _is_minable(self, sides: Sides) -> bool:
        """Whether the kernels can do the mining: by windows of cosines."""
        if sides.mining is None:
            return True
        return isinstance(sides.mining.miner, WindowMiner) and self.normalise == (True, True) and self.fuses_miners

    def ready_call(self, call: FunctorCall, sides: Sides, measure: Measure | None = None) -> tuple[FunctorCall, Tensor | None]:
        """A functor with all it needs for one batch, and the numbers it is given.

        Args:
            call: from `call_for`.
            sides: what is compared.
            measure: gives the extremes of rows, where members of an ensemble share it.
        """
        given = self.given(sides)
        if given is not None:
            call = replace(call, given=given)
        if sides.mining is not None:
            assert isinstance(sides.mining.miner, WindowMiner)
            call = replace(call, windows=sides.mining.miner.windows(measure or RowMeasure(sides)))
        return call, given

    def sides_for(
        self,
        embeddings: Tensor,
        labels: Tensor,
        references: Tensor | None,
        reference_labels: Tensor | None,
        own: Tensor | None,
        relation: Relation | None,
        *,
        advance: bool,
    ) -> Sides:
        """`sides` with what `forward` was told about pairs, and with the loss's miner.

        Args:
            advance: a new batch: a miner with a seed draws anew.
        """
        sides = with_relations(self.sides(embeddings, labels, references, reference_labels), own, relation)
        miner = self._miner()
        if miner is None:
            return sides
        others = embeddings if references is None else references
        return sides._replace(mining=Mining(miner, miner.next_draw(advance=advance), embeddings, others))

    def plain_matrices(self, sides: Sides) -> int:
        """How many matrices `[A, N]` the definition has alive, for the number of anchors that are computed at a time."""
        return 16

    def plain_rows(self, sides: Sides, *, stream: bool = True) -> Rows:
        """Values and counts by the definition, in float32 at least: neither half precision nor autocast reach into it.

        Args:
            sides: what is compared.
            stream: compute for some anchors at a time where all would exceed the budget of `dmlcore.losses.streaming`.
        """
        types = (sides.anchors.dtype, sides.anchors.dtype if sides.references is None else sides.references.dtype)
        dtype = torch.float64 if torch.float64 in types else torch.float32
        others = None if sides.references is None else sides.references.to(dtype)
        sides = sides._replace(anchors=sides.anchors.to(dtype), references=others)

        def compute(part: Sides) -> Rows:
            with torch.autocast(part.anchors.device.type, enabled=False):
                return self.dense_rows(part)

        can_stream = type(self).dense_rows is RowLoss.dense_rows if self.streams is None else self.streams
        if not stream or not can_stream or (sides.mining is not None and not sides.mining.miner.by_row):
            return compute(sides)
        return Rows(*streamed_rows(compute, sides, self.plain_matrices(sides), self.parameters()))

    def dense_rows(self, sides: Sides) -> Rows:
        """Values and counts from all similarities at once; overridden by losses that need more than one row of them."""
        return Rows(*self.row_values(self.similarities(sides), *pair_masks(sides)))

    def similarities(self, sides: Sides) -> Tensor:
        """`[A, N]` cosines, or products of vectors that `normalise` leaves as they are."""
        references = sides.anchors if sides.references is None else sides.references
        anchors = unit(sides.anchors) if self.normalise[0] else sides.anchors
        return anchors @ (unit(references) if self.normalise[1] else references).T

    def fused_rows(self, sides: Sides, call: FunctorCall) -> Rows:
        """Values and counts by the kernels. A subclass that overrides this runs a pass of its own in an ensemble too."""
        sides = with_lists(sides)
        call, given = self.ready_call(call, sides)
        values, counts, table = run_together(sides, (call,), self.normalise)
        return self.complete(table_rows(table) if call.cells else Rows(values, counts), sides, given)

    def rows(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        references: Tensor | None = None,
        reference_labels: Tensor | None = None,
        own: Tensor | None = None,
        relation: Relation | Tensor | None = None,
        plain: bool = False,
    ) -> Rows:
        """Values and counts per anchor, fused where possible. Arguments as `forward`; `plain` forces the definition."""
        labels, reference_labels, relation = check_inputs(embeddings, labels, references, reference_labels, relation)
        sides = self.sides_for(embeddings, labels, references, reference_labels, own, relation, advance=not plain)
        call = None if plain else self.call_for(embeddings, sides)
        return self.plain_rows(sides, stream=not plain) if call is None else self.fused_rows(sides, call)

    def reduce(self, rows: Rows) -> Tensor:
        """One number from values and counts, as `options.reduction` says."""
        values, counts = rows
        if self.options.reduction == "none":
            return values.sum(0)
        if self.options.reduction == "sum":
            return values.sum()
        if self.options.reduction == "mean":
            return values.sum() / max(values.shape[1], 1)
        return (values.sum(1) / counts.sum(1).clamp_min(1)).sum()

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        references: Tensor | None = None,
        reference_labels: Tensor | None = None,
        own: Tensor | None = None,
        relation: Relation | Tensor | None = None,
    ) -> Tensor:
        if not self.is_averaged or type(self).rows is not RowLoss.rows or type(self).fused_rows is not RowLoss.fused_rows:
            more: dict[str, Any] = {"references": references, "reference_labels": reference_labels}
            return self.reduce(self.rows(embeddings, labels, own=own, relation=relation, **more))
        labels, reference_labels, relation = check_inputs(embeddings, labels, references, reference_labels, relation)
        sides = self.sides_for(embeddings, labels, references, reference_labels, own, relation, advance=True)
        call = self.call_for(embeddings, sides)
        if call is None:
            return self.reduce(self.plain_rows(sides))
        sides = with_lists(sides)
        call, _ = self.ready_call(call, sides)
        values = functors(embeddings.device.type)[call.functor][1]
        return fused_passes([pass_of(sides, (call,), self.normalise, (0,) * values)], None).terms

    def reference(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        references: Tensor | None = None,
        reference_labels: Tensor | None = None,
        own: Tensor | None = None,
        relation: Relation | Tensor | None = None,
    ) -> Tensor:
        return self.reduce(
            self.rows(
                embeddings,
                labels,
                references=references,
                reference_labels=reference_labels,
                own=own,
                relation=relation,
                plain=True,
            )
        )


class PairLoss(RowLoss):
    """A loss between the samples of a batch, or between a batch and references.

    Args:
        options, given: as `Loss`; `miner` may be a `Miner` too.

    Attributes:
        miner: which pairs count, or None.
    """

    Options: ClassVar[type] = PairOptions

    def __init__(self, options: Any = None, **given: Any) -> None:
        miner = given.pop("miner") if isinstance(given.get("miner"), Miner) else None
        super().__init__(options, **given)
        self.miner = build_miner(getattr(self.options, "miner", None))
        if miner is not None:
            self.use_miner(miner)

    def use_miner(self, miner: Miner | str | None) -> None:
        """Mine from now on with this one.

        Raises:
            ConfigError: the loss's options know no miner.
        """
        if "miner" not in {field.name for field in fields(self.options)}:
            raise ConfigError(f"{self.name} takes no miner; its Options must derive from PairOptions")
        self.miner = build_miner(miner)
        self.options = replace(self.options, miner=None if self.miner is None else self.miner.text)

    def sides(self, embeddings: Tensor, labels: Tensor, references: Tensor | None, reference_labels: Tensor | None) -> Sides:
        return Sides(embeddings, labels, references, reference_labels)


class ProxyLoss(RowLoss):
    """A loss between samples and one learnt vector per class, `proxies` `[C, D]`; labels are 0..C-1. A subclass may own several
    per class (`centres`), side by side: `[C * K, D]`.

    Raises:
        ConfigError: `num_classes` or `embedding_dim` is missing or not positive; a label outside 0..C-1; references given.
    """

    needs_classes = True
    takes_references = False

    def __init__(
        self, options: Any = None, *, num_classes: int | None = None, embedding_dim: int | None = None, **given: Any
    ) -> None:
        super().__init__(options, **given)
        for noun, number in (("num_classes", num_classes), ("embedding_dim", embedding_dim)):
            if number is None or number < 1:
                raise ConfigError(f"{self.name} owns a proxy per class and needs {noun} >= 1, got {number}")
        assert num_classes is not None and embedding_dim is not None
        self.num_classes = num_classes
        self.proxies = nn.Parameter(torch.empty(num_classes * self.centres, embedding_dim))
        self.register_buffer("proxy_labels", torch.arange(num_classes).repeat_interleave(self.centres), persistent=False)
        nn.init.kaiming_normal_(self.proxies, mode="fan_out")

    @property
    def centres(self) -> int:
        """Proxies per class."""
        return 1

    def check_labels(self, embeddings: Tensor, labels: Tensor, references: Tensor | None) -> None:
        """Raise for references, a wrong width, and labels without a proxy (labels only on the CPU: elsewhere it would wait)."""
        if references is not None:
            raise ConfigError(f"{self.name} compares with its own proxies; it takes no references")
        if labels.ndim != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
            raise ConfigError(
                f"{self.name} owns a proxy per class and needs one label 0..{self.num_classes - 1} per sample;"
                f" it takes no label matrix"
            )
        if embeddings.shape[1] != self.proxies.shape[1]:
            raise ConfigError(
                f"{self.name} has proxies of {self.proxies.shape[1]} dimensions, but embeddings have {embeddings.shape[1]}"
            )
        if labels.device.type == "cpu" and len(labels) and not torch.compiler.is_compiling():
            lowest, highest = (int(x) for x in torch.aminmax(labels))
            if lowest < 0 or highest >= self.num_classes:
                raise ConfigError(
                    f"{self.name} has proxies for labels 0..{self.num_classes - 1}, got labels {lowest}..{highest}"
                )

    def sides_for(
        self,
        embeddings: Tensor,
        labels: Tensor,
        references: Tensor | None,
        reference_labels: Tensor | None,
        own: Tensor | None,
        relation: Relation | None,
        *,
        advance: bool,
    ) -> Sides:
        if relation is not None and relation is not share_a_label:  # a label matrix is refused by `check_labels`
            raise ConfigError(f"{self.name} compares samples with its own proxies; it takes no relation between samples")
        if own is not None:
            raise ConfigError(f"{self.name} compares with its own proxies; it takes no references, and so no own")
        return super().sides_for(embeddings, labels, references, reference_labels, None, None, advance=advance)

    def sides(self, embeddings: Tensor, labels: Tensor, references: Tensor | None, reference_labels: Tensor | None) -> Sides:
        self.check_labels(embeddings, labels, references)
        assert isinstance(self.proxy_labels, Tensor)
        return Sides(embeddings, labels, self.proxies, self.proxy_labels)
