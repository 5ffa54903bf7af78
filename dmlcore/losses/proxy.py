"""Losses between samples and learnt vectors, one or several per class."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from dmlcore.errors import ConfigError
from dmlcore.losses.comparison import Comparison
from dmlcore.losses.relations import check_range_of_labels, share_a_label
from dmlcore.losses.rows import RowLoss


class ProxyLoss(RowLoss):
    """A loss between samples and one learnt vector per class, `proxies` `[C, D]`; labels are 0..C-1. A subclass may own several
    per class (`centres`), side by side: `[C * K, D]`.

    Raises:
        ConfigError: `num_classes` or `embedding_dim` is missing or not positive. A label is outside 0..C-1. References,
            a relation or a label matrix are given.
    """

    needs_classes = True
    takes_references = False
    reshapes = True
    proxy_labels: Tensor

    def __init__(
        self,
        options: Any = None,
        *,
        num_classes: int | None = None,
        embedding_dim: int | None = None,
        **options_by_name: Any,
    ) -> None:
        super().__init__(options, **options_by_name)
        for noun, number in (("num_classes", num_classes), ("embedding_dim", embedding_dim)):
            if not isinstance(number, Integral) or number < 1:
                raise ConfigError(f"{self.name} owns a proxy per class and needs {noun} >= 1, got {number!r}")
        assert num_classes is not None and embedding_dim is not None
        self.num_classes = int(num_classes)
        self.proxies = nn.Parameter(torch.empty(num_classes * self.centres, embedding_dim))
        self.register_buffer("proxy_labels", torch.arange(num_classes).repeat_interleave(self.centres), persistent=False)
        nn.init.kaiming_normal_(self.proxies, mode="fan_out")

    @property
    def centres(self) -> int:
        """Proxies per class."""
        return 1

    def reshaped(self, comparison: Comparison) -> Comparison:
        """The samples against the proxies."""
        self.check(comparison)
        return Comparison(comparison.anchors, comparison.labels, self.proxies, self.proxy_labels)

    def check(self, comparison: Comparison) -> None:
        """Raise for what proxies cannot be compared with, a wrong width, and labels without a proxy."""
        embeddings, labels = comparison.anchors, comparison.labels
        if comparison.relation is not None and comparison.relation is not share_a_label:
            raise ConfigError(f"{self.name} compares samples with its own proxies; it takes no relation between samples")
        if comparison.own is not None:
            raise ConfigError(f"{self.name} compares with its own proxies; it takes no references, and so no own")
        if comparison.references is not None:
            raise ConfigError(f"{self.name} compares with its own proxies; it takes no references")
        if labels.ndim != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
            raise ConfigError(
                f"{self.name} owns a proxy per class and needs one label 0..{self.num_classes - 1} per sample;"
                f" it takes no label matrix"
            )
        if embeddings.device != self.proxies.device:
            raise ConfigError(
                f"{self.name} has its proxies on {self.proxies.device}, but embeddings are on {embeddings.device}; move the"
                " loss there by .to(...)"
            )
        if embeddings.shape[1] != self.proxies.shape[1]:
            raise ConfigError(
                f"{self.name} has proxies of {self.proxies.shape[1]} dimensions, but embeddings have {embeddings.shape[1]}"
            )
        check_range_of_labels(labels, self.num_classes, f"{self.name} has proxies")
