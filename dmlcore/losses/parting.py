"""The parameters of losses of which each rank has a part: which they are, and what an engine must not do with them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import distributed, nn

from dmlcore.errors import ConfigError
from dmlcore.losses.proxy import ProxyLoss
from dmlcore.ranks import Group, Shard

IGNORED = "_ddp_params_and_buffers_to_ignore"
"""The attribute by which `DistributedDataParallel` is told what to leave alone."""


class Part(NamedTuple):
    """A parameter of which this rank has the rows of its classes.

    Attributes:
        parameter: `[C_of_this_rank * each, ...]`.
        shard: which classes these are.
        each: rows of a class.
    """

    parameter: nn.Parameter
    shard: Shard
    each: int


def parts_of(module: nn.Module) -> dict[str, Part]:
    """The parameters in a module of which this rank has a part, by their names in it."""
    return {name: part for prefix, loss in _divided(module) for name, part in _parts(prefix, loss)}


def shards_of(module: nn.Module) -> set[str]:
    """The names of those parameters, and of the buffers that go with them."""
    return set(parts_of(module)) | {f"{prefix}proxy_labels" for prefix, _ in _divided(module)}


def divide_classes(module: nn.Module, group: Group) -> None:
    """Leave this rank its classes of every loss with proxies in a module, and let an engine around it keep off them.

    Args:
        module: an ensemble, or a memory around one.
        group: of the ranks.

    Raises:
        ConfigError: no loss has classes to divide, or one cannot divide them.
    """
    owners: list[Any] = [loss for loss in module.modules() if getattr(loss, "needs_classes", False)]
    if not owners:
        raise ConfigError("shard_proxies divides the classes of losses with proxies, and there is none; leave it out")
    for holder in module.modules():
        if getattr(getattr(holder, "weighting", None), "looks_ahead", False):
            raise ConfigError("a weighting that looks ahead needs every loss whole on each rank; leave shard_proxies out")
    for loss in owners:
        if not isinstance(loss, ProxyLoss):
            name = getattr(loss, "name", type(loss).__name__)
            raise ConfigError(f"'{name}' does not say how ranks could divide its classes; leave shard_proxies out")
        loss.check_is_divisible()
    for loss in owners:
        if loss.shard is None and group.size > 1:
            _take_first(loss.class_parameters().values(), group)
            loss.divide(group)
    for holder in module.modules():
        if holder is module or hasattr(holder, "members"):
            setattr(holder, IGNORED, sorted(shards_of(holder)))


def check_engine(module: nn.Module) -> None:
    """Raise where an engine around a loss would make the parts of all ranks the same.

    Raises:
        ConfigError: `DistributedDataParallel` holds a parameter of which each rank has a part.
    """
    parts = {id(part.parameter) for part in parts_of(module).values()}
    engine = getattr(nn.parallel.DistributedDataParallel, "_active_ddp_module", None)
    if not parts or not isinstance(engine, nn.Module):
        return
    ignored = set(getattr(engine, "parameters_to_ignore", ()))
    for name, parameter in engine.named_parameters():
        if id(parameter) in parts and name.removeprefix("module.") not in ignored:
            raise ConfigError(
                f"DistributedDataParallel averages '{name}', of which each rank has its own classes; wrap the network alone, or"
                f" name it in {IGNORED} of the module that is wrapped"
            )


def squared_norm(parts: Collection[Part]) -> torch.Tensor:
    """The sum of squares of the gradients of what each rank has a part of, over all ranks, which all call it: float64."""
    group, device = next((part.shard.group, part.parameter.device) for part in parts)
    total = torch.zeros((), dtype=torch.float64, device=device)
    for part in parts:
        if part.parameter.grad is not None:
            total += part.parameter.grad.double().square().sum()
    distributed.all_reduce(total, group=group.process_group)
    return total


def _divided(module: nn.Module) -> Iterator[tuple[str, ProxyLoss]]:
    for name, loss in module.named_modules():
        if isinstance(loss, ProxyLoss) and loss.shard is not None:
            yield f"{name}." if name else "", loss


def _parts(prefix: str, loss: ProxyLoss) -> Iterator[tuple[str, Part]]:
    assert loss.shard is not None
    for name, parameter in loss.class_parameters().items():
        yield f"{prefix}{name}", Part(parameter, loss.shard, loss.centres if name == "proxies" else 1)


@torch.no_grad()
def _take_first(parameters: Iterable[nn.Parameter], group: Group) -> None:
    """Give all ranks the whole tables of rank 0."""
    source = 0 if group.process_group is None else distributed.get_global_rank(group.process_group, 0)
    needs_cuda = distributed.get_backend(group.process_group) == distributed.Backend.NCCL
    for parameter in parameters:
        numbers = parameter.detach().to("cuda" if needs_cuda else "cpu").contiguous()
        distributed.broadcast(numbers, source, group=group.process_group)
        parameter.copy_(numbers)
