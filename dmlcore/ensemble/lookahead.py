"""One step ahead: what a step on each loss would do for classes that took no part in it."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from dmlcore.ensemble.weighting import gradients_at
from dmlcore.losses import Comparison, compare, create

STEP = 0.1  # of the lookahead, relative to the map that takes it


class Ensemble(Protocol):
    """What is looked at of an ensemble. `LossEnsemble` says what each is."""

    weighting: Any
    columns: tuple[tuple[int, int] | None, ...] | None

    @property
    def members(self) -> list[Any]: ...
    @property
    def weights(self) -> Tensor: ...
    def terms_of(self, comparison: Comparison, *, advance: bool) -> Tensor: ...


def alignments(ensemble: Ensemble, embeddings: Tensor, labels: Tensor) -> Tensor:
    """How much a step on each loss helps classes it has not seen.

    A linear map behind the embedding (the identity, one per head) takes a step of relative length `STEP` on the weighted losses
    of some classes of the batch. There, the gradient of the validation loss on the batch's other classes is taken. The result
    is the cosine of that gradient with each loss's own gradient: minus the derivative of the validation loss by the loss's
    weight, up to a positive factor. A linear map behind a linear head is a linear head again, so the lookahead is one of the
    head; nothing further down is touched.

    Args:
        ensemble: its weighting gives `options.classes`, the fraction of the batch's classes held out, and `options.loss`, the
            validation loss. The classes are drawn by PyTorch's global generator.
        embeddings: `[B, W]` detached.
        labels: `[B]` int64; matrices of labels are not split.

    Returns:
        `[L]` in [-1, 1], float32; zeros where the batch has no two classes with two samples on either side.

    Source: the bilevel view of meta-learning, Finn, Abbeel, Levine, ICML 2017, eq. 1, and Ren et al., "Learning to Reweight
    Examples", ICML 2018, eq. 6-7; losses instead of examples, and the restriction to a linear map, are ours.
    """
    nothing = torch.zeros(len(ensemble.members), device=embeddings.device)
    options: Any = ensemble.weighting.options
    if labels.ndim != 1:
        return nothing
    classes, counts = labels.unique(return_counts=True)
    classes = classes[counts >= 2]
    held = round(options.classes * len(classes))
    if held < 2 or len(classes) - held < 2:
        return nothing
    order = torch.randperm(len(classes))
    away = torch.isin(labels, classes[order[:held].to(classes.device)])
    blocks = _blocks(ensemble, embeddings.shape[1])
    with torch.enable_grad():
        x = embeddings[~away].requires_grad_()
        gradients = gradients_at(x, ensemble.terms_of(compare(x, labels[~away]), advance=False))
    x = x.detach().float()
    by_loss = [[x[:, a:b].T @ g[:, a:b].float() for a, b in blocks] for g in gradients]  # [d, d] per head
    weights = ensemble.weights.tolist()
    unseen = embeddings[away].float()
    maps = []
    for k, (first, last) in enumerate(blocks):
        update = sum((w * parts[k] for w, parts in zip(weights, by_loss, strict=True)), start=torch.zeros_like(by_loss[0][k]))
        size = update.norm()
        eye = torch.eye(last - first, device=x.device)
        maps.append((eye - STEP * eye.norm() / size * update if size > 0 else eye).requires_grad_())
    judge = create(options.loss)
    with torch.enable_grad():
        heads = [unseen[:, a:b] @ m for (a, b), m in zip(blocks, maps, strict=True)]
        if len(blocks) > 1:
            lengths = _per_block(ensemble, blocks).sqrt()
            heads = [torch.nn.functional.normalize(head) * length for head, length in zip(heads, lengths, strict=True)]
        value = judge(torch.cat(heads, 1), labels[away])
        if not value.requires_grad:
            return nothing
        of_maps = torch.autograd.grad(value, maps)
    direction = torch.cat([part.flatten() for part in of_maps])
    own = torch.stack([torch.cat([part.flatten() for part in parts]) for parts in by_loss])  # [L, sum d d]
    cosines = torch.nn.functional.cosine_similarity(own, direction[None], dim=1, eps=1e-30)
    return torch.nan_to_num(cosines, 0.0, 0.0, 0.0).detach()


def _blocks(ensemble: Ensemble, width: int) -> list[tuple[int, int]]:
    """The columns of each head; one for a shared embedding."""
    if ensemble.columns is None:
        return [(0, width)]
    return sorted({span for span in ensemble.columns if span is not None})


def _per_block(ensemble: Ensemble, blocks: list[tuple[int, int]]) -> Tensor:
    """The share of each head in the concatenation: that of its losses."""
    assert ensemble.columns is not None
    shares = ensemble.weighting.importances
    return torch.stack([shares[[span == block for span in ensemble.columns]].sum() for block in blocks])
