"""Losses between samples and learnt vectors, one or several per class."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from dmlcore.config import check_range
from dmlcore.errors import ConfigError
from dmlcore.losses.comparison import Comparison
from dmlcore.losses.relations import check_range_of_labels, share_a_label
from dmlcore.losses.rows import RowLoss
from dmlcore.losses.sampling import ClassSampling
from dmlcore.losses.shards import ClassSums
from dmlcore.ranks import Group, Shard, sharding_group

DRAWN = 2**22
"""Numbers of a table that are drawn at a time where ranks divide it."""

VALUES = ("row_values", "dense_rows", "complete", "reduce", "reshaped", "value_of", "forward")
"""Methods that say what the values are."""


class ProxyLoss(RowLoss):
    """A loss between samples and one learnt vector per class, `proxies` `[C, D]`; labels are 0..C-1. A subclass may own several
    per class (`centres`), side by side: `[C * K, D]`.

    Ranks may divide the classes: then each has the proxies of its own only, and `dmlcore.distributed` gives the loss of all.

    Attributes:
        divides: how the classes of several ranks make one value. `sums`: each anchor's comes from sums over classes, by
            `class_sums`. `rows`: the rows are proxies, so each rank has rows of its own. None: they cannot be divided. A class
            that writes one of `VALUES` anew says it anew.
        shard: whose classes `proxies` are. None: there are those of all.
        sampling: which classes take part in training. None: all.

    Raises:
        ConfigError: `num_classes` or `embedding_dim` is missing or not positive. A label is outside 0..C-1. References,
            a relation or a label matrix are given.
    """

    needs_classes = True
    takes_references = False
    reshapes = True
    divides: ClassVar[Literal["sums", "rows"] | None] = None
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
        self.shard: Shard | None = None
        self.sampling: ClassSampling | None = None
        group = sharding_group()
        if group is not None and not self.why_not_divided:
            self.shard = Shard.of(self.num_classes, group)
            rows = self.shard.rows(self.centres)
            self.proxies = nn.Parameter(_drawn(self.num_classes * self.centres, int(embedding_dim), rows))
        else:
            self.proxies = nn.Parameter(torch.empty(num_classes * self.centres, embedding_dim))
            nn.init.kaiming_normal_(self.proxies, mode="fan_out")
        self.register_buffer("proxy_labels", self._labels(), persistent=False)

    def __init_subclass__(cls, **arguments: Any) -> None:
        """What ranks do with the classes is not inherited where the values are others: it would be wrong without a word."""
        super().__init_subclass__(**arguments)
        if "divides" not in vars(cls) and any(name in vars(cls) for name in VALUES):
            cls.divides = None

    @property
    def centres(self) -> int:
        """Proxies per class."""
        return 1

    @property
    def why_not_divided(self) -> str:
        """The reason ranks cannot divide the classes, or an empty string."""
        return "" if self.divides else f"'{self.name}' does not say how ranks could divide its classes"

    def class_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters with as many rows for each class, by their names: ranks divide them."""
        return {"proxies": self.proxies}

    @property
    def why_not_sampled(self) -> str:
        """The reason a loss cannot leave classes out, or an empty string."""
        return "" if self.divides else f"'{self.name}' does not say that classes could be left out"

    def sample_classes(self, fraction: float, seed: int = 0) -> None:
        """Let a part of the classes take part in each training batch: those of its samples, and others that are drawn.

        The value is then an estimate, and a biased one: the sum over the other classes is about `fraction` of the whole. So
        values of softmax losses are lower, by at most the logarithm of `1 / fraction`, and samples push other classes less.

        Args:
            fraction: chance of each class, in (0, 1]. 1: all take part.
            seed: of the draws, which depend on the labels of the batch too, and on nothing else.

        Raises:
            ConfigError: the loss cannot leave classes out.

        Source: An, Zhu, Gao et al., "Partial FC: Training 10 Million Identities on a Single Machine", ICCV workshops 2021.
            Deviation: each class is drawn for itself, so their number varies, but not with the number of processes.
        """
        check_range("sampled_classes", fraction, above=0, most=1)
        if self.why_not_sampled:
            raise ConfigError(f"{self.why_not_sampled}; leave sampled_classes out, or take another loss")
        self.sampling = None if fraction == 1 else ClassSampling(fraction, seed)

    def present(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The proxies that a batch is compared with, `[c * K, D]`, and their classes.

        Args:
            labels: `[B]` of the whole batch.
        """
        if self.sampling is None or not self.training:
            return self.proxies, self.proxy_labels
        classes = self.proxy_labels[:: self.centres]
        rows = self.sampling.drawn(classes, labels)
        table = self.proxies.unflatten(0, (len(classes), self.centres))
        return table.index_select(0, rows).flatten(0, 1), classes[rows].repeat_interleave(self.centres)

    def class_sums(self, comparison: Comparison) -> ClassSums:
        """What these classes give each anchor, where `divides` is `sums`.

        Args:
            comparison: of `reshaped`, with vectors of its `dtype`.
        """
        raise NotImplementedError(f"{type(self).__name__} divides sums, so it must write class_sums")

    def divide(self, group: Group) -> None:
        """Leave this rank its classes only. The parameters stay the same objects.

        Args:
            group: of the ranks, which all have the same parameters.

        Raises:
            ConfigError: the classes cannot be divided.
        """
        self.check_is_divisible()
        if self.shard is not None or group.size == 1:
            return
        self.shard = Shard.of(self.num_classes, group)
        with torch.no_grad():
            for parameter in self.class_parameters().values():
                rows = self.shard.rows(len(parameter) // self.num_classes)
                parameter.data = parameter.data[rows].clone()
                parameter.grad = None
        self.proxy_labels = self._labels().to(self.proxies.device)

    def check_is_divisible(self) -> None:
        """Raise where ranks cannot divide the classes.

        Raises:
            ConfigError: they cannot.
        """
        if self.why_not_divided:
            raise ConfigError(f"{self.why_not_divided}; leave shard_proxies out, or take another loss")

    def _labels(self) -> Tensor:
        """The class of each proxy that is here."""
        first, stop = (0, self.num_classes) if self.shard is None else (self.shard.first, self.shard.stop)
        return torch.arange(first, stop).repeat_interleave(self.centres)

    def check_is_whole(self) -> None:
        if self.shard is not None:
            raise ConfigError(f"{self.name} has some of its classes here only; call what dmlcore.distributed returned")

    def reshaped(self, comparison: Comparison) -> Comparison:
        """The samples against the proxies."""
        self.check(comparison)
        return Comparison(comparison.anchors, comparison.labels, *self.present(comparison.labels))

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


def _drawn(count: int, width: int, rows: slice) -> Tensor:
    """Some rows of the table `[count, width]` that `kaiming_normal_` would draw, to the bit, without the others in memory.

    PyTorch draws sixteen numbers at a time, so blocks whose length is a multiple of sixteen give what one call does.
    """
    deviation = math.sqrt(2) / math.sqrt(count)  # as `kaiming_normal_` with the number of rows for the fan
    size = max(DRAWN // width // 16, 1) * 16
    table = torch.empty(rows.stop - rows.start, width)
    first = 0
    while first < count:
        stop = first + size
        if count - stop < 16:  # fewer numbers than sixteen would be drawn in another way
            stop = count
        block = torch.empty(stop - first, width).normal_(0, deviation)
        start, end = max(first, rows.start), min(stop, rows.stop)
        if start < end:
            table[start - rows.start : end - rows.start] = block[start - first : end - first]
        first = stop
    return table
