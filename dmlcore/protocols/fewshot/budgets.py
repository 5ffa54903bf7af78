"""How long each part of the protocol may train: the paper's budget, and one that suits a processor."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from dmlcore import plugins
from dmlcore.config import check_range
from dmlcore.errors import ConfigError, suggestion


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Lengths, rates and sizes of training. The defaults suit a processor; `PRESETS[PAPER]` are the paper's."""

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
    classifier_batch: int = 0
    """Samples of a batch of classifiers; 0: `batch`."""
    classifier_patience: int = 0
    """Epochs after which classifiers stop; 0: `patience`."""
    validation_prototypes: int = 20
    """Training samples of a source class behind the prototypes that validation samples are compared with; 0: all."""

    def __post_init__(self) -> None:
        for name in ("epochs", "target_epochs", "patience", "episodes", "episode_patience", "episode_check"):
            check_range(name, getattr(self, name), least=1)
        for name in ("episode_support", "episode_queries", "source_samples", "test_samples", *LATER):
            check_range(name, getattr(self, name), least=0)
        check_range("batch", self.batch, least=2)
        check_range("learning_rate", self.learning_rate, above=0)
        check_range("prototype_rate", self.prototype_rate, above=0)
        check_range("validation_share", self.validation_share, above=0, below=1)
        if 0 < self.source_samples < 4:
            check_range("source_samples", self.source_samples, least=4)
        if self.classifier_batch:
            check_range("classifier_batch", self.classifier_batch, least=2)

    def values(self) -> dict[str, Any]:
        """By name, as the settings of a cell have them. Fields that cells of earlier versions lack are left out where they mean
        what those did, so that their results stay those of the same settings."""
        values = asdict(self)
        return {name: value for name, value in values.items() if name not in LATER or value != LATER[name]}


LATER = {"classifier_batch": 0, "classifier_patience": 0, "validation_prototypes": 20}
"""Fields that were added after the first results, and what the absence of each means."""

PAPER = "paper"
PRESETS: dict[str, dict[str, Any]] = {
    "cpu": {},
    PAPER: {
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
        "validation_prototypes": 0,
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


def budget_of(preset: str, values: dict[str, Any], kind: str = "images", data: str = "") -> Budget:
    """A preset with some values replaced.

    Args:
        preset: a name in `PRESETS`, or `paper/DATA`: the paper's for a data set that it has.
        values: by name.
        kind: of the data, `images` or `features`.
        data: name of the source of the data. `paper` means the paper's budget for it, where there is one.

    Raises:
        ConfigError: an unknown preset, a value out of range.
    """
    name, _, data_set = preset.partition("/")
    of_data_sets: dict[str, dict[str, Any]] = plugins.defaults().PAPER_BUDGETS
    if name not in PRESETS or (data_set and (name != PAPER or data_set not in of_data_sets)):
        names = [*PRESETS, *(f"{PAPER}/{set_name}" for set_name in of_data_sets)]
        raise ConfigError(f"--budget must be one of {', '.join(names)}, got '{preset}'.{suggestion(preset, names)}")
    of_kind = FEATURES if kind == "features" and name != PAPER else {}
    of_data = of_data_sets.get(data_set or data, {}) if name == PAPER else {}
    return Budget(**{**of_kind, **PRESETS[name], **of_data, **values})
