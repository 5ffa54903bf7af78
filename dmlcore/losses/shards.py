"""What some classes of a softmax over proxies give each sample: log-sums of which those of all ranks are merged. Blocks of
classes follow one another, so nothing of the size samples x classes is kept."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmlcore.ranks import Shard, merged

CELLS = 2**19
"""Similarities of a block on the CPU, where they should stay in the cache."""
CELLS_CUDA = 2**26


class ClassSums(NamedTuple):
    """What some of the classes give each of N samples.

    Attributes:
        others: `[N]` the log-sum of the logits of those that are not the sample's class.
        targets: `[N]` the logit of the sample's class, 0 where that is not among them.
        added: `[N]` what is added to the sample's value. None: nothing.
        smoothing: the share of the target that is spread over all classes. `added` takes off what these classes get of it.
    """

    others: Tensor
    targets: Tensor
    added: Tensor | None = None
    smoothing: float = 0.0


def merged_values(sums: ClassSums, entered: Tensor, shard: Shard) -> Tensor:
    """The cross-entropy of each sample over the classes of all ranks: `[N]` float64, the same on every rank.

    Args:
        sums: of this rank's classes.
        entered: what `merged` calls so.
        shard: whose classes these are.
    """
    added = torch.zeros_like(sums.targets) if sums.added is None else sums.added
    numbers = torch.stack([sums.targets, added]).double()
    others, (targets, added) = merged(sums.others.double(), numbers, entered, shard.group)
    values = torch.logaddexp(others - targets, torch.zeros_like(targets))  # softplus of PyTorch leaves out what is below 2e-9
    return values + sums.smoothing * targets + added


def places_among(labels: Tensor, class_labels: Tensor) -> tuple[Tensor, Tensor]:
    """Where each sample's class is among some classes, and whether it is.

    Args:
        labels: `[N]` int64.
        class_labels: `[C]` int64, rising.
    """
    if not len(class_labels):
        return torch.zeros_like(labels), torch.zeros_like(labels, dtype=torch.bool)
    places = torch.searchsorted(class_labels, labels).clamp_max(len(class_labels) - 1)
    return places, class_labels[places] == labels


class _Sums(torch.autograd.Function):
    """Log-sums over all classes but the sample's own, and the similarity to that one."""

    @staticmethod
    def forward(
        ctx: Any, anchors: Tensor, proxies: Tensor, places: Tensor, is_here: Tensor, scale: float, normalises: bool
    ) -> tuple[Tensor, Tensor]:
        lowest = torch.finfo(anchors.dtype).min
        highest, sums = anchors.new_full((len(anchors),), lowest), anchors.new_zeros(len(anchors))
        targets = torch.zeros_like(sums)
        for first, _, similarities in _blocks(anchors, proxies, normalises):
            columns, is_inside = _columns(places - first, is_here, similarities)
            own = similarities.gather(1, columns)[:, 0]
            targets = torch.where(is_inside, own, targets)
            logits = _without_own(similarities.mul_(scale), columns, is_inside)
            top = torch.maximum(highest, logits.amax(1))
            sums = sums * torch.exp(highest - top) + logits.sub_(top[:, None]).exp_().sum(1)
            highest = top
        others = torch.where(sums == 0, torch.full_like(sums, lowest), highest + torch.log(sums))
        ctx.save_for_backward(anchors, proxies, places, is_here, others)
        ctx.scale, ctx.normalises = scale, normalises
        return others, targets

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_others: Tensor, of_targets: Tensor) -> tuple[Tensor | None, ...]:
        anchors, proxies, places, is_here, others = ctx.saved_tensors
        of_anchors, of_proxies = torch.zeros_like(anchors), torch.empty_like(proxies)
        weights = (of_others * ctx.scale)[:, None]
        for first, block, slopes in _blocks(anchors, proxies, ctx.normalises):
            columns, is_inside = _columns(places - first, is_here, slopes)
            slopes = _without_own(slopes.mul_(ctx.scale), columns, is_inside)
            slopes = slopes.sub_(others[:, None]).exp_().mul_(weights)
            own = torch.where(is_inside, of_targets, slopes.gather(1, columns)[:, 0])
            slopes.scatter_(1, columns, own[:, None])
            of_anchors.addmm_(slopes, block)
            part = of_proxies[first : first + len(block)]
            torch.mm(slopes.T, anchors, out=part)
            if ctx.normalises:
                norms = torch.linalg.vector_norm(proxies[first : first + len(block)], dim=1, keepdim=True)
                part.sub_(block * (part * block).sum(1, keepdim=True)).div_(norms.clamp_min(1e-12))
                part.masked_fill_(norms <= 1e-12, 0)
        return of_anchors, of_proxies, None, None, None, None


def class_sums(
    anchors: Tensor, proxies: Tensor, labels: Tensor, class_labels: Tensor, scale: float, normalises: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sums of `scale` times the products of samples with the proxies of some classes.

    Args:
        anchors: `[N, D]` as they are compared.
        proxies: `[C, D]` of the same dtype.
        labels: `[N]` int64.
        class_labels: `[C]` int64, rising.
        scale: from products to logits.
        normalises: whether proxies are scaled to unit norm.

    Returns:
        `[N]` the log-sum over all but the sample's class, the product with that one, and whether it is among them.
    """
    places, is_here = places_among(labels, class_labels)
    others, products = _Sums.apply(anchors, proxies, places, is_here, scale, normalises)
    return others, products, is_here


def _blocks(anchors: Tensor, proxies: Tensor, normalises: bool) -> Any:
    """Blocks of classes: the first of each, its proxies as they are compared, and the products of all samples with them."""
    cells = CELLS_CUDA if anchors.is_cuda else CELLS
    size = max(cells // max(len(anchors), 1), 1)
    buffer = anchors.new_empty(len(anchors) * min(size, len(proxies)))
    for first in range(0, len(proxies), size):
        block = proxies[first : first + size]
        if normalises:
            norms = torch.linalg.vector_norm(block, dim=1, keepdim=True)
            block = torch.where(norms <= 1e-12, torch.zeros_like(block), block / norms.clamp_min(1e-12))
        products = buffer[: len(anchors) * len(block)].view(len(anchors), len(block))
        yield first, block, torch.mm(anchors, block.T, out=products)


def _columns(places: Tensor, is_here: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
    """The column of each sample's class in a block, `[N, 1]`, and whether it has one there. No index comes from the host."""
    is_inside = is_here & (places >= 0) & (places < block.shape[1])
    return torch.where(is_inside, places, torch.zeros_like(places))[:, None], is_inside


def _without_own(logits: Tensor, columns: Tensor, is_inside: Tensor) -> Tensor:
    own = logits.gather(1, columns)[:, 0]
    return logits.scatter_(1, columns, torch.where(is_inside, -torch.inf, own)[:, None])
