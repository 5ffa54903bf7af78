"""Losses that a Python program gives as objects: what stands for one in a configuration, and modules or functions as losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from dmlcore.errors import ConfigError, PluginError
from dmlcore.losses.base import Loss, LossOptions


class PythonLoss(Loss):
    """A loss out of anything that takes embeddings `[B, D]` and labels `[B]` and returns a scalar. Its class stands for every
    loss object that a run was given.

    Args:
        options: of every loss.
        call: the module or function.

    Raises:
        ConfigError: without `call`: a configuration can name it, but not bring the object.
    """

    name = "python_loss"
    Options = LossOptions
    takes_references = False

    def __init__(self, options: Any = None, *, call: Callable[..., Any] | None = None, **named: Any) -> None:
        super().__init__(options, **{key: value for key, value in named.items() if key == "reduction"})
        if call is None:
            raise ConfigError("python_loss stands for a loss that a Python program gave. Give it: dmlcore.train(losses=[...])")
        self.call = call if isinstance(call, nn.Module) else _Function(call)

    def forward(self, embeddings: Tensor, labels: Tensor, **against: Any) -> Tensor:
        """The scalar that the module or function returns for `[B, D]` and `[B]`."""
        value = self.call(embeddings, labels)
        if not isinstance(value, Tensor) or value.ndim:
            got = f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise PluginError(f"the loss from Python gave {got}, but must give a scalar tensor")
        return value


class _Function(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *arguments: Any) -> Any:
        return self.function(*arguments)
