"""The batch of all ranks out of the batches that each has: the comparison that one process would make of their union."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, Unpack

import torch
from torch import Tensor

from dmlcore.errors import ConfigError, DmlcoreError
from dmlcore.losses.base import Against
from dmlcore.losses.comparison import Comparison, compare
from dmlcore.ranks import Group, Layout, gathered, gathered_embeddings, meet, whole


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
    return meeting(group, embeddings, labels, state, **against).whole()


class Meeting(NamedTuple):
    """What ranks have told one another of a batch. Until their next exchange the samples of all are at hand.

    Attributes:
        comparison: of this rank's samples.
        layout: whose the samples are.
        of_references: whose the references are.
        told: this rank's labels and embeddings, as the ranks were told of them.
        agrees: whether all ranks agree to what they were asked.
    """

    comparison: Comparison
    layout: Layout
    of_references: Layout
    told: tuple[Tensor, ...]
    agrees: bool

    def whole(self) -> tuple[Comparison, Layout]:
        """What `whole_comparison` returns."""
        return _whole_of(self)


def meeting(
    group: Group, embeddings: Tensor, labels: Tensor, state: str = "", *, agrees: bool = False, **against: Unpack[Against]
) -> Meeting:
    """Let the ranks tell one another of their batches. Arguments as `whole_comparison`.

    Args:
        agrees: whether this rank would go a way that all must go.
    """
    error, comparison, form, counts = None, None, "", (0, 0)
    told: tuple[Tensor, ...] = ()
    try:
        comparison = compare(embeddings, labels, **against)
        form, counts = f"{_form(comparison)}{state}{group.manner}", (len(comparison.anchors), len(comparison.other_vectors))
        # labels first: eight bytes each, so that vectors of any width begin at whole numbers behind them
        told = (comparison.labels.contiguous(), group.sent(comparison.anchors.detach()).contiguous())
    except DmlcoreError as caught:  # the others would wait
        error = caught
    device = embeddings.device if isinstance(embeddings, Tensor) else torch.device("cpu")
    (layout, of_references), all_agree = meet(group, told, counts, form, device, error, agrees=agrees)
    assert comparison is not None
    return Meeting(comparison, layout, of_references, told, all_agree)


def _whole_of(met: Meeting) -> tuple[Comparison, Layout]:
    comparison, layout, of_references = met.comparison, met.layout, met.of_references
    anchor_labels, anchors = layout.group.met(met.told, layout.sizes)
    anchors = whole(comparison.anchors, anchors.to(comparison.anchors.dtype), layout)
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
        learns = vectors.requires_grad and torch.is_grad_enabled()
        return _of_side(vectors.shape[1], vectors.dtype, learns, labels.shape[1:], labels.dtype)

    text = shape(comparison.anchors, comparison.labels)
    if comparison.references is not None and comparison.reference_labels is not None:
        text += f", references: {shape(comparison.references, comparison.reference_labels)}"
        text += ", own" if comparison.own is not None else ""
    text += ", keys" if comparison.keys is not None else ""
    return text + (f", the relation {_name(comparison.relation)}" if comparison.relation is not None else "")


@functools.lru_cache(maxsize=64)
def _of_side(width: int, dtype: torch.dtype, learns: bool, of_label: tuple[int, ...], label_dtype: torch.dtype) -> str:
    learning = "with" if learns else "without"
    return f"vectors of {width} numbers ({dtype}, {learning} gradient) and labels {list(of_label)} ({label_dtype})"


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
