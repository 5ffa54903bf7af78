"""What the planner of the CPU kernels would do with a batch, and what it would cost: `explain`. Nothing of the size of the
batch's similarities is computed; times are predictions from short measurements of this machine."""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from dmlcore.errors import ConfigError
from dmlcore.kernels import extension
from dmlcore.kernels.cpu import CpuPasses, CpuStep, plan_options, recorded_steps
from dmlcore.kernels.facts import info
from dmlcore.kernels.rows import FunctorCall, Relations

CALIBRATED = (
    256,
    768,
)  # samples at which the cost of a loss is measured: large enough for the clock, a few milliseconds together
PLAIN = (64, 128)  # the same for losses in plain PyTorch, whose memory is measured too


@dataclass(frozen=True)
class PlannedPass:
    """One pass over the similarities of anchors and references.

    Attributes:
        losses: names of the members that share it.
        anchors, references: numbers of rows; `references` is None for a batch against itself.
        plan: what the planner chose: `threads`, `triangle`, `tile_rows`, `tile_columns`, `tiles`, `cells` (similarities in
            them), `chunks`, `stored_bytes` (0: similarities are computed again in backward), `slot_bytes`, `kept_bytes` (from
            forward to backward), `forward_bytes` and `backward_bytes` (beside them).
        gigaflops: rate of the tiles' products, per thread.
        product_seconds: of all products of forward and backward.
        loss_seconds: of everything else, by member.
    """

    losses: tuple[str, ...]
    anchors: int
    references: int | None
    plan: dict[str, int]
    gigaflops: float
    product_seconds: float
    loss_seconds: tuple[float, ...]

    @property
    def bytes(self) -> int:
        """The most that is allocated at a time, gradients and the ordered copies of the vectors included."""
        return self.plan["kept_bytes"] + max(self.plan["forward_bytes"], self.plan["backward_bytes"])

    @property
    def seconds(self) -> float:
        return self.product_seconds + sum(self.loss_seconds)

    def __str__(self) -> str:
        plan = self.plan
        against = "themselves" if self.references is None else f"{self.references} references"
        shape = "tiles above the diagonal, each for its rows and its columns" if plan["triangle"] else "tiles"
        stored = (
            f"similarities stored from forward to backward: {_size(plan['stored_bytes'])}"
            if plan["stored_bytes"]
            else "similarities computed again in backward"
        )
        chunks = f", anchors in {plan['chunks']} chunks" if plan["chunks"] > 1 else ""
        slots = f", slots of the positives: {_size(plan['slot_bytes'])}" if plan["slot_bytes"] else ""
        parts = [f"products {_time(self.product_seconds)} (at {self.gigaflops:.0f} GFLOP/s a thread)"]
        parts += [f"{name} {_time(seconds)}" for name, seconds in zip(self.losses, self.loss_seconds, strict=True)]
        return "\n".join(
            [
                f"{', '.join(self.losses)}: one pass, {self.anchors} anchors against {against}",
                f"  {plan['tiles']} {shape}, {plan['tile_rows']} x {plan['tile_columns']}{chunks}; threads: {plan['threads']}",
                f"  {stored}{slots}",
                f"  memory {_size(self.bytes)}: {_size(plan['kept_bytes'])} from forward to backward, beside them "
                f"{_size(plan['forward_bytes'])} in forward, {_size(plan['backward_bytes'])} in backward",
                f"  time {_time(self.seconds)}: {', '.join(parts)}",
            ]
        )


@dataclass(frozen=True)
class PlainLoss:
    """A member that runs in plain PyTorch.

    Attributes:
        name: the member.
        reason: why it is not fused.
        bytes, seconds: of forward and backward, extrapolated from small batches by the square of the number of samples.
    """

    name: str
    reason: str
    bytes: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.name}: plain PyTorch ({self.reason})\n  memory {_size(self.bytes)}, time {_time(self.seconds)}"


@dataclass(frozen=True)
class Explanation:
    """What `explain` returns; `print` it.

    Attributes:
        title: the batch and the machine.
        passes: the fused passes.
        plain: members without one.
        overhead_seconds: of Python, autograd and the reductions, per step.
    """

    title: str
    passes: tuple[PlannedPass, ...]
    plain: tuple[PlainLoss, ...]
    overhead_seconds: float = field(default=0.0)

    @property
    def bytes(self) -> int:
        """Predicted memory of a step: passes keep theirs until backward."""
        kept = sum(one.plan["kept_bytes"] for one in self.passes) + sum(one.bytes for one in self.plain)
        return kept + max((one.bytes - one.plan["kept_bytes"] for one in self.passes), default=0)

    @property
    def seconds(self) -> float:
        """Predicted time of forward and backward."""
        return sum(one.seconds for one in self.passes) + sum(one.seconds for one in self.plain) + self.overhead_seconds

    def __str__(self) -> str:
        whole = (
            f"in all: memory {_size(self.bytes)}, time {_time(self.seconds)} (calls: {_time(self.overhead_seconds)}); predicted"
        )
        return "\n".join([self.title, *map(str, self.passes), *map(str, self.plain), whole])


