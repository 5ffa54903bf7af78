"""Stochastic gradient descent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

import dmlcore
from dmlcore.config import check_range
from dmlcore.errors import ConfigError
from dmlcore.training import Optimizer, uncompiled


class SGD(Optimizer):
    """Steps along the gradient, with momentum. It needs rates far above those of `adamw`, such as 0.05.

    Source: Sutskever, Martens, Dahl, Hinton, "On the importance of initialization and momentum in deep learning", ICML 2013.
    """

    name = "sgd"

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options of `sgd`."""

        momentum: float = 0.9
        """Share of the last step that is kept, in [0, 1)."""
        nesterov: bool = False
        """Look ahead along the momentum."""

        def __post_init__(self) -> None:
            check_range("momentum", self.momentum, least=0, below=1)
            if self.nesterov and not self.momentum:
                raise ConfigError("nesterov needs a momentum above 0")

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return uncompiled(torch.optim.SGD)(groups, momentum=self.options.momentum, nesterov=self.options.nesterov)


@dmlcore.hookimpl
def dmlcore_optimizers() -> list[type]:
    return [SGD]
