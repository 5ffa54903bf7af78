"""Cross-entropy of a linear classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

import dmlcore
from dmlcore.config import check_range
from dmlcore.errors import ConfigError
from dmlcore.kernels import FunctorCall
from dmlcore.losses import Comparison, LossOptions, SoftmaxLoss, smoothing_of


class CrossEntropy(SoftmaxLoss):
    """Cross-entropy over `x . proxy_c (+ bias_c)` of the raw embeddings, mean over samples: a linear classifier whose weights
    are the proxies. Same value as `torch.nn.functional.cross_entropy(x @ proxies.T + bias, labels, label_smoothing=...)`. With
    `hidden` units the classifier sees `relu(layer(x))` instead of `x`, and `proxies` is `[C, hidden]`.

    `smoothing = "others"` smooths as the public code of the ensemble of losses does: `1 - e` for the target and `e / (C - 1)`
    for each other class. Theirs equals PyTorch's with `e C / (C - 1)`.

    The fused pass sees a bias as one more dimension, of which every sample has 1.

    Source: the softmax classifier; label smoothing: Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, "Rethinking the Inception
    Architecture for Computer Vision", CVPR 2016, section 7.
    """

    name = "cross_entropy"
    title = "Softmax cross-entropy with a linear classifier"
    paper = "label smoothing: Szegedy et al., CVPR 2016"
    aliases = ("CrossEntropyLoss", "softmax")
    needs_norms = True
    sees_features = True
    normalise = (False, False)
    reshapes = True
    divides = "sums"

    @dataclass(frozen=True, kw_only=True)
    class Options(LossOptions):
        """Options of `cross_entropy`."""

        bias: bool = False
        """Whether each class has a learnt bias, 0 at the start."""
        hidden: int = 0
        """Units of a ReLU layer between the embedding and the classifier; 0: none."""
        label_smoothing: float = 0.0
        """Share of the target spread evenly over classes, in [0, 1)."""
        smoothing: Literal["all", "others"] = "all"
        """Over which classes it is spread: all (`all`), or the `others` without the target."""

        def __post_init__(self) -> None:
            check_range("label_smoothing", self.label_smoothing, least=0, below=1)
            check_range("hidden", self.hidden, least=0)

    def __init__(
        self, options: Any = None, *, num_classes: int | None = None, embedding_dim: int | None = None, **options_by_name: Any
    ) -> None:
        hidden = (options.hidden if options is not None else options_by_name.get("hidden", 0)) if embedding_dim else 0
        super().__init__(options, num_classes=num_classes, embedding_dim=hidden or embedding_dim, **options_by_name)
        self.layer = nn.Linear(embedding_dim, hidden) if hidden and embedding_dim else None
        self.bias = nn.Parameter(torch.zeros(len(self.proxies))) if self.options.bias else None

    @property
    def why_not_divided(self) -> str:
        return "'cross_entropy' with hidden units cannot divide its classes among ranks" if self.options.hidden else ""

    def class_parameters(self) -> dict[str, nn.Parameter]:
        return super().class_parameters() | ({} if self.bias is None else {"bias": self.bias})

    @property
    def scale(self) -> float:
        return 1.0

    @property
    def label_smoothing(self) -> float:
        return smoothing_of(self.options.label_smoothing, self.options.smoothing, self.num_classes)

    def parameter_roles(self) -> dict[str, list[nn.Parameter]]:
        """The bias learns with the proxies, the hidden layer at the rate of the trunk."""
        hidden = [] if self.layer is None else list(self.layer.parameters())
        return {"proxies": [self.proxies, *([] if self.bias is None else [self.bias])], "scalars": hidden}

    def classifier_parameters(self) -> list[nn.Parameter]:
        return list(self.parameters())

    def reshaped(self, comparison: Comparison) -> Comparison:
        embeddings = comparison.anchors
        if self.layer is not None:
            if embeddings.shape[1] != self.layer.in_features:
                raise ConfigError(
                    f"{self.name} has a layer for {self.layer.in_features} dimensions, but embeddings have {embeddings.size(1)}"
                )
            embeddings = self.layer(embeddings.to(self.layer.weight.dtype)).relu()  # [B, hidden]
        comparison = super().reshaped(comparison._replace(anchors=embeddings))
        if self.bias is None:
            return comparison
        ones = embeddings.new_ones(len(embeddings), 1)
        assert comparison.references is not None and comparison.reference_labels is not None
        bias = self.bias
        if len(comparison.references) < len(bias):  # some classes are left out
            bias = bias.index_select(0, comparison.reference_labels - self.proxy_labels[0])
        return comparison._replace(
            anchors=torch.cat([comparison.anchors, ones], 1),  # [B, D + 1]
            references=torch.cat([comparison.references, bias[:, None]], 1),  # [C, D + 1]
        )

    def functor_call(self) -> FunctorCall:
        return FunctorCall("cross_entropy", (self.scale, self.label_smoothing))


@dmlcore.hookimpl
def dmlcore_losses() -> list[type]:
    return [CrossEntropy]
