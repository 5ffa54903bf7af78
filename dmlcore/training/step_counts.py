"""How many optimiser steps a run takes."""

from __future__ import annotations

import os
import re

from dmlcore.errors import ConfigError
from dmlcore.training.setting_groups.run import DEFAULT_STEPS
from dmlcore.training.settings import Settings


def count_steps(settings: Settings, samples: int, batch_size: int) -> int:
    """Optimiser steps of a run, from the epochs where those are set."""
    steps = settings.run.steps or DEFAULT_STEPS
    if settings.run.epochs is not None:
        steps = max(1, -(-settings.run.epochs * samples // batch_size))
    return limited(steps)


def limited(steps: int) -> int:
    """A number of optimiser steps, or fewer where `DML_MAX_STEPS` says so.

    Raises:
        ConfigError: it says something else.
    """
    limit = os.environ.get("DML_MAX_STEPS", "")
    if limit and not re.fullmatch("0*[1-9][0-9]{0,17}", limit):
        raise ConfigError(f"DML_MAX_STEPS is '{limit}', but must be a whole number >= 1")
    return min(steps, int(limit)) if limit else steps
