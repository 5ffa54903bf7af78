"""What a further measure of embeddings is, beside the retrieval metrics that every run reports."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from dmlcore.config import build_options
from dmlcore.errors import ConfigError, PluginError


@dataclass(frozen=True, kw_only=True)
class MetricOptions:
    """A measure without options of its own."""


class Metric(ABC):
    """Base of everything `--metrics` can name. A plugin registers subclasses by the hook `dmlcore_metrics`.

    Args:
        options: an instance of `Options`, or None for the defaults.
        values: options by name instead of `options`.
    """

    name: ClassVar[str]
    Options: ClassVar[type] = MetricOptions
    takes_levels: ClassVar[bool] = False
    """Whether labels are `[N, L]`, from the finest level to the coarsest, where the data have several levels."""
    takes_roles: ClassVar[bool] = False
    """Whether `queries` and `references` are given by name too: int64 positions of the samples that ask, and of those among
    which answers are looked for. A sample may be both, and does not find itself. Other measures see all as one set."""
    takes_names: ClassVar[bool] = False
    """Whether `names` are given by name too: text of each sample, the path of its file, else its name in the data."""

    def __init__(self, options: Any = None, **values: Any) -> None:
        if options is not None and values:
            raise ConfigError(f"{self.name}: give either an Options object or options by name, not both")
        self.options: Any = options if options is not None else build_options(self.Options, values, self.name)

    def check_names(self, parts: Mapping[str, Sequence[str]]) -> None:  # noqa: B027  a measure need not refuse
        """Refuse data of which nothing can be measured, before anything is computed. Asked where it `takes_names`.

        Args:
            parts: names of the samples of each part that will be measured.

        Raises:
            DataError: it cannot measure any of them.
        """

    def curves(self, embeddings: Tensor, labels: Tensor) -> dict[str, dict[str, Sequence[float]]]:
        """Curves behind the numbers, for a table or a picture. Most measures have none.

        Args:
            embeddings: as for the call.
            labels: as for the call. What else is given by name is the same too.

        Returns:
            Curves by name: columns of equal length by name, the horizontal axis first.
        """
        return {}

    @abstractmethod
    def __call__(self, embeddings: Tensor, labels: Tensor) -> dict[str, float]:
        """Measures of one part of the data.

        Args:
            embeddings: `[N, D]` float32, without gradients, on the model's device, as the model serves them.
            labels: `[N]` int64, on the same device, or `[N, L]` with `takes_levels`.

        Returns:
            Numbers by name; NaN where one is not defined.
        """


class Embedded(NamedTuple):
    """A part of the data, as measures are given it.

    Attributes:
        embeddings: [N, D].
        labels: int64 [N].
        levels: labels [N, L] where the data have several levels.
        roles: int64 positions of queries and of references. None: all are both.
        names: of the samples, where they have any.
    """

    embeddings: Tensor
    labels: Tensor
    levels: Tensor | None = None
    roles: tuple[Tensor, Tensor] | None = None
    names: Sequence[str] = ()

    def given_to(self, metric: Metric) -> tuple[tuple[Tensor, Tensor], dict[str, Any]]:
        """What a measure takes of it, by place and by name."""
        labels = self.levels if metric.takes_levels and self.levels is not None else self.labels
        asked: dict[str, Any] = {"names": self.names} if metric.takes_names else {}
        if metric.takes_roles:
            everyone = torch.arange(len(self.labels))
            sides = (part.to(self.labels.device) for part in self.roles or (everyone, everyone))
            asked |= dict(zip(("queries", "references"), sides, strict=True))
        return (self.embeddings, labels), asked


def further(metrics: Iterable[Metric], part: Embedded) -> dict[str, float | None]:
    """What further measures say of a part, by `METRIC.name`; None for a number that is not finite.

    Raises:
        PluginError: one gives something else than numbers by name.
    """
    results: dict[str, float | None] = {}
    for metric in metrics:
        placed, asked = part.given_to(metric)
        values = metric(*placed, **asked)
        try:
            numbers = {str(name): float(value) for name, value in values.items()}
        except (AttributeError, TypeError, ValueError):
            raise PluginError(f"the metric '{metric.name}' gave {values!r:.80}, but must give numbers by name") from None
        results |= {f"{metric.name}.{name}": value if math.isfinite(value) else None for name, value in numbers.items()}
    return results


def has_curves(metric: Metric) -> bool:
    """Whether a measure has curves."""
    return type(metric).curves is not Metric.curves


def curves_of(metrics: Iterable[Metric], part: Embedded) -> dict[str, dict[str, Sequence[float]]]:
    """The curves of measures of a part, by `METRIC.name`: columns by name.

    Raises:
        PluginError: one gives something else than columns of equal length.
    """
    results: dict[str, dict[str, Sequence[float]]] = {}
    for metric in filter(has_curves, metrics):
        placed, asked = part.given_to(metric)
        for name, columns in metric.curves(*placed, **asked).items():
            if len(columns) < 2 or len({len(column) for column in columns.values()}) > 1:
                raise PluginError(f"the curve '{name}' of the metric '{metric.name}' needs two columns or more of equal length")
            results[f"{metric.name}.{name}"] = columns
    return results
