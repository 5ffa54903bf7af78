"""Optimisers of PyTorch that do not load its graph compiler."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

Kind = TypeVar("Kind", bound=type[torch.optim.Optimizer])

_OF_COMPILER = "torch._compile"  # the module of what keeps methods out of graphs
_OF_STEP = "torch.optim.optimizer"


def uncompiled(kind: Kind) -> Kind:
    """The same kind of optimiser, which never loads the graph compiler: that takes a second of a run's start.

    PyTorch wraps methods of its optimisers, so that a graph that is compiled around them ends there, and loads the compiler at
    the first call of each. Here these wrappers are left out. A step still has no gradient and its hooks. Where a method is
    wrapped by something else, as another version may do, it stays as it is.

    Args:
        kind: a class of `torch.optim`, to be made without `differentiable`.
    """
    return cast(Kind, _made_of(kind))  # its arguments are those of the kind


@functools.cache
def _made_of(kind: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    methods: dict[str, Any] = {}
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        method = getattr(kind, name)
        if _home_of(method) == _OF_COMPILER:
            methods[name] = method.__wrapped__
    wrappers: list[Any] = []
    step: Callable[..., Any] = inspect.unwrap(kind.step, stop=lambda method: bool(wrappers.append(method)))
    if wrappers and all(_home_of(wrapper) == _OF_STEP for wrapper in wrappers):
        methods["step"] = torch.no_grad()(step)
    return type(kind.__name__, (kind,), methods)


def _home_of(function: Any) -> str:
    return getattr(function, "__globals__", {}).get("__name__", "")
