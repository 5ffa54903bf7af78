"""The comparison: what a loss compares with what. It is made and checked once, where a loss or an ensemble is called, and
handed on whole from there to the kernels. What a loss makes of it stands in `rows.py`, how passes are shared in `path.py`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dmlcore.errors import ConfigError
from dmlcore.losses.distances import unit
from dmlcore.losses.mining import Compared, Mining
from dmlcore.losses.relations import Positives, Relation, label_matrix, positives_of, related, share_a_label


class Comparison(NamedTuple):
    """Anchors against references.

    Attributes:
        anchors: `[A, D]`.
        labels: `[A]` int64. With a relation any tensor of `A` rows.
        references: `[N, D]`, or None: the anchors themselves.
        reference_labels: `[N]` int64 (or `N` rows), or None.
        own: `[A]` int64, the reference that is the anchor itself, or -1. Such a pair never counts. Only with references.
        relation: which pairs are positives. None: those of equal labels.
        mining: which pairs count. None: all.
        positives: the positives by the relation, once they were listed.
        keys: `[A, D]` embeddings of another view of each anchor, or None.
        products: `[A, N]` of the vectors as the loss compares them, where they are known already. The references are then
            `[N, 0]`, so that nobody can compare them again. None: the vectors are there.
    """

    anchors: Tensor
    labels: Tensor
    references: Tensor | None = None
    reference_labels: Tensor | None = None
    own: Tensor | None = None
    relation: Relation | None = None
    mining: Mining | None = None
    positives: Positives | None = None
    keys: Tensor | None = None
    products: Tensor | None = None

    @property
    def other_vectors(self) -> Tensor:
        """`[N, D]` the references, which are the anchors where a batch is compared with itself."""
        return self.anchors if self.references is None else self.references

    @property
    def other_labels(self) -> Tensor:
        """The labels of `other_vectors`."""
        return self.labels if self.reference_labels is None else self.reference_labels

    @property
    def is_batch(self) -> bool:
        """Whether it is a batch with itself, of which all pairs count and labels say which are positives."""
        return self.references is None and self.relation is None and self.mining is None

    @property
    def own_index(self) -> Tensor | None:
        """`[A]` int64 as `own`, also for a batch that is compared with itself."""
        return torch.arange(len(self.anchors), device=self.anchors.device) if self.references is None else self.own

    @property
    def dtype(self) -> torch.dtype:
        """What it is computed in: float64 where one side is, otherwise float32. Neither half precision nor autocast matter."""
        is_double = torch.float64 in (self.anchors.dtype, self.other_vectors.dtype)
        return torch.float64 if is_double else torch.float32

    def in_dtype(self) -> Comparison:
        """The same with vectors of `dtype`."""
        dtype = self.dtype
        references = None if self.references is None else self.references.to(dtype)
        return self._replace(anchors=self.anchors.to(dtype), references=references)

    def zeros(self) -> Tensor:
        """`[A]` 0, but NaN for an anchor with a number that is not finite, and for all where a reference has one.

        Added to values it keeps them from looking sound: comparisons, maxima and masks make something finite of a NaN.
        """
        zeros = self.anchors.detach().mul(0).sum(1)
        return zeros if self.references is None else zeros + self.references.detach().mul(0).sum().to(zeros.dtype)

    def with_positives(self) -> Comparison:
        """The same with every anchor's positives listed, as the kernels need them for a relation."""
        if self.relation is None or self.positives is not None:
            return self
        return self._replace(
            positives=positives_of(self.relation, self.labels, self.other_labels, self.own_index, self.anchors.device)
        )

    def compares_same(self, other: Comparison) -> bool:
        """Whether both compare the same tensors. Identity is what every version of `torch.compile` can trace."""
        return self.anchors is other.anchors and self.references is other.references

    def part(self, start: int, stop: int) -> Comparison:
        """The anchors `start..stop - 1` against all references. A batch against itself becomes its own references."""
        own, mining = self.own_index, self.mining
        return self._replace(
            anchors=self.anchors[start:stop],
            labels=self.labels[start:stop],
            references=self.other_vectors,
            reference_labels=self.other_labels,
            own=None if own is None else own[start:stop],
            positives=None,
            keys=None if self.keys is None else self.keys[start:stop],
            mining=None if mining is None else mining._replace(anchors=mining.anchors[start:stop], first=mining.first + start),
        )

    def masks(self) -> tuple[Tensor, Tensor]:
        """Which pairs count as positives, and which as negatives: two bool matrices `[A, N]`.

        An anchor with itself is neither, nor is what a miner leaves out.
        """
        labels, other_labels = self.labels, self.other_labels
        if self.relation is None:
            positive = labels[:, None] == other_labels[None, :]
        else:
            positive = related(self.relation, labels, other_labels)
        negative = ~positive
        own = self.own_index
        if own is not None and positive.shape[1]:
            is_own = torch.arange(positive.shape[1], device=labels.device)[None, :] == own[:, None]  # [A, N]
            positive, negative = positive & ~is_own, negative & ~is_own
        return (positive, negative) if self.mining is None else self._mined(self.mining, positive, negative)

    def numbers_of_pairs(self) -> tuple[Tensor, Tensor]:
        """How many positives and how many negatives each anchor has: two int64 `[A]`."""
        if self.relation is not None or self.mining is not None:
            positive, negative = self.masks()
            return positive.sum(1), negative.sum(1)
        ordered = self.other_labels.contiguous().sort().values
        labels, number = self.labels.contiguous(), len(ordered)
        positives = torch.searchsorted(ordered, labels, right=True) - torch.searchsorted(ordered, labels)
        own = self.own_index
        if own is None or not number:
            return positives, number - positives
        is_there = own >= 0
        positives = positives - (is_there & (self.other_labels[own.clamp_min(0)] == labels)).long()
        return positives, number - is_there.long() - positives

    @torch.no_grad()
    def _mined(self, mining: Mining, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        anchors, references = (unit(vectors.detach().to(self.anchors.dtype)) for vectors in (mining.anchors, mining.references))
        rows = torch.arange(len(anchors), device=positive.device) + mining.first
        compared = Compared(anchors, references, rows, mining.draw)
        cosines = anchors @ references.T if self.products is None else self.products.detach()
        return mining.miner.masks(cosines, positive, negative, compared)


def compare(
    embeddings: Tensor,
    labels: Tensor,
    *,
    references: Tensor | None = None,
    reference_labels: Tensor | None = None,
    own: Tensor | None = None,
    relation: Relation | Tensor | None = None,
    keys: Tensor | None = None,
) -> Comparison:
    """The comparison that a loss is called with, checked. Arguments as `Loss.forward`.

    Returns:
        Labels are int64, or bool `[N, L]` for label matrices, or as they are for a relation given as a function.

    Raises:
        ConfigError: a wrong number of dimensions, a wrong dtype, lengths or widths or devices that do not agree, references
            without labels, `own` without references or of another shape or dtype than `[A]` int64, keys of another shape than
            embeddings.
    """
    if isinstance(relation, Tensor):  # the labels, by another name
        if relation.ndim != 2:
            raise ConfigError(f"relation must be a label matrix [B, L] or a function, got the shape {list(relation.shape)}")
        labels, relation = relation, None
    if relation is not None and not callable(relation):
        raise ConfigError(f"relation must be a label matrix [B, L] or a function, got {type(relation).__name__}")
    is_matrix = relation is None and isinstance(labels, Tensor) and labels.ndim == 2
    labels = _check_vectors(embeddings, labels, "embeddings", is_matrix, relation)
    if (references is None) != (reference_labels is None):
        raise ConfigError("references and reference_labels must be given together")
    if references is not None and reference_labels is not None:
        reference_labels = _check_vectors(references, reference_labels, "references", is_matrix, relation)
        _check_both(embeddings, labels, references, reference_labels, is_matrix)
    if own is not None:
        _check_own(own, embeddings, references)
    if keys is not None:
        _check_keys(keys, embeddings)
    return Comparison(
        embeddings,
        labels,
        references,
        reference_labels,
        own=own,
        relation=share_a_label if is_matrix else relation,
        keys=keys,
    )


def _check_vectors(vectors: Tensor, labels: Tensor, noun: str, is_matrix: bool, relation: Relation | None) -> Tensor:
    """The labels as the comparison holds them, after checking one side."""
    if not (isinstance(vectors, Tensor) and isinstance(labels, Tensor)):
        value, what = (vectors, noun) if not isinstance(vectors, Tensor) else (labels, f"labels of {noun}")
        raise ConfigError(f"{what} must be a tensor, got {type(value).__name__}")
    if vectors.layout != torch.strided or labels.layout != torch.strided or vectors.is_nested:
        kind = "nested" if vectors.is_nested else str((vectors if vectors.layout != torch.strided else labels).layout)
        raise ConfigError(f"{noun} and their labels must be dense tensors, got a {kind} one; use to_dense() or pad them")
    if vectors.is_meta:
        raise ConfigError(f"{noun} are on the device meta, where tensors have no numbers; a loss needs these")
    if vectors.ndim != 2 or not vectors.is_floating_point():
        raise ConfigError(f"{noun} must be a floating point matrix [B, D], got {list(vectors.shape)} of {vectors.dtype}")
    if vectors.shape[1] == 0:
        raise ConfigError(f"{noun} have no dimensions: shape {list(vectors.shape)}")
    if labels.device != vectors.device:
        raise ConfigError(f"labels of {noun} are on {labels.device}, but {noun} are on {vectors.device}")
    has_shape = labels.ndim == (2 if is_matrix else 1) or (relation is not None and labels.ndim > 0)
    if not has_shape or labels.shape[0] != vectors.shape[0]:
        shape = f"{vectors.shape[0]}, L" if is_matrix else f"{vectors.shape[0]}" + (", ..." if relation is not None else "")
        raise ConfigError(f"labels of {noun} must have the shape [{shape}], got {list(labels.shape)}")
    if relation is not None or (labels.dtype == torch.int64 and not is_matrix):
        return labels
    if is_matrix:
        return label_matrix(labels, noun)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ConfigError(f"labels of {noun} must be whole numbers (int64), got {labels.dtype}")
    return labels.long()


def _check_both(embeddings: Tensor, labels: Tensor, references: Tensor, reference_labels: Tensor, is_matrix: bool) -> None:
    if references.shape[1] != embeddings.shape[1]:
        raise ConfigError(f"references have {references.shape[1]} dimensions, but embeddings have {embeddings.shape[1]}")
    if references.device != embeddings.device:
        raise ConfigError(f"references are on {references.device}, but embeddings are on {embeddings.device}")
    if is_matrix and reference_labels.shape[1] != labels.shape[1]:
        raise ConfigError(
            f"labels of references are a matrix of {reference_labels.shape[1]} columns, but those of embeddings of"
            f" {labels.shape[1]}"
        )


def _check_keys(keys: Tensor, embeddings: Tensor) -> None:
    if not isinstance(keys, Tensor):
        raise ConfigError(f"keys must be a tensor, got {type(keys).__name__}")
    if keys.layout != torch.strided or keys.is_nested:
        raise ConfigError(f"keys must be a dense tensor, got a {keys.layout} one. Use to_dense()")
    if keys.shape != embeddings.shape or not keys.is_floating_point():
        got = f"{list(keys.shape)} of {keys.dtype}"
        raise ConfigError(f"keys must be floating point {list(embeddings.shape)}, one for each embedding, got {got}")
    if keys.device != embeddings.device:
        raise ConfigError(f"keys are on {keys.device}, but embeddings are on {embeddings.device}")


def _check_own(own: Tensor, embeddings: Tensor, references: Tensor | None) -> None:
    if references is None:
        raise ConfigError("own says which reference an embedding is; it needs references")
    if not isinstance(own, Tensor):
        raise ConfigError(f"own must be a tensor, got {type(own).__name__}")
    if own.shape != embeddings.shape[:1] or own.dtype != torch.int64:
        raise ConfigError(f"own must be int64 of shape {list(embeddings.shape[:1])}, got {list(own.shape)} of {own.dtype}")
    if own.device.type == "cpu" and len(own) and not torch.compiler.is_compiling():  # elsewhere it would wait
        lowest, highest = torch.aminmax(own)
        if lowest.item() < -1 or highest.item() >= len(references):
            raise ConfigError(
                f"own must be -1 or the index of one of {len(references)} references, got {int(lowest)}..{int(highest)}"
            )
