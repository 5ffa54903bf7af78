"""What is particular to a sample: its view against a memory of others, by noise contrastive estimation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import Tensor
from torch.nn import functional

import dmlcore
from dmlcore.config import check_range
from dmlcore.errors import ConfigError
from dmlcore.losses import Comparison, Loss, LossOptions, compare, masked_logsumexp, unit
from dmlcore.losses.base import Against
from dmlcore.losses.draws import log_inverse_density


class SampleSpecific(Loss):
    """`-log(exp(s_k / t) / (exp(s_k / t) + sum_n exp(w_n s_n / t)))`, mean over samples. `s_k` is the cosine of a sample with
    its key, and `s_n` that with the keys of a memory.

    The key of a sample is the embedding of another view of it, by a copy of the model that follows slowly. The memory holds the
    keys of the last batches. While it is empty, the keys of the other samples of the batch take its place. Labels are not used.
    Whoever calls the loss brings the keys: `loss(x, labels, keys=...)`. Training makes them from a second view of each sample.
    Without keys a sample is its own key, and the memory stays as it is.

    With `weighted` the weight `w_n` of an entry is the inverse of the density of its distance on the sphere, for distances of
    `cutoff` at least, and nearly 0 beyond `nonzero_loss_cutoff`. For each entry the weights add up to 1 over the samples of the
    batch. So an entry counts for the samples that it is near to. Without it the loss is that of momentum contrast (MoCo).

    Source: Milbich, Roth, Bharadhwaj, Sinha, Bengio, Ommer, Cohen, "DiVA: Diverse Visual Feature Aggregation for Deep Metric
    Learning", ECCV 2020, section 3.2, sample-specific features, with the weights of the authors' code; He, Fan, Wu, Xie,
    Girshick, "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020. Deviation: the authors fill the
    memory before training.
    """

    name = "sample_specific"
    title = "Sample-specific loss of DiVA"
    paper = "Milbich et al., ECCV 2020"
    takes_references = False
    holds_constants = True  # keys and weights

    @dataclass(frozen=True, kw_only=True)
    class Options(LossOptions):
        """Options of `sample_specific`."""

        temperature: float = 0.1
        """Of the softmax, > 0. The recipes of the authors take 0.01."""
        memory: int = 4096
        """Keys of earlier batches that a batch is compared with, >= 0; 0: those of the other samples of the batch."""
        momentum: float = 0.9
        """Share of itself that the copy of the model keeps at each step, in [0, 1)."""
        weighted: bool = True
        """Weigh the keys of the memory by their distance."""
        cutoff: float = 0.5
        """Distance below which all weights are the same, in (0, 2)."""
        nonzero_loss_cutoff: float = 1.4
        """Distance beyond which a key hardly counts, in (0, 2]."""

        def __post_init__(self) -> None:
            check_range("temperature", self.temperature, above=0)
            check_range("memory", self.memory, least=0, most=2**31)
            check_range("momentum", self.momentum, least=0, below=1)
            check_range("cutoff", self.cutoff, above=0, below=2)
            check_range("nonzero_loss_cutoff", self.nonzero_loss_cutoff, above=0, most=2)

    entries: Tensor

    def __init__(self, options: Any = None, **options_by_name: Any) -> None:
        super().__init__(options, **options_by_name)
        self.register_buffer("entries", torch.zeros(0, 0))

    @property
    def key_momentum(self) -> float:
        return self.options.momentum

    def value_of(self, comparison: Comparison) -> Tensor:
        value = self._reduced(comparison)
        if self.training and comparison.keys is not None:
            self._store(comparison.keys.detach())
        return value

    def reference(self, embeddings: Tensor, labels: Tensor, **against: Unpack[Against]) -> Tensor:
        return self._reduced(compare(embeddings, labels, **against))

    def _reduced(self, comparison: Comparison) -> Tensor:
        with torch.autocast(comparison.anchors.device.type, enabled=False):
            values = self.values(comparison.in_dtype())
        if self.options.reduction == "none":
            return values
        return values.sum() if self.options.reduction == "sum" else values.sum() / max(len(values), 1)

    def values(self, comparison: Comparison) -> Tensor:
        """`[B]` a value of each sample."""
        samples = unit(comparison.anchors)  # [B, D]
        keys = unit((comparison.anchors if comparison.keys is None else comparison.keys).detach().to(samples))
        others = self.entries.to(samples)
        is_there = torch.ones(len(samples), len(others), dtype=torch.bool, device=samples.device)
        if not len(others):
            others, is_there = keys, ~torch.eye(len(keys), dtype=torch.bool, device=samples.device)
        elif others.shape[1] != samples.shape[1]:
            raise ConfigError(f"the memory of {self.name} has keys of {others.shape[1]} numbers, got {samples.shape[1]}")
        similarities = samples @ others.T  # [B, M]
        if self.options.weighted:
            similarities = similarities * self.weights(similarities.detach(), is_there, samples.shape[1])
        positive = (samples * keys).sum(1)  # [B]
        negatives = masked_logsumexp(similarities / self.options.temperature, is_there)  # [B]
        # log(1 + exp(n - p)), which keeps the digits of a small value
        return functional.softplus(negatives - positive / self.options.temperature)

    def weights(self, similarities: Tensor, is_there: Tensor, width: int) -> Tensor:
        """What similarities are multiplied by, `[B, M]`. The sum over the samples of the batch is 1 for each entry."""
        if not len(similarities):
            return similarities
        d = (2 - 2 * similarities).clamp_min(0).sqrt()
        near = is_there & (d <= self.options.nonzero_loss_cutoff)
        # an entry that is far from all counts for all alike, as in the authors' code, where no weight is quite 0
        candidates = torch.where(near.any(0), near, is_there | ~is_there.any(0))
        logs = torch.where(near.any(0), log_inverse_density(d, width, self.options.cutoff), torch.zeros_like(d).double())
        return torch.where(candidates, logs, -torch.inf).softmax(0).to(similarities)

    @torch.no_grad()
    def _store(self, keys: Tensor) -> None:
        """Take keys into the memory, where they replace the oldest ones. One that is not finite is left out."""
        if not self.options.memory:
            return
        keys = unit(keys[torch.isfinite(keys).all(1)].to(self.entries.dtype))
        before = self.entries if len(self.entries) else keys[:0]
        self.entries = torch.cat([before, keys])[-self.options.memory :]

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        entries = state_dict.get(f"{prefix}entries")
        if isinstance(entries, Tensor):  # as many as there were
            self.entries = self.entries.new_zeros(entries.shape)
        super()._load_from_state_dict(state_dict, prefix, *arguments)


@dmlcore.hookimpl
def dmlcore_losses() -> list[type]:
    return [SampleSpecific]
