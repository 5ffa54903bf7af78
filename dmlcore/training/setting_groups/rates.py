"""Settings of the parts of what is trained: the rate and the decay of each, and what stays frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dmlcore.config import check_range
from dmlcore.training.setting_groups.fields import check_each

ONCE_OF_OPTIMISER = ("head_factor", "proxies_factor", "scalars_factor", "weights_factor", "freeze")
"""Settings that stood in the table `optimiser` of older files."""


@dataclass(frozen=True)
class RateSettings:
    """Rates, decay and freezing of trunk, head, proxies, classifiers, scalars and ensemble weights."""

    head_factor: float = 1.0
    """Learning rate of the embedding head, relative to the trunk's."""
    proxies_factor: float = 20.0
    """Learning rate of proxies, relative to the trunk's."""
    classifier_factor: float | None = None
    """Learning rate of the classifiers inside losses, such as that of `cross_entropy`, relative to the trunk's (default: that
    of proxies)."""
    scalars_factor: float = 1.0
    """Learning rate of learnable numbers inside losses, relative to the trunk's."""
    weights_factor: float = 1.0
    """Learning rate of learnable ensemble weights, relative to the trunk's."""
    layer_decay: float = 1.0
    """Factor on the learning rate from each stage of the trunk to the one before it; 1: all learn alike."""
    trunk_warmup: int = 0
    """Steps over which the trunk's learning rate rises beside `warmup`, counted from the end of `freeze`."""
    head_warmup: int = 0
    """Steps over which the head's learning rate rises beside `warmup`."""
    proxies_warmup: int = 0
    """Steps over which the learning rate of proxies rises beside `warmup`."""
    classifier_warmup: int | None = None
    """Steps over which the learning rate of the classifiers inside losses rises beside `warmup` (default: those of proxies)."""
    scalars_warmup: int = 0
    """Steps over which the learning rate of learnable numbers inside losses rises beside `warmup`."""
    weights_warmup: int = 0
    """Steps over which the learning rate of ensemble weights rises beside `warmup`."""
    head_decay: float | None = None
    """Decay of the embedding head (default: `weight_decay`)."""
    proxies_decay: float | None = None
    """Decay of proxies (default: 0)."""
    classifier_decay: float | None = None
    """Decay of the classifiers inside losses (default: that of proxies)."""
    scalars_decay: float | None = None
    """Decay of learnable numbers inside losses (default: 0)."""
    weights_decay: float | None = None
    """Decay of learnable ensemble weights (default: 0)."""
    decay_vectors: bool = True
    """Whether what is no matrix decays in the trunk and the head: biases, and the weights of normalisation."""
    freeze: int = 0
    """Steps at the beginning in which the trunk is not trained."""
    freeze_norm: Literal["none", "statistics", "all"] = "none"
    """What stays as it was in the trunk's BatchNorm layers: `statistics`, the running means that are then used in training too,
    or `all`, their weights as well."""
    trainable_stages: int | None = None
    """Stages of the trunk that are trained, the last ones; 0: none of it (default: all)."""

    def __post_init__(self) -> None:
        check_each(
            self,
            ("head_factor", "proxies_factor", "classifier_factor", "scalars_factor", "weights_factor"),
            above=0,
        )
        check_range("layer_decay", self.layer_decay, above=0, most=1)
        decays = ("head_decay", "proxies_decay", "classifier_decay", "scalars_decay", "weights_decay")
        warmups = ("trunk_warmup", *(name.replace("decay", "warmup") for name in decays))
        check_each(self, (*decays, *warmups, "freeze", "trainable_stages"), least=0)

    @property
    def parts_classifiers(self) -> bool:
        """Whether classifiers inside losses have a rate, a decay or a warm-up of their own."""
        own = (self.classifier_factor, self.classifier_decay, self.classifier_warmup)
        return any(value is not None for value in own)