def _size(count: float) -> str:
    for unit, scale in (("GB", 2**30), ("MB", 2**20), ("kB", 2**10)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} B"


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.2f} {unit}"
    return f"{seconds * 1e6:.0f} us"


def _fastest(run: Callable[[], Any], repeats: int = 3) -> float:
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - began)
    return best


@functools.cache
def _product_rate(rows: int, columns: int, width: int, dtype: torch.dtype) -> float:
    """Operations per second of one thread on products of a tile's shape; measured once per process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        x, y = torch.randn(rows, width, dtype=dtype), torch.randn(columns, width, dtype=dtype)
        s, g = torch.empty(rows, columns, dtype=dtype), torch.empty(rows, width, dtype=dtype)
        count = max(1, int(1e8 / (4 * rows * columns * width)))

        def run() -> None:
            for _ in range(count):
                torch.mm(x, y.T, out=s)
                torch.mm(s, y, out=g)

        run()
        return count * 4 * rows * columns * width / _fastest(run)
    finally:
        torch.set_num_threads(threads)


def _columns(numbers: Tensor | None, count: int) -> Tensor | None:
    """Numbers per anchor for another number of anchors: those recorded, repeated."""
    return None if numbers is None else numbers[:, torch.arange(count) % numbers.shape[1]].contiguous()


def _for_anchors(call: FunctorCall, count: int) -> FunctorCall:
    return replace(call, given=_columns(call.given, count), windows=_columns(call.windows, count))


def _in_pass(count: int, per_class: int, other_per_class: int, call: FunctorCall, dtype: torch.dtype) -> tuple[float, int]:
    """Seconds and similarities of a pass of one loss on few dimensions, where the products cost little."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(count, 8, generator=generator, dtype=dtype), torch.arange(count) // per_class
    others: tuple[Tensor | None, Tensor | None] = (None, None)
    if other_per_class:
        there = -(-count // other_per_class) * other_per_class  # whole classes: losses with centres want all of them
        others = (torch.randn(there, 8, generator=generator, dtype=dtype), torch.arange(there) // other_per_class)
    with plan_options(threads=1):
        gradients = [None if one is None else torch.empty_like(one) for one in (x, others[0])]

        def run() -> CpuPasses:
            step = CpuPasses([CpuStep(x, y, *others, (True, True), (_for_anchors(call, count),), Relations())])
            _, values, _, tables = step.forward()
            step.backward(None, torch.ones_like(values), torch.ones_like(tables), gradients)
            return step

        cells = run().plan()["cells"]
        return _fastest(run), cells


_rates: dict[tuple[Any, ...], float] = {}


def _loss_rate(call: FunctorCall, per_class: int, other_per_class: int, dtype: torch.dtype) -> float:
    """Seconds per similarity of one loss, forward and backward, products not counted; measured once per process.

    `other_per_class` references have a label; 0: the batch is compared with itself.
    """
    key = (call.functor, call.options, call.windows is None, per_class, other_per_class, dtype)
    if key not in _rates:
        (short, few), (long, many) = (_in_pass(count, per_class, other_per_class, call, dtype) for count in CALIBRATED)
        products = 6 * 8 / _product_rate(64, 512, 8, dtype)  # three products of 8 dimensions: tiles of this size are stored
        _rates[key] = max((long - short) / max(many - few, 1) - products, 0.0)
    return _rates[key]


def _members(losses: Any, width: int, classes: int) -> tuple[list[str], list[Any]]:
    from dmlcore.config import unique_names
    from dmlcore.ensemble import LossEnsemble
    from dmlcore.losses import Loss, create

    if isinstance(losses, LossEnsemble):
        return list(losses.names), list(losses.members)
    given = [losses] if isinstance(losses, str | Loss) else list(losses)
    if not given:
        raise ConfigError("there are no losses to explain; give a loss, a name, or a list of them")
    made = [create(one, num_classes=classes, embedding_dim=width) if isinstance(one, str) else one for one in given]
    for one in made:
        if not isinstance(one, Loss):
            raise ConfigError(f"losses must be names or losses, got {type(one).__name__}")
    return list(unique_names([one.name for one in made])), made


def _classes(loss: Any) -> int:
    """How many classes a loss knows; 0 for any number."""
    if loss.needs_classes:
        return loss.num_classes
    counts = [len(p) for p in loss.parameters() if p.ndim == 1 and len(p) > 1] if loss.uses_classes else []
    return min(counts, default=0)


def _sample(count: int, width: int, per_class: int, classes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, width, generator=generator, dtype=dtype), torch.arange(count) // per_class % classes


def _saved_bytes(run: Callable[[], Tensor]) -> int:
    """Memory that a forward pass keeps for its backward pass."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value = run()
    del value
    return sum(kept.values())


def explain(
    losses: Any,
    batch: int,
    dimension: int,
    references: int | None = None,
    threads: int | None = None,
    *,
    samples_per_class: int = 4,
    num_classes: int = 1000,
    dtype: torch.dtype = torch.float32,
) -> Explanation:
    """What the CPU kernels would do with a batch: which losses share a pass, its tiles, whether similarities are stored or
    computed again, threads, memory and time.

    The choices and the bytes are the planner's own. The times are predictions: the products by the rate of products of a
    tile's shape, each loss by its cost per similarity at small batches, both measured on one thread (some milliseconds each,
    once per process) and divided by the threads. Members in plain PyTorch are measured at two small sizes and extrapolated.

    Args:
        losses: a loss, an ensemble, a name, or a list of losses and names.
        batch: number of samples B.
        dimension: of the embeddings.
        references: number of references that the batch is compared with; None: the batch itself.
        threads: None: as many as PyTorch uses.
        samples_per_class: of batch and references.
        num_classes: of losses given by name that own proxies.
        dtype: of the embeddings; half precisions are computed in float32.

    Returns:
        The explanation, to be printed or read.

    Raises:
        ConfigError: numbers below 1, no losses, no extension.
    """
    for noun, number in (("batch", batch), ("dimension", dimension), ("samples_per_class", samples_per_class)):
        if number < 1:
            raise ConfigError(f"{noun} must be at least 1, got {number}")
    if references is not None and references < 1:
        raise ConfigError(f"references must be at least 1, or None for the batch itself, got {references}")
    module = extension.cpu()
    if module is None or not extension.fused_enabled():
        raise ConfigError(f"there is nothing to plan: {extension.reason_against('cpu')}")
    threads = threads or torch.get_num_threads()
    dtype = torch.float64 if dtype == torch.float64 else torch.float32
    names, members = _members(losses, dimension, num_classes)
    members = [copy.deepcopy(one).to("cpu", dtype) for one in members]  # a memory or a random state of theirs stays as it is
    classes = min([count for one in members if (count := _classes(one))] or [batch + (references or 0) + 1])
    taken = {len(p) for one in members for p in one.parameters() if p.ndim}

    # What runs together is found by running a few samples, told from proxies by their number.
    few = next(n for n in range(3 * samples_per_class, 10**6) if n not in taken)
    fewer = next(n for n in range(few + 1, 10**6) if n not in taken)
    steps, plain = _trace(names, members, few, fewer if references else None, dimension, samples_per_class, classes, dtype)
    sizes = {few: batch, fewer: references or 0}
    passes = []
    for called, (anchors, labels, others, other_labels, relations, normalise, calls) in steps:
        if len(anchors) not in sizes and len(anchors) not in taken:  # pairs of one class: as many for each sample
            real, real_labels = _more_pairs(anchors, labels, batch / few)
        else:
            real, real_labels = _enlarged(anchors, labels, sizes, samples_per_class, classes)
        other, other_real = (
            (None, None) if others is None else _enlarged(others, other_labels, sizes, samples_per_class, classes)
        )
        chosen = tuple(_for_anchors(call, len(real)) for call in calls)
        with plan_options(threads=threads):
            step = CpuPasses([CpuStep(real, real_labels, other, other_real, normalise, chosen, relations._replace(own=None))])
        plan = step.plan()
        del step
        rate = _product_rate(plan["tile_rows"], plan["tile_columns"], dimension, dtype)
        products = (3 if plan["stored_bytes"] else 4) * 2 * plan["cells"] * dimension / rate / plan["threads"]
        itself = other is None
        alike = 0 if itself else int(torch.unique(other_real, return_counts=True)[1].max())
        costs = (_loss_rate(call, samples_per_class, alike, dtype) * plan["cells"] / plan["threads"] for call in calls)
        passes.append(PlannedPass(called, len(real), None if itself else len(other), plan, rate / 1e9, products, tuple(costs)))
    expected = [_plain(names[k], members[k], batch, references, dimension, samples_per_class, classes, dtype) for k in plain]
    overhead = _overhead(
        [members[k] for k in range(len(members)) if k not in plain], dimension, samples_per_class, classes, dtype
    )
    against = "itself" if references is None else f"{references} references"
    cpu = info()["cpu"]
    title = (
        f"a batch of {batch} x {dimension} against {against}, {samples_per_class} samples per class, {str(dtype)[6:]}; "
        f"threads: {threads}; {cpu['level']}, products by {cpu['blas']}"
    )
    return Explanation(title, tuple(passes), tuple(expected), overhead)


def _trace(
    names: Sequence[str],
    members: Sequence[Any],
    batch: int,
    references: int | None,
    width: int,
    per_class: int,
    classes: int,
    dtype: torch.dtype,
) -> tuple[list[tuple[tuple[str, ...], tuple[Any, ...]]], list[int]]:
    """The passes of one step with the names of their members, and the indices of the members that take part in none."""
    from dmlcore.ensemble import LossEnsemble

    def run(chosen: Sequence[Any]) -> list[tuple[Any, ...]]:
        x, y = _sample(batch, width, per_class, classes, dtype)
        more = {}
        if references is not None and not all(one.needs_classes for one in chosen):
            more = dict(
                zip(("references", "reference_labels"), _sample(references, width, per_class, classes, dtype), strict=True)
            )
        with recorded_steps() as recorded, torch.no_grad():
            (chosen[0] if len(chosen) == 1 else LossEnsemble(list(chosen)))(x, y, **more)
        return recorded

    fused = [k for k, one in enumerate(members) if run([one])]
    plain = [k for k in range(len(members)) if k not in fused]
    waiting = list(fused)
    steps = []
    for arguments in run([members[k] for k in fused]) if fused else []:
        called = []
        for call in arguments[-1]:
            owner = next((k for k in waiting if _functor(members[k]) == call.functor), waiting[0])
            waiting.remove(owner)
            called.append(names[owner])
        steps.append((tuple(called), arguments))
    return steps, plain


def _functor(loss: Any) -> str:
    call = loss.functor_call() if hasattr(loss, "functor_call") else None
    return call.functor if isinstance(call, FunctorCall) else ""


def _enlarged(rows: Tensor, labels: Tensor, sizes: dict[int, int], per_class: int, classes: int) -> tuple[Tensor, Tensor]:
    """Rows and labels of a side of the traced step at its real size; proxies stay."""
    if len(rows) not in sizes:
        return rows, labels
    count = sizes[len(rows)]
    return torch.ones(count, rows.shape[1], dtype=rows.dtype), torch.arange(count) // per_class % classes


def _more_pairs(rows: Tensor, labels: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """Rows that are pairs of the traced samples, and their labels, for `factor` times as many classes of the same size."""
    count = round(len(rows) * factor)
    per_class = int(torch.unique(labels, return_counts=True)[1].max()) if count else 1
    return torch.ones(count, rows.shape[1], dtype=rows.dtype), torch.arange(count) // per_class


def _call(loss: Any, batch: int, references: int | None, width: int, per_class: int, classes: int, dtype: torch.dtype) -> Any:
    x, y = _sample(batch, width, per_class, classes, dtype)
    x.requires_grad_()
    more = {}
    if references is not None and not loss.needs_classes:
        more = dict(zip(("references", "reference_labels"), _sample(references, width, per_class, classes, dtype), strict=True))
    return lambda: loss(x, y, **more)


def _plain(
    name: str, loss: Any, batch: int, references: int | None, width: int, per_class: int, classes: int, dtype: torch.dtype
) -> PlainLoss:
    seconds, kept = [], []
    for count in PLAIN:
        other = None if references is None else max(1, count * references // batch)
        run = _call(loss, count, other, width, per_class, classes, dtype)
        kept.append(_saved_bytes(run))
        seconds.append(_fastest(lambda run=run: run().backward()))
    low, high = PLAIN
    grown = [(after - before) / (high**2 - low**2) for before, after in (kept, seconds)]  # per square of the samples
    more = [max(each, 0.0) * (batch**2 - low**2) for each in grown]
    return PlainLoss(name, loss.why_not_fused, max(0, int(kept[0] + more[0])), max(0.0, seconds[0] + more[1]))


def _overhead(members: Sequence[Any], width: int, per_class: int, classes: int, dtype: torch.dtype) -> float:
    from dmlcore.ensemble import LossEnsemble

    if not members:
        return 0.0
    run = _call(members[0] if len(members) == 1 else LossEnsemble(list(members)), 8, None, width, per_class, classes, dtype)
    run().backward()
    return _fastest(lambda: run().backward(), 5)
