"""The second gradient of optimizers that look around: taken where the weights are moved to, without another trace."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from dmlcore.errors import PluginError

if TYPE_CHECKING:
    from dmlcore.training.run import Run


class Climb:
    """Made before the first pass of a step. `begin` moves the weights after it, and leaving the block brings them back exactly.

    The weights of the model are moved, those of losses stay: proxies have far larger gradients, and would take all of the way.

    Args:
        run: whose optimizer climbs.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._random = run.passage.random_state()
        self._before = self._state()

    def begin(self) -> bool:
        """Move the weights, and forget the gradients. False: the gradients are not finite, and nothing was done."""
        run = self._run
        groups = [group for group in run.optimiser.param_groups if group["role"] in ("trunk", "head")]
        parameters = [p for group in groups for p in group["params"] if p.grad is not None]
        if not parameters or not bool(torch.isfinite(torch.nn.utils.get_total_norm([p.grad for p in parameters]))):
            return False
        with torch.no_grad():
            ways = run.optimizer.perturbation(parameters)
            if len(ways) != len(parameters) or any(way.shape != p.shape for way, p in zip(ways, parameters, strict=True)):
                raise PluginError(f"the optimizer '{run.optimizer.name}' must give a perturbation of each parameter's shape")
            self._weights = [(parameter, parameter.clone()) for parameter in parameters]
            for parameter, way in zip(parameters, ways, strict=True):
                parameter.add_(way)
        return True

    def __enter__(self) -> None:
        run = self._run
        run.optimiser.zero_grad(set_to_none=True)
        self._after = self._state()
        self._restore(self._before)
        run.passage.set_random_state(self._random)

    def __exit__(self, *error: object) -> None:
        self._restore(self._after)
        with torch.no_grad():
            for parameter, weights in self._weights:
                parameter.copy_(weights)

    def _state(self) -> dict[str, Any]:
        """Batch statistics, and what losses keep from step to step."""
        run = self._run
        memory = None if run.memory is None else run.memory.memory_state()
        statistics = [(buffer, buffer.clone()) for buffer in run.model.buffers()]
        return {"statistics": statistics, "losses": copy.deepcopy(run.ensemble.state_dict()), "memory": copy.deepcopy(memory)}

    def _restore(self, state: dict[str, Any]) -> None:
        run, statistics = self._run, state["statistics"]
        with torch.no_grad():
            for buffer, value in statistics:
                buffer.copy_(value)
        run.ensemble.load_state_dict(state["losses"])
        if run.memory is not None:
            run.memory.load_memory_state(state["memory"])
