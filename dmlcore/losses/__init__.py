"""Losses: base classes, creation by name. The built-in losses are plugins in `dmlcore_plugins.losses`."""

from __future__ import annotations

from typing import Any

from dmlcore.config import build_options
from dmlcore.errors import ConfigError
from dmlcore.losses.base import Loss, LossOptions
from dmlcore.losses.comparison import Comparison, compare
from dmlcore.losses.distances import (
    Distance,
    check_margin,
    cosine_similarities,
    distances,
    dot_products,
    euclidean_distances,
    in_pieces,
    listed_positives,
    masked_logsumexp,
    squared_euclidean_distances,
    unit,
)
from dmlcore.losses.memory import CrossBatchMemory
from dmlcore.losses.mining import (
    Compared,
    Extremes,
    Measure,
    Miner,
    MinerOptions,
    SeededMiner,
    SeededOptions,
    WindowMiner,
    Windows,
    build_miner,
    slack,
)
from dmlcore.losses.norms import NormLoss
from dmlcore.losses.pair import PairLoss, PairOptions
from dmlcore.losses.path import Rows
from dmlcore.losses.proxy import ProxyLoss
from dmlcore.losses.rows import RowLoss
from dmlcore.losses.shards import ClassSums
from dmlcore.losses.softmax import CentresLoss, SoftmaxLoss, smoothing_of, widened_cosines

__all__ = [
    "CentresLoss",
    "ClassSums",
    "Compared",
    "Comparison",
    "CrossBatchMemory",
    "Distance",
    "Extremes",
    "Loss",
    "LossOptions",
    "Measure",
    "Miner",
    "MinerOptions",
    "NormLoss",
    "PairLoss",
    "PairOptions",
    "ProxyLoss",
    "RowLoss",
    "Rows",
    "SeededMiner",
    "SeededOptions",
    "SoftmaxLoss",
    "WindowMiner",
    "Windows",
    "build_miner",
    "check_margin",
    "compare",
    "cosine_similarities",
    "create",
    "distances",
    "dot_products",
    "euclidean_distances",
    "in_pieces",
    "listed_positives",
    "masked_logsumexp",
    "names",
    "slack",
    "smoothing_of",
    "squared_euclidean_distances",
    "unit",
    "widened_cosines",
]


def names() -> list[str]:
    """The names of all installed losses."""
    from dmlcore.plugins import registry

    return list(registry("loss"))


def create(name: str, *, num_classes: int | None = None, embedding_dim: int | None = None, **options: Any) -> Loss:
    """A loss by its name.

    Args:
        name: as listed by `names()` or `dmlcore plugins`, or a file: `./my_loss.py:MyLoss`.
        num_classes, embedding_dim: for losses that own proxies, or a number per class.
        options: the loss's options by name; strings are converted, so `epsilon="none"` works. `miner` may be a `Miner`.

    Raises:
        ConfigError: unknown name or option (with the nearest one), value out of range, missing number of classes.
    """
    from dmlcore.plugins import find

    component = find("loss", name).component
    miner = options.pop("miner") if isinstance(options.get("miner"), Miner) else None
    if miner is not None:
        loss = create(name, num_classes=num_classes, embedding_dim=embedding_dim, **options)
        use_miner = getattr(loss, "use_miner", None)
        if not callable(use_miner):
            raise ConfigError(f"{name} takes no miner: it does not compare samples with samples")
        use_miner(miner)
        return loss
    name = component.name
    built = build_options(component.Options, options, name)
    if not component.needs_classes:
        return component(built, num_classes=num_classes) if component.uses_classes else component(built)
    if num_classes is None or embedding_dim is None:
        raise ConfigError(f"{name} owns a proxy per class: create it with num_classes= and embedding_dim=")
    return component(built, num_classes=num_classes, embedding_dim=embedding_dim)
