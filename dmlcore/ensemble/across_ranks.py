"""`dmlcore.distributed`: a loss that sees the batch of all ranks."""

from __future__ import annotations

from typing import Any, overload

from dmlcore.ensemble.ensemble import LossEnsemble
from dmlcore.errors import ConfigError
from dmlcore.losses import CrossBatchMemory, Loss
from dmlcore.losses.parting import divide_classes
from dmlcore.ranks import GradientRule, Group, Transport, Work


@overload
def distributed(
    loss: CrossBatchMemory,
    process_group: Any = None,
    *,
    gradients: GradientRule = "mean",
    work: Work = "auto",
    transport: Transport = "full",
    shard_proxies: bool = False,
    shard_memory: bool = False,
) -> CrossBatchMemory: ...
@overload
def distributed(
    loss: Loss | LossEnsemble,
    process_group: Any = None,
    *,
    gradients: GradientRule = "mean",
    work: Work = "auto",
    transport: Transport = "full",
    shard_proxies: bool = False,
    shard_memory: bool = False,
) -> LossEnsemble: ...


def distributed(
    loss: Loss | LossEnsemble | CrossBatchMemory,
    process_group: Any = None,
    *,
    gradients: GradientRule = "mean",
    work: Work = "auto",
    transport: Transport = "full",
    shard_proxies: bool = False,
    shard_memory: bool = False,
) -> LossEnsemble | CrossBatchMemory:
    """A loss for a training of several processes: each gives its own samples and gets the loss of all.

    Value and gradients are those of one process on the union of the batches. Ranks may have different numbers of samples, or
    none. All ranks must call it in every step. Wrap the network in `DistributedDataParallel` or `fully_shard`, and call this
    with what the network gives. Parameters of losses get the whole gradient on every rank, so an optimiser can step them
    without a wrapper. A wrapper changes nothing.

    Before `init_process_group`, or with one rank, it is the loss alone.

    Args:
        loss: is changed and returned, so that its parameters stay the same objects. A `Loss` becomes an ensemble of one.
        process_group: exactly the ranks over which gradients are reduced: a `ProcessGroup`, a `DeviceMesh` of one dimension,
            or None for all. `"local"`: each rank trains for itself.
        gradients: whether the engine takes the `mean` over the ranks, as DDP, FSDP, accelerate and Lightning do, or the `sum`.
        work: `divided`: losses whose pairs or rows stand apart are divided among the ranks. `whole`: every rank computes all.
            `auto` divides large batches. The numbers are the same, up to rounding.
        transport: `bf16` and `fp16` round the embeddings, to send half of the bytes. Every rank then computes from the rounded
            ones, which changes the value. Gradients are sent in full.
        shard_proxies: divide the classes of losses with proxies among the ranks. Each then has the proxies of its own classes
            and steps them alone, so an optimiser's state is divided too. For many classes; value and gradients are the same.
        shard_memory: divide the entries of a memory among the ranks. Each then has its part of them only. Its loss
            becomes an ensemble of one where it is a `Loss`.

    Raises:
        ConfigError: no loss of dmlcore, or no group; or classes or a memory that cannot be divided.
    """
    group = process_group if isinstance(process_group, Group) else Group(process_group, gradients, work, transport)
    if isinstance(loss, Loss):
        loss = LossEnsemble([loss])
    if not isinstance(loss, LossEnsemble | CrossBatchMemory):
        raise ConfigError(f"a Loss, a LossEnsemble or a CrossBatchMemory can be distributed, got {type(loss).__name__}")
    if shard_memory:
        if not isinstance(loss, CrossBatchMemory):
            raise ConfigError("shard_memory divides the entries of a CrossBatchMemory, and there is none; leave it out")
        if isinstance(loss.loss, Loss):
            loss.loss = LossEnsemble([loss.loss])
        loss.divide(group)
    loss.group = group
    if shard_proxies and group.size > 1:
        divide_classes(loss, group)
    return loss
