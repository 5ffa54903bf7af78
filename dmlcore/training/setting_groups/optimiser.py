"""Settings of the optimizer of a run: rates, decay, precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dmlcore.config import check_range
from dmlcore.plugins import defaults
from dmlcore.training.setting_groups.fields import check_each

LEARNING_RATE = 2e-3  # of what begins at random


@dataclass(frozen=True)
class OptimiserSettings:
    """Optimizer, learning rates, decay and clipping."""

    optimizer: str = defaults().OPTIMIZER
    """What turns gradients into steps."""
    learning_rate: float | None = None
    """Highest learning rate of the trunk; it rises over `warmup` steps and falls as a cosine (default: 2e-3; 5e-4 for
    features, and what suits the trunk where it is trained already)."""
    warmup: int = 50
    """Steps over which the learning rate rises."""
    head_factor: float = 1.0
    """Learning rate of the embedding head, relative to the trunk's."""
    proxies_factor: float = 20.0
    """Learning rate of proxies, relative to the trunk's."""
    scalars_factor: float = 1.0
    """Learning rate of learnable numbers inside losses, relative to the trunk's."""
    weights_factor: float = 1.0
    """Learning rate of learnable ensemble weights, relative to the trunk's."""
    weight_decay: float = 1e-4
    """Decay of the trunk and the head."""
    clip: float | None = 10.0
    """Largest norm of the gradient, of the model and of everything else apart; `none` switches clipping off."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision in which the model runs while it trains; losses and weights stay in float32."""
    accumulate: int = 1
    """Parts in which a batch goes through the model. The gradient is that of the whole batch, at the memory of one part and the
    time of one more forward pass."""
    average: float | None = None
    """Decay of a running average of the weights (EMA), such as 0.999, which is evaluated and served (default: none)."""
    freeze: int = 0
    """Steps at the beginning in which the trunk is not trained."""

    def __post_init__(self) -> None:
        check_each(self, ("warmup", "weight_decay", "freeze"), least=0)
        check_range("accumulate", self.accumulate, least=1)
        check_range("average", self.average, above=0, below=1)
        rates = ("learning_rate", "clip", "head_factor", "proxies_factor", "scalars_factor", "weights_factor")
        check_each(self, rates, above=0)
