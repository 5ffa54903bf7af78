"""Cross-batch memory: a loss that compares a batch with the embeddings of many batches before it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from dmlcore.errors import ConfigError
from dmlcore.losses.base import Against, Loss
from dmlcore.losses.comparison import compare
from dmlcore.losses.divided_memory import DividedEntries, check_members
from dmlcore.losses.gathering import whole_comparison
from dmlcore.losses.parting import check_engine, shards_of
from dmlcore.losses.relations import Relation, label_matrix
from dmlcore.ranks import Group, Shard, agreed, inside, refuse_alone, same_everywhere


class CrossBatchMemory(nn.Module):
    """Compare each batch with a memory of the newest embeddings. The module is called like the loss it holds.

    In training mode a call first stores the batch in the memory, where it replaces the oldest entries. Then the loss compares
    the batch with all entries. An embedding is never compared with its own entry. Entries take no gradient. During the first
    `warmup` calls the memory fills, and the batch is compared with itself. Miners and relations of the loss work with a memory
    as they do with a batch.

    In evaluation mode the memory does not change. The batch is compared with the memory. It is compared with itself as long as
    the memory is empty or warming up.

    An embedding that is not finite is never stored. While the memory fills, only the others are, and the host waits for the
    device to know how many. In a full memory its place keeps the older entry, and nothing waits.

    With a group of ranks the memory holds the batches of all ranks, the same entries on every rank. The entries are no buffers,
    which `DistributedDataParallel` would overwrite. They are part of the state dict, and move with the module.

    After `divide` each rank has the entries of its own places only, and all labels. The state dict of a rank then holds its
    part. A whole queue may be loaded too, of which it takes its part.

    A call changes the memory in place, so call `backward` before the next call. If a loss still needs entries that were
    replaced, autograd raises an error.

    Args:
        loss: a `Loss` that compares samples with samples, or a `LossEnsemble`. Members of an ensemble that own proxies still
            compare the batch with their proxies.
        size: number of embeddings in the memory, >= 1.
        embedding_dim: their length, >= 1.
        warmup: calls in training before the memory is used, >= 0.
        dtype: of the entries.

    Attributes:
        group: the ranks whose batches it stores, by `dmlcore.distributed`; at first the group of an ensemble.
        shard: which places are this rank's, after `divide`; or None.
        queue: `[size, D]` entries, or those of this rank. The first `filled` of all are in use.
        labels: `[size]` int64, or `[size, ...]` with the shape and dtype of the batch's labels.
        pointer: where the next entry goes.
        filled: how many entries there are.
        calls: calls in training.

    Raises:
        ConfigError: a loss that owns proxies or takes no references, a size or length below 1.

    Source: Wang, Zhang, Huang, Scott, "Cross-Batch Memory for Embedding Learning", CVPR 2020, algorithm 1; the paper
    warms up by training without the memory and then fills it.
    """

    def __init__(
        self, loss: nn.Module, size: int, embedding_dim: int, *, warmup: int = 0, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        if isinstance(loss, Loss) and not loss.takes_references:
            what = "its own proxies" if loss.needs_classes else "the batch itself only"
            raise ConfigError(f"{loss.name} compares samples with {what}; a memory has nothing to add")
        if not isinstance(loss, Loss) and not hasattr(loss, "members"):
            raise ConfigError(f"a memory wraps a dmlcore loss or LossEnsemble, got {type(loss).__name__}")
        for member in getattr(loss, "members", [loss]):
            _check_takes_own(member)
        for name, number, least in (("size", size, 1), ("embedding_dim", embedding_dim, 1), ("warmup", warmup, 0)):
            if isinstance(number, bool) or not isinstance(number, int) or number < least:
                raise ConfigError(f"{name} is {number!r}, but must be a whole number >= {least}")
        self.loss = loss
        self.group: Group | None = getattr(loss, "group", None)
        self.shard: Shard | None = None
        self._is_same_everywhere = False
        self.size, self.embedding_dim, self.warmup = size, embedding_dim, warmup
        self.queue = torch.zeros(size, embedding_dim, dtype=dtype)
        self.labels = torch.zeros(size, dtype=torch.int64)
        self.pointer = self.filled = self.calls = 0

    def divide(self, group: Group) -> None:
        """Leave this rank the entries of its places. The loss must be an ensemble.

        Args:
            group: of the ranks, which all call it.

        Raises:
            ConfigError: a member needs the entries of all.
        """
        check_members(self.loss.members)  # type: ignore[arg-type]
        if group.size == 1 or self.shard is not None:
            return
        self.shard = Shard.of(self.size, group)
        self.queue = self.queue[self.shard.rows(1)].clone()

    def forward(self, embeddings: Tensor, labels: Tensor, *, relation: Relation | Tensor | None = None) -> Tensor:
        """The loss of a batch against the memory. With a group every rank gives its own samples, and gets the loss of all.

        Args:
            embeddings: `[B, D]` floating point, `B <= size` in training.
            labels: `[B]` int64, or as the relation wants them; the same kind in every call.
            relation: as in `Loss.forward`.

        Returns:
            What the loss returns.

        Raises:
            ConfigError: embeddings of another width, more of them than the memory holds, labels of another shape than before.
        """
        if isinstance(relation, Tensor):  # labels by another name
            labels, relation = relation, None
        group = self.group
        if group is None:
            if self.training and torch.is_grad_enabled() and getattr(embeddings, "requires_grad", False):
                refuse_alone("a memory")
            return self._of_whole(embeddings, labels, relation)
        with inside():
            if group.size > 1:
                embeddings, labels = self._gathered(group, embeddings, labels, relation)
            return self._of_whole(embeddings, labels, relation)

    def _gathered(self, group: Group, embeddings: Tensor, labels: Tensor, relation: Relation | None) -> tuple[Tensor, Tensor]:
        """The batch of all ranks."""
        state = f", {self.filled} entries after {self.calls} calls, {'training' if self.training else 'evaluation'} mode"
        comparison, layout = whole_comparison(group, embeddings, labels, state, relation=relation)
        if not isinstance(self.loss, Loss):
            ensemble: Any = self.loss
            ensemble.group, ensemble.layout = group, layout
        if not self._is_same_everywhere:
            check_engine(self.loss)
            same_everywhere(self.loss, self.extra_repr(), group, embeddings.device, except_for=shards_of(self.loss))
            self._is_same_everywhere = True
        return comparison.anchors, comparison.labels

    def _value(self, embeddings: Tensor, labels: Tensor, **against: Unpack[Against]) -> Tensor:
        """What the loss says of the batch of all ranks."""
        group = self.group
        if group is None or group.size == 1:
            return self.loss(embeddings, labels, **against)
        if isinstance(self.loss, Loss):
            value = self.loss(embeddings, labels, **against)
            if value.ndim:
                raise ConfigError(f"{self.loss.name}: reduction 'none' gives a value per sample of all ranks; take another")
            return agreed(value[None], [self.loss.name], group)[0]
        ensemble: Any = self.loss
        return ensemble.value_of(compare(embeddings, labels, **against))

    def _of_whole(self, embeddings: Tensor, labels: Tensor, relation: Relation | None) -> Tensor:
        for tensor, noun in ((embeddings, "embeddings"), (labels, "labels")):
            if not isinstance(tensor, Tensor):
                raise ConfigError(f"{noun} must be a tensor, got {type(tensor).__name__}")
        if relation is None and labels.ndim > 1:
            labels = label_matrix(labels, "embeddings")
        relations: dict[str, Any] = {} if relation is None else {"relation": relation}
        own = None
        if self.training:
            own = self._enqueue(embeddings, labels)
            self.calls += 1
        if self.filled == 0 or self.calls <= self.warmup:
            return self._value(embeddings, labels, **relations)
        # labels are copied: a part of the loss that is computed again in backward must meet those of now
        entry_labels = self.labels[: self.filled].clone()
        if self.shard is not None:
            ensemble: Any = self.loss
            sizes = self._filled_of_ranks(self.shard)
            entries = DividedEntries(self.queue[: sizes[self.shard.group.rank]], sizes, entry_labels, own)
            return ensemble.value_of(compare(embeddings, labels, **relations), entries)
        entries = self.queue[: self.filled]
        return self._value(embeddings, labels, references=entries, reference_labels=entry_labels, own=own, **relations)

    @torch.no_grad()
    def _enqueue(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Put a batch in; returns where each embedding is, `[B]` int64, -1 for one that is not finite."""
        count = len(embeddings)
        if embeddings.ndim != 2 or embeddings.shape[1] != self.embedding_dim:
            raise ConfigError(f"the memory holds embeddings [B, {self.embedding_dim}], got {list(embeddings.shape)}")
        if count > self.size:
            raise ConfigError(f"a batch of {count} does not fit a memory of {self.size}; make it larger than a batch")
        if labels.shape[:1] != (count,):
            raise ConfigError(f"labels must have a row for each of {count} embeddings, got the shape {list(labels.shape)}")
        kind = labels.dtype if labels.ndim > 1 or labels.is_floating_point() else torch.int64
        if (labels.shape[1:], kind) != (self.labels.shape[1:], self.labels.dtype):
            if self.filled:
                raise ConfigError(
                    f"labels are {list(labels.shape)} of {kind}, but the memory holds {list(self.labels.shape)} of"
                    f" {self.labels.dtype}; give the same kind in every call, or reset() the memory"
                )
            self.labels = torch.zeros(self.size, *labels.shape[1:], dtype=kind, device=self.queue.device)
        if embeddings.device != self.queue.device:
            raise ConfigError(f"embeddings are on {embeddings.device}, but the memory is on {self.queue.device}; use .to()")
        vectors, labels = embeddings.detach().to(self.queue.dtype), labels.to(self.labels.dtype)
        finite = torch.isfinite(vectors).all(1)  # [B]
        if self.filled < self.size and not bool(finite.all()):
            own = torch.full((count,), -1, device=vectors.device)
            own[finite] = self._store(vectors[finite], labels[finite])
            return own
        return torch.where(finite, self._store(vectors, labels, finite), -1)

    def _store(self, vectors: Tensor, labels: Tensor, finite: Tensor | None = None) -> Tensor:
        """Put entries in the next places, which are returned. The place of one that is not finite stays as it is."""
        count, device = len(vectors), vectors.device
        places = (torch.arange(count, device=device) + self.pointer) % self.size
        if finite is not None:
            shape = (count,) + (1,) * (labels.ndim - 1)
            labels = torch.where(finite.view(shape), labels, self.labels[places])
        self.labels.index_copy_(0, places, labels)
        own = places
        if self.shard is not None:
            numbers = (torch.arange(count) + self.pointer) % self.size - self.shard.first  # on the host, which need not wait
            rows = ((numbers >= 0) & (numbers < len(self.queue))).nonzero().flatten()
            own, rows = numbers[rows].to(device), rows.to(device)
            vectors, finite = vectors[rows], None if finite is None else finite[rows]
        if finite is not None:
            vectors = torch.where(finite[:, None], vectors, self.queue[own])
        self.queue.index_copy_(0, own, vectors)
        self.pointer = (self.pointer + count) % self.size
        self.filled = min(self.filled + count, self.size)
        return places

    def _filled_of_ranks(self, shard: Shard) -> tuple[int, ...]:
        """How many entries each rank has."""
        each = -(-self.size // shard.group.size)
        return tuple(min(max(self.filled - rank * each, 0), each) for rank in range(shard.group.size))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CrossBatchMemory:
        super()._apply(fn, recurse)
        with torch.no_grad():
            self.queue, self.labels = fn(self.queue), fn(self.labels)
        return self

    def reset(self) -> None:
        """Forget all entries and start the warm-up again."""
        self.queue.zero_()
        self.labels.zero_()
        self.pointer = self.filled = self.calls = 0

    def memory_state(self) -> dict[str, Tensor]:
        """The memory alone, without the state of the loss: `queue`, `labels`, `pointer`, `filled`, `calls`."""
        numbers = {name: torch.tensor(getattr(self, name)) for name in ("pointer", "filled", "calls")}
        return {"queue": self.queue.detach(), "labels": self.labels.detach(), **numbers}

    def load_memory_state(self, state: dict[str, Tensor]) -> None:
        """Restore what `memory_state` gave, whatever its dtype and device; this memory keeps its own.

        Raises:
            ConfigError: it belongs to a memory of another size or length.
        """
        queue = state["queue"]
        if self.shard is not None and len(queue) == self.size:
            queue = queue[self.shard.rows(1)]
        if queue.shape != self.queue.shape:
            raise ConfigError(
                f"the stored memory is {list(queue.shape)}, but this one is {list(self.queue.shape)};"
                f" create it with the same size and embedding_dim"
            )
        with torch.no_grad():
            self.queue.copy_(queue)
            self.labels = state["labels"].to(self.queue.device, copy=True)
        self.pointer, self.filled, self.calls = (int(state[name]) for name in ("pointer", "filled", "calls"))

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, value in self.memory_state().items():
            destination.setdefault(prefix + name, value)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        names = list(self.memory_state())
        missing = [prefix + name for name in names if prefix + name not in state_dict]
        missing_keys.extend(missing)
        if not missing:
            try:
                self.load_memory_state({name: state_dict[prefix + name] for name in names})
            except ConfigError as error:
                error_msgs.append(str(error))

    def extra_repr(self) -> str:
        return f"size={self.size}, embedding_dim={self.embedding_dim}, warmup={self.warmup}, filled={self.filled}"


def _check_takes_own(loss: Any) -> None:
    """Refuse a loss that could not be told which entry of the memory is the sample itself.

    Raises:
        ConfigError: its `forward` takes no `own`.
    """
    if not isinstance(loss, Loss) or not loss.takes_references:
        return
    parameters = inspect.signature(loss.forward).parameters.values()
    if not any(p.name == "own" or p.kind is p.VAR_KEYWORD for p in parameters):
        raise ConfigError(
            f"the `forward` of {loss.name} takes no `own`, by which a memory says which entry is the sample itself; add"
            f" own=None (int64 [B]) to its arguments"
        )
