"""How long each part of the protocol may train: the paper's budget, and one that suits a processor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dmlcore.config import check_range


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Lengths, rates and sizes of training. The defaults suit a processor; `PRESETS["paper"]` are the paper's."""

    epochs: int = 60
    """Most epochs over the source samples, of classifiers and embeddings."""
    target_epochs: int = 200
    """Most epochs over the k x n target samples: from scratch, transferred or adapted."""
    patience: int = 20
    """Epochs after which training stops: on the source without a better score, on the target unless it rose by 1 %."""
    episodes: int = 300
    """Most episodes of prototypical networks, on the source and in adaptation."""
    episode_patience: int = 100
    """The same of prototypical networks, in episodes."""
    episode_check: int = 20
    """Episodes between two scores."""
    episode_support: int = 20
    """Most support samples of a class in a source episode, else k; 0: no bound. A bound lets all larger k share a model."""
    episode_queries: int = 5
    """Most query samples of a class in a source episode; 0: all that are left."""
    batch: int = 128
    """Samples of a batch of classifiers; of embeddings batch / classes per class, at least 2."""
    learning_rate: float = 0.005
    """Adam's rate for classifiers and embeddings."""
    prototype_rate: float = 0.001
    """Adam's rate for prototypical networks; of presets for a processor 0.0001 on features, the paper's."""
    validation_share: float = 0.25
    """Share of a source class's samples that choose the source model, in (0, 1)."""
    source_samples: int = 0
    """Samples kept of each source class; 0: all."""
    test_samples: int = 0
    """Test samples kept of each target class; 0: all."""

    def __post_init__(self) -> None:
        for name in ("epochs", "target_epochs", "patience", "episodes", "episode_patience", "episode_check"):
            check_range(name, getattr(self, name), least=1)
        for name in ("episode_support", "episode_queries", "source_samples", "test_samples"):
            check_range(name, getattr(self, name), least=0)
        check_range("batch", self.batch, least=2)
        check_range("learning_rate", self.learning_rate, above=0)
        check_range("prototype_rate", self.prototype_rate, above=0)
        check_range("validation_share", self.validation_share, above=0, below=1)
        if 0 < self.source_samples < 4:
            check_range("source_samples", self.source_samples, least=4)


PRESETS: dict[str, dict[str, Any]] = {
    "cpu": {},
    "paper": {
        "epochs": 1000,
        "target_epochs": 1000,
        "patience": 50,
        "episodes": 10_000,
        "episode_patience": 4000,
        "episode_check": 200,
        "episode_support": 0,
        "episode_queries": 0,
        "batch": 1024,
        "prototype_rate": 1e-4,
    },
    "quick": {
        "epochs": 8,
        "target_epochs": 20,
        "patience": 4,
        "episodes": 20,
        "episode_patience": 10,
        "episode_check": 5,
        "episode_support": 5,
        "source_samples": 100,
        "test_samples": 100,
    },
}
"""What differs from the defaults."""


FEATURES = {"prototype_rate": 1e-4}
"""What differs for tables of features, but for the paper's preset: networks on pictures learn too little at this rate in few
episodes, and on features source validation is as good and the network stays nearer to where it began."""


def budget_of(preset: str, values: dict[str, Any], kind: str = "images") -> Budget:
    """A preset with some values replaced.

    Args:
        preset: a name in `PRESETS`.
        values: by name.
        kind: of the data, `images` or `features`.

    Raises:
        ConfigError: a value out of range.
    """
    of_kind = FEATURES if kind == "features" and preset != "paper" else {}
    return Budget(**{**of_kind, **PRESETS[preset], **values})
