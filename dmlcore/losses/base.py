"""What every loss is: a name, options, and a value from embeddings and labels. Losses that are defined by rows of similarities
stand in `rows.py`."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypedDict, Unpack

import torch
from torch import Tensor, nn

from dmlcore.config import build_options
from dmlcore.errors import ConfigError
from dmlcore.losses.comparison import Comparison, compare
from dmlcore.losses.relations import Relation
from dmlcore.ranks import Shard, refuse_alone


class Against(TypedDict, total=False):
    """What a call may name beside embeddings and labels. `Loss.forward` says what each is."""

    references: Tensor | None
    reference_labels: Tensor | None
    own: Tensor | None
    relation: Relation | Tensor | None
    keys: Tensor | None


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """Options every loss has."""

    reduction: Literal["default", "mean", "sum", "none"] = "default"
    """How the anchors' values become one number: `default` as the loss defines it, `mean` over all anchors, `sum`, or `none`
    for one value per anchor."""


class Loss(nn.Module, abc.ABC):
    """A metric learning loss. Subclasses set `name` and `Options`. Most are a `PairLoss` or a `ProxyLoss`.

    A subclass of this class itself writes `forward`, or `value_of`, which gets the checked comparison.

    Args:
        options: an instance of `Options`, or None for the defaults.
        num_classes, embedding_dim: for losses that own proxies (`needs_classes`). Others ignore them.
        options_by_name: options by name instead of `options`.

    Raises:
        ConfigError: an unknown option, a value out of range, or a class that defines no value.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    """The full name, as in `Multi-Similarity loss`."""
    paper: ClassVar[str]
    """Who published it where, as in `Wang et al., CVPR 2019`."""
    aliases: ClassVar[tuple[str, ...]]
    """Further names it is found by, those of other libraries among them."""
    Options: ClassVar[type] = LossOptions
    needs_classes: ClassVar[bool] = False
    uses_classes: ClassVar[bool] = False
    """Whether `create` hands on `num_classes` where it is known, to a loss that does not always need it."""
    needs_norms: ClassVar[bool] = False
    takes_references: ClassVar[bool] = True
    """Whether it compares samples with samples. Other losses refuse references. An ensemble calls those without any."""
    by_rows: ClassVar[bool] = False
    """Whether it is a `RowLoss` whose value comes from its rows, so that it can share a pass. False: `forward` is called."""
    sees_features: ClassVar[bool] = False
    """Whether it learns from the trunk's features instead of an embedding where `classifier = features` asks for it."""
    holds_constants: ClassVar[bool] = False
    """Whether it takes numbers that depend on the embeddings as constants, so that its gradient is not that of its value."""
    searched: ClassVar[dict[str, tuple[Any, ...]]] = {}
    """What a search for the members of an ensemble tries: an option's name and its values, the default first."""

    shard: Shard | None = None
    """Which of its classes this rank has, where ranks divide them. None: all."""

    def __init__(
        self,
        options: Any = None,
        *,
        num_classes: int | None = None,
        embedding_dim: int | None = None,
        **options_by_name: Any,
    ) -> None:
        super().__init__()
        if type(self).forward is Loss.forward and type(self).value_of is Loss.value_of:
            raise ConfigError(f"the loss class {type(self).__qualname__} writes neither `forward` nor `value_of`; write one")
        if options is not None and options_by_name:
            raise ConfigError(f"{self.name}: give either an Options object or options by name, not both")
        self.options: Any = options if options is not None else build_options(self.Options, options_by_name, self.name)

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        references: Tensor | None = None,
        reference_labels: Tensor | None = None,
        own: Tensor | None = None,
        relation: Relation | Tensor | None = None,
        keys: Tensor | None = None,
    ) -> Tensor:
        """The loss.

        Args:
            embeddings: `[B, D]` floating point, raw. The loss normalises when its definition does.
            labels: `[B]` int64, positives have equal ones. Or a binary matrix `[B, L]`, positives share at least one label.
            references: `[N, D]` to compare with instead of the batch itself. Gradients flow to both.
            reference_labels: `[N]` int64, or `[N, L]` beside a matrix.
            own: `[B]` int64, which reference is the sample itself (-1: none) and so no pair. Needs references.
            relation: which pairs are positives, where `labels` does not say: a matrix `[B, L]` as above, used instead of
                labels, or a function of two blocks of labels that returns a bool matrix `[a, b]`. Labels may then be any
                tensors whose first dimension counts samples. The function is called block by block.
            keys: `[B, D]` embeddings of another view of each sample, for a loss with a `key_momentum`. Others do not look at
                them. No gradient flows to them.

        Returns:
            Scalar (or `[B]` for `reduction = "none"`).
        """
        if references is None and self.training and torch.is_grad_enabled() and getattr(embeddings, "requires_grad", False):
            refuse_alone(f"the loss '{self.name}'")
        return self.value_of(
            compare(
                embeddings,
                labels,
                references=references,
                reference_labels=reference_labels,
                own=own,
                relation=relation,
                keys=keys,
            )
        )

    def reference(self, embeddings: Tensor, labels: Tensor, **against: Unpack[Against]) -> Tensor:
        """The definition in plain PyTorch: differentiable, any dtype and device, no extension. Arguments as `forward`."""
        return self.forward(embeddings, labels, **against)

    def value_of(self, comparison: Comparison) -> Tensor:
        """The loss of a comparison; what `forward` calls after its checks.

        Returns:
            Scalar (or `[B]` for `reduction = "none"`).
        """
        raise NotImplementedError(f"{type(self).__name__} writes neither forward nor value_of")

    @property
    def is_fused(self) -> bool:
        """Whether `forward` runs in the fused pass: on the CPU, and on CUDA devices where `kernels.info` finds kernels for
        them, float64 excepted there."""
        return not self.why_not_fused

    @property
    def why_not_fused(self) -> str:
        """The reason `forward` runs in plain PyTorch, or an empty string."""
        return f"'{self.name}' has no fused form"

    def check_is_whole(self) -> None:
        """Raise where this process has a part of the loss only.

        Raises:
            ConfigError: it has.
        """

    @classmethod
    def reads_norms(cls, options: Any) -> bool:
        """Whether, with these options, embeddings must not be normalised before."""
        return cls.needs_norms

    @classmethod
    def least_samples(cls, options: Any) -> int:
        """How many samples of a class a batch must have for it to learn anything, with these options."""
        return 1

    @classmethod
    def least_classes(cls, options: Any) -> int:
        """How many classes a batch must have for it to learn anything, with these options."""
        return 1

    @property
    def key_momentum(self) -> float | None:
        """How slowly the copy of the model follows that makes keys for it, embeddings of a second view of each sample: the
        share of itself that the copy keeps at each step, in [0, 1). None: it takes no keys."""
        return None

    def parameter_roles(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by the optimiser group they belong to: `proxies`, `scalars`."""
        proxies = getattr(self, "proxies", None)
        scalars = [parameter for parameter in self.parameters() if parameter is not proxies]
        return {"proxies": [proxies] if isinstance(proxies, nn.Parameter) else [], "scalars": scalars}

    def classifier_parameters(self) -> list[nn.Parameter]:
        """Parameters that are a classifier, among those of `parameter_roles`: they may have a rate and a decay of their own."""
        return []

    def extra_repr(self) -> str:
        return f"{self.options}, {'fused' if self.is_fused else 'plain: ' + self.why_not_fused}"
