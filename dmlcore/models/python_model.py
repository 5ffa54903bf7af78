"""A module of the user's own as a trunk: what stands for it in a configuration."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dmlcore.errors import ConfigError
from dmlcore.models.trunks import Trunk


@dataclass(frozen=True)
class PythonModelOptions:
    """A module has no options here: it is made as it shall be."""


class PythonModel(Trunk):
    """A copy of a module that a Python program gives, with the weights it has.

    Args:
        options: none.
        sample_shape: of one sample.
        module: maps samples `[B, *sample_shape]` float32 to features `[B, features]`. It stays as it is.

    Raises:
        ConfigError: without `module`; or it cannot take such samples, or gives something else.
    """

    name = "python_model"
    Options = PythonModelOptions
    accepts = frozenset(("images", "features"))

    def __init__(self, options: PythonModelOptions, sample_shape: tuple[int, ...], module: nn.Module | None = None) -> None:
        super().__init__(options, sample_shape)
        if module is None:
            raise ConfigError(
                "python_model stands for a module that a Python program gave, which is not here. Give it:"
                " dmlcore.train(model=...), and dmlcore.train(resume=RUN, model=...) for a run"
            )
        self.module = copy.deepcopy(module).cpu()
        self.features = _columns_of(self.module, sample_shape)

    def forward(self, samples: Tensor) -> Tensor:
        """Features [B, features] of samples [B, *sample_shape] float32."""
        return self.module(samples)


def _columns_of(module: nn.Module, sample_shape: tuple[int, ...]) -> int:
    """The columns of what a module gives, found by calling it on two samples of zeros."""
    modes = {part: part.training for part in module.modules()}
    name, shape = type(module).__name__, list(sample_shape)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            outputs = module.eval()(torch.zeros(2, *sample_shape))
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"the model {name} cannot take samples [B, {', '.join(map(str, shape))}]: {reason}") from error
    finally:
        for part, mode in modes.items():
            part.training = mode
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != 2 or not outputs.is_floating_point():
        got = f"{list(outputs.shape)} of {outputs.dtype}" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ConfigError(f"the model {name} gives {got} for 2 samples, but must give features [2, F] of floats")
    return outputs.shape[1]
