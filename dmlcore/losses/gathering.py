"""The batch of all ranks out of the batches that each has: the comparison that one process would make of their union."""

from __future__ import annotations

from collections.abc import Callable
from typing import Unpack

import torch
from torch import Tensor

from dmlcore.errors import ConfigError, DmlcoreError
from dmlcore.losses.base import Against
from dmlcore.losses.comparison import Comparison, compare
from dmlcore.ranks import Group, Layout, exchange, gathered, gathered_embeddings, whole


def whole_comparison(
    group: Group, embeddings: Tensor, labels: Tensor, state: str = "", **against: Unpack[Against]
) -> tuple[Comparison, Layout]:
    """The comparison of all ranks' samples. Arguments as `Loss.forward`: each rank gives its own samples and, where there are
    any, its own part of the references. `own` counts among that part.

    Args:
        group: of the ranks.
        embeddings: `[B, D]` of this rank; B may be 0, and another on each rank.
        labels: `[B]` or as a relation wants them.
        state: what else must be the same on all ranks, in words.
        against: references, their labels, `own`, the relation and keys.

    Returns:
        The comparison, the same on every rank, and whose its anchors are. Its gradient comes back to this rank's embeddings and
        references.

    Raises:
        ConfigError: a rank's arguments are refused by `compare`, or do not fit to those of the others.
    """
    error, comparison, form, counts = None, None, "", (0, 0)
    try:
        comparison = compare(embeddings, labels, **against)
        form, counts = f"{_form(comparison)}{state}", (len(comparison.anchors), len(comparison.other_vectors))
    except DmlcoreError as caught:  # the others would wait
        error = caught
    device = embeddings.device if isinstance(embeddings, Tensor) else torch.device("cpu")
    layout, of_references = exchange(group, counts, form, device, error)
    assert comparison is not None
    anchors, anchor_labels = gathered_embeddings(comparison.anchors, layout, comparison.labels)
    anchors = whole(comparison.anchors, anchors, layout)
    if comparison.keys is not None:
        comparison = comparison._replace(keys=gathered_embeddings(comparison.keys, layout)[0])
    if comparison.references is None or comparison.reference_labels is None:
        return comparison._replace(anchors=anchors, labels=anchor_labels), layout
    references, reference_labels = gathered_embeddings(comparison.references, of_references, comparison.reference_labels)
    own = comparison.own
    if own is not None:
        (own,) = gathered([torch.where(own < 0, own, own + of_references.first)], layout)
    comparison = comparison._replace(
        anchors=anchors,
        labels=anchor_labels,
        references=whole(comparison.references, references, of_references),
        reference_labels=reference_labels,
        own=own,
    )
    return comparison, layout


def _form(comparison: Comparison) -> str:
    """What must be the same on all ranks."""

    def shape(vectors: Tensor, labels: Tensor) -> str:
        learns = "with" if vectors.requires_grad and torch.is_grad_enabled() else "without"
        return (
            f"vectors of {vectors.shape[1]} numbers ({vectors.dtype}, {learns} gradient) and labels"
            f" {list(labels.shape[1:])} ({labels.dtype})"
        )

    text = shape(comparison.anchors, comparison.labels)
    if comparison.references is not None and comparison.reference_labels is not None:
        text += f", references: {shape(comparison.references, comparison.reference_labels)}"
        text += ", own" if comparison.own is not None else ""
    text += ", keys" if comparison.keys is not None else ""
    return text + (f", the relation {_name(comparison.relation)}" if comparison.relation is not None else "")


def _name(relation: Callable[..., Tensor]) -> str:
    return getattr(relation, "__name__", type(relation).__name__)


def check_group(group: object) -> Group | None:
    """A group as a loss takes it: None, the word `world` or `local`, ranks, or a `Group`.

    Raises:
        ConfigError: it is something else.
    """
    if group is None or isinstance(group, Group):
        return group
    if isinstance(group, bool):
        raise ConfigError(f"group is {group}, but must be world, local, a ProcessGroup or a DeviceMesh")
    return Group(group)
