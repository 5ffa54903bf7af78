"""Settings of the length, the evaluations and the device of a run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from dmlcore.config import check_range, seconds_of
from dmlcore.errors import ConfigError
from dmlcore.training.setting_groups.fields import check_each

DEFAULT_STEPS = 700
DEFAULT_EVAL_EVERY = 100  # steps


def check_device(name: str) -> None:
    """Refuse what is no name of a device.

    Raises:
        ConfigError: it is none.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", name):
        raise ConfigError(f"device is '{name}', but must be auto, cpu, cuda or cuda:N")


@dataclass(frozen=True)
class RunSettings:
    """Length, evaluations, device and seed."""

    steps: int | None = None
    """Optimiser steps (default: 700, unless `epochs` is given)."""
    epochs: int | None = None
    """Passes over the training samples, instead of `steps`."""
    validation: Literal["classes", "samples", "none"] = "classes"
    """What chooses the checkpoint: training classes that are held out, `samples` of all training classes that are held out, or
    `none`. Then the validation part is trained on too, nothing is evaluated before the end, and the last checkpoint is kept."""
    eval_every: int | None = None
    """Steps between evaluations on the validation part, each with a checkpoint; without that part, between checkpoints
    (default: 100; 25 for the models `mlp` and `trigrams`, which learn in few steps)."""
    log_every: int = 50
    """Steps between lines of progress where there is no terminal."""
    patience: int | None = None
    """Evaluations in a row without a better one after which training ends (default: it runs through all steps)."""
    recall_at: tuple[int, ...] = (1, 2, 4, 8)
    """Values of k of `recall@k`, separated by commas; 1 is among them."""
    metrics: tuple[str, ...] = ()
    """Measures of embeddings beside those of retrieval, separated by commas."""
    loggers: tuple[str, ...] = ()
    """Further loggers, separated by commas."""
    report: bool = True
    """Write `report.html`, a page to look at, when the run ends."""
    device: str = "auto"
    """`auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:N`."""
    seed: int = 0
    """Seed of the split, the weights, the batches and the augmentation."""
    recipe: str | None = None
    """Recipe that the settings begin with, a name of `dmlcore recipes` or a .toml file; whatever is given beside it wins."""
    timeout: str = "10m"
    """With several processes: time that one waits for the others in a step, such as `10m`, before training ends."""
    transport: Literal["full", "bf16", "fp16"] = "full"
    """With several processes: how outputs of the model are sent to the others. `bf16` and `fp16` round them, and send half."""
    stop_after: str | None = None
    """Time, such as `3h50m`, after which the run saves a checkpoint and ends. `--resume` goes on."""

    def __post_init__(self) -> None:
        if self.steps is not None and self.epochs is not None:
            raise ConfigError("steps and epochs are both given; leave one out")
        if self.validation == "none" and self.patience is not None:
            raise ConfigError("patience needs evaluations, but validation is none. Leave it out, or say --validation classes")
        check_each(self, ("steps", "epochs", "eval_every", "log_every", "patience"), least=1)
        check_range("seed", self.seed, least=0)
        for k in self.recall_at:
            check_range("recall_at", k, least=1)
        if 1 not in self.recall_at:
            raise ConfigError(f"recall_at must hold 1, but is {','.join(map(str, self.recall_at)) or 'empty'}")
        if self.stop_after is not None:
            seconds_of(self.stop_after, "stop_after")
        seconds_of(self.timeout, "timeout")
        check_device(self.device)
