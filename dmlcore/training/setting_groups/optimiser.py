"""Settings of the optimizer of a run: rate, decay, precision. Those of single parts of the model are in `rates`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dmlcore.config import check_range
from dmlcore.plugins import defaults
from dmlcore.training.setting_groups.fields import check_each

LEARNING_RATE = 2e-3  # of what begins at random


@dataclass(frozen=True)
class OptimiserSettings:
    """Optimizer, learning rate, decay and clipping."""

    optimizer: str = defaults().OPTIMIZER
    """What turns gradients into steps."""
    learning_rate: float | None = None
    """Highest learning rate of the trunk; it rises over `warmup` steps and follows `schedule` (default: 2e-3; 4e-3 for
    the small network of pictures, 5e-4 for features, 1e-3 with hidden units beside them, and what suits the trunk where it is
    trained already)."""
    schedule: str = defaults().SCHEDULE
    """How the learning rate goes on."""
    warmup: int = 50
    """Steps over which the learning rate rises, at most a fifth of all."""
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

    def __post_init__(self) -> None:
        check_each(self, ("warmup", "weight_decay"), least=0)
        check_range("accumulate", self.accumulate, least=1)
        check_range("average", self.average, above=0, below=1)
        check_each(self, ("learning_rate", "clip"), above=0)
