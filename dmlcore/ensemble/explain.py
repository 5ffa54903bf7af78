"""What the planner of the CPU kernels would do with a batch, and what it would cost: `explain`. Nothing of the size of the
batch's similarities is computed; times are predictions from short measurements of this machine."""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmlcore.config import unique_names
from dmlcore.ensemble.ensemble import LossEnsemble
from dmlcore.ensemble.explanation import Explanation, PlainLoss, PlannedPass
from dmlcore.errors import ConfigError
from dmlcore.kernels import FunctorCall, Pass, extension, info, plan_options, recorded_passes
from dmlcore.kernels.cpu import CpuPasses
from dmlcore.losses import Loss, RowLoss, create

CALIBRATED = 256, 768  # samples at which a loss is measured: large enough for the clock, a few milliseconds together
PLAIN = (64, 128)  # the same for losses in plain PyTorch, whose memory is measured too


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
    """A recorded functor for another number of anchors."""
    per_anchor = call.given if isinstance(call.given, Tensor) else None
    return replace(call, given=_columns(per_anchor, count), windows=_columns(call.windows, count))


def _in_pass(count: int, per_class: int, other_per_class: int, call: FunctorCall, dtype: torch.dtype) -> tuple[float, int]:
    """Seconds and similarities of a pass of one loss on few dimensions, where the products cost little."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(count, 8, generator=generator, dtype=dtype), torch.arange(count) // per_class
    references = reference_labels = None
    if other_per_class:
        number = -(-count // other_per_class) * other_per_class  # whole classes: losses with centres want all of them
        references = torch.randn(number, 8, generator=generator, dtype=dtype)
        reference_labels = torch.arange(number) // other_per_class
    with plan_options(threads=1):
        gradients = [torch.empty_like(x), None if references is None else torch.empty_like(references)]
        alone = Pass(x, y, references, reference_labels, (_for_anchors(call, count),))

        def run() -> CpuPasses:
            passes = CpuPasses([alone])
            _, values, _, histograms = passes.forward()
            passes.backward(None, torch.ones_like(values), torch.ones_like(histograms), gradients)
            return passes

        cells = run().plan()["cells"]
        return _fastest(run), cells


_rates: dict[tuple[Any, ...], float] = {}


def _loss_rate(call: FunctorCall, per_class: int, other_per_class: int, dtype: torch.dtype) -> float:
    """Seconds per similarity of one loss, forward and backward, products not counted; measured once per process.

    `other_per_class` references have a label; 0: the batch is compared with itself.
    """
    key = (call.functor, call.options, call.windows is None, call.semihard, per_class, other_per_class, dtype)
    if key not in _rates:
        (short, few), (long, many) = (_in_pass(count, per_class, other_per_class, call, dtype) for count in CALIBRATED)
        products = 6 * 8 / _product_rate(64, 512, 8, dtype)  # three products of 8 dimensions: tiles of this size are stored
        _rates[key] = max((long - short) / max(many - few, 1) - products, 0.0)
    return _rates[key]


def _members(losses: Any, width: int, classes: int) -> tuple[list[str], list[Any]]:
    if isinstance(losses, LossEnsemble):
        return list(losses.names), list(losses.members)
    entries = [losses] if isinstance(losses, str | Loss) else list(losses)
    if not entries:
        raise ConfigError("there are no losses to explain; give a loss, a name, or a list of them")
    members = [
        create(entry, num_classes=classes, embedding_dim=width) if isinstance(entry, str) else entry for entry in entries
    ]
    for loss in members:
        if not isinstance(loss, Loss):
            raise ConfigError(f"losses must be names or losses, got {type(loss).__name__}")
    return list(unique_names([loss.name for loss in members])), members


def _classes(loss: Any) -> int:
    """How many classes a loss knows; 0 for any number."""
    if loss.needs_classes:
        return loss.num_classes
    counts = [len(p) for p in loss.parameters() if p.ndim == 1 and len(p) > 1] if loss.uses_classes else []
    return min(counts, default=0)


class _Sample(NamedTuple):
    """What random batches look like.

    Attributes:
        width: of the embeddings.
        per_class: samples of a class.
        classes: that there are at most.
        dtype: of the embeddings.
    """

    width: int
    per_class: int
    classes: int
    dtype: torch.dtype

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Embeddings and labels."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(count, self.width, generator=generator, dtype=self.dtype)
        return x, torch.arange(count) // self.per_class % self.classes

    def against(self, references: int | None) -> dict[str, Tensor]:
        """References as a loss takes them. None: none."""
        return {} if references is None else dict(zip(("references", "reference_labels"), self.draw(references), strict=True))


def _saved_bytes(run: Callable[[], Tensor]) -> int:
    """Memory that a forward pass keeps for its backward pass."""
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        value = run()
    del value
    return sum(sizes.values())


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
    """What the CPU kernels would do with a batch.

    It says which losses share a pass, how large the tiles are, whether similarities are stored or computed again, and how many
    threads, how much memory and how much time this takes. Choices and bytes come from the planner itself.

    Times are predictions. The rate of the products of a tile and the cost of a loss per similarity are measured on small
    batches with one thread, then divided by the threads. Each measurement takes some milliseconds, once per process. Members in
    plain PyTorch are measured at two small sizes, and their time is extrapolated.

    Args:
        losses: a loss, an ensemble, a name, or a list of losses and names.
        batch: number of samples B.
        dimension: numbers of an embedding D.
        references: number of references N that the batch is compared with. None: the batch itself.
        threads: number of threads. None: as many as PyTorch uses.
        samples_per_class: how many samples of a class the batch and the references hold.
        num_classes: for losses that are named and own proxies.
        dtype: of the embeddings. Half precisions are computed in float32.

    Returns:
        An `Explanation`. `print` shows it as text.

    Raises:
        ConfigError: a number is below 1, there are no losses, or the CPU extension is missing.
    """
    _check_sizes(batch, dimension, references, samples_per_class)
    threads = threads or torch.get_num_threads()
    dtype = torch.float64 if dtype == torch.float64 else torch.float32
    names, members = _members(losses, dimension, num_classes)
    members = [copy.deepcopy(loss).to("cpu", dtype) for loss in members]  # a memory or a random state of theirs stays as it is
    classes = min([count for loss in members if (count := _classes(loss))] or [batch + (references or 0) + 1])
    sample = _Sample(dimension, samples_per_class, classes, dtype)
    proxies = {len(parameter) for loss in members for parameter in loss.parameters() if parameter.ndim}
    # What runs together is found out by running a few samples, which are told from proxies by their number.
    few = next(n for n in range(3 * samples_per_class, 10**6) if n not in proxies)
    fewer = next(n for n in range(few + 1, 10**6) if n not in proxies)
    traced, plain = _trace(names, members, few, fewer if references else None, sample)
    sizes = {few: batch, fewer: references or 0}
    passes = [
        _planned(names_of, _at_size(recorded, sizes, proxies, batch / few, sample), threads, sample)
        for names_of, recorded in traced
    ]
    expected = [_plain(names[k], members[k], batch, references, sample) for k in plain]
    overhead = _overhead([members[k] for k in range(len(members)) if k not in plain], sample)
    against = "itself" if references is None else f"{references} references"
    cpu = info()["cpu"]
    title = (
        f"a batch of {batch} x {dimension} against {against}, {samples_per_class} samples per class, {str(dtype)[6:]}; "
        f"threads: {threads}; {cpu['level']}, products by {cpu['blas']}"
    )
    return Explanation(title, tuple(passes), tuple(expected), overhead)


def _check_sizes(batch: int, dimension: int, references: int | None, samples_per_class: int) -> None:
    for noun, number in (("batch", batch), ("dimension", dimension), ("samples_per_class", samples_per_class)):
        if number < 1:
            raise ConfigError(f"{noun} must be at least 1, got {number}")
    if references is not None and references < 1:
        raise ConfigError(f"references must be at least 1, or None for the batch itself, got {references}")
    if reason := extension.why_not("cpu"):
        raise ConfigError(f"there is nothing to plan: {reason}")


def _at_size(recorded: Pass, sizes: dict[int, int], proxies: set[int], growth: float, sample: _Sample) -> Pass:
    """A pass of the traced samples as it would be for the real numbers of them."""
    anchors, labels, references, reference_labels = recorded[:4]
    if len(anchors) not in sizes and len(anchors) not in proxies:  # pairs of one class: as many for each sample
        anchors, labels = _more_pairs(anchors, labels, growth)
    else:
        anchors, labels = _enlarged(anchors, labels, sizes, sample)
    if references is not None and reference_labels is not None:
        references, reference_labels = _enlarged(references, reference_labels, sizes, sample)
    calls = tuple(_for_anchors(call, len(anchors)) for call in recorded.calls)
    relations = recorded.relations._replace(own=None)
    return Pass(anchors, labels, references, reference_labels, calls, recorded.normalise, relations)


def _planned(names: tuple[str, ...], pass_: Pass, threads: int, sample: _Sample) -> PlannedPass:
    """What the planner does with a pass, and what that will cost."""
    with plan_options(threads=threads):
        plan = CpuPasses([pass_]).plan()
    rate = _product_rate(plan["tile_rows"], plan["tile_columns"], sample.width, sample.dtype)
    products = (3 if plan["stored_bytes"] else 4) * 2 * plan["cells"] * sample.width / rate / plan["threads"]
    count, alike = None, 0
    if pass_.references is not None and pass_.reference_labels is not None:
        count, alike = len(pass_.references), int(torch.unique(pass_.reference_labels, return_counts=True)[1].max())
    costs = [_loss_rate(call, sample.per_class, alike, sample.dtype) * plan["cells"] / plan["threads"] for call in pass_.calls]
    return PlannedPass(names, len(pass_.anchors), count, plan, rate / 1e9, products, tuple(costs))


def _trace(
    names: Sequence[str], members: Sequence[Any], batch: int, references: int | None, sample: _Sample
) -> tuple[list[tuple[tuple[str, ...], Pass]], list[int]]:
    """The passes of one call with the names of their members, and the indices of the members that take part in none."""

    def run(losses: Sequence[Any]) -> list[Pass]:
        x, y = sample.draw(batch)
        against = sample.against(references) if not all(loss.needs_classes for loss in losses) else {}
        with recorded_passes() as recorded, torch.no_grad():
            (losses[0] if len(losses) == 1 else LossEnsemble(list(losses)))(x, y, **against)
        return recorded

    fused = [k for k, loss in enumerate(members) if run([loss])]
    plain = [k for k in range(len(members)) if k not in fused]
    waiting = list(fused)
    traced = []
    for recorded in run([members[k] for k in fused]) if fused else []:
        names_of = []
        for call in recorded.calls:
            owner = next((k for k in waiting if _functor(members[k]) == call.functor), waiting[0])
            waiting.remove(owner)
            names_of.append(names[owner])
        traced.append((tuple(names_of), recorded))
    return traced, plain


def _functor(loss: Any) -> str:
    call = loss.functor_call() if isinstance(loss, RowLoss) else None
    return call.functor if isinstance(call, FunctorCall) else ""


def _enlarged(vectors: Tensor, labels: Tensor, sizes: dict[int, int], sample: _Sample) -> tuple[Tensor, Tensor]:
    """Vectors and labels of one side of a traced pass at its real size. Proxies stay."""
    if len(vectors) not in sizes:
        return vectors, labels
    count = sizes[len(vectors)]
    return torch.ones(count, vectors.shape[1], dtype=vectors.dtype), torch.arange(count) // sample.per_class % sample.classes


def _more_pairs(vectors: Tensor, labels: Tensor, growth: float) -> tuple[Tensor, Tensor]:
    """Vectors that are pairs of the traced samples, and their labels, for `growth` times as many classes of the same size."""
    count = round(len(vectors) * growth)
    per_class = int(torch.unique(labels, return_counts=True)[1].max()) if count else 1
    return torch.ones(count, vectors.shape[1], dtype=vectors.dtype), torch.arange(count) // per_class


def _call(loss: Any, batch: int, references: int | None, sample: _Sample) -> Callable[[], Tensor]:
    x, y = sample.draw(batch)
    x.requires_grad_()
    against = {} if references is None or loss.needs_classes else sample.against(references)
    return lambda: loss(x, y, **against)


def _plain(name: str, loss: Any, batch: int, references: int | None, sample: _Sample) -> PlainLoss:
    seconds, saved = [], []
    for count in PLAIN:
        run = _call(loss, count, None if references is None else max(1, count * references // batch), sample)
        saved.append(_saved_bytes(run))
        seconds.append(_fastest(lambda run=run: run().backward()))
    low, high = PLAIN
    slopes = [(after - before) / (high**2 - low**2) for before, after in (saved, seconds)]  # per square of the samples
    extra_bytes, extra_seconds = (max(slope, 0.0) * (batch**2 - low**2) for slope in slopes)
    return PlainLoss(name, loss.why_not_fused, max(0, int(saved[0] + extra_bytes)), max(0.0, seconds[0] + extra_seconds))


def _overhead(members: Sequence[Any], sample: _Sample) -> float:
    if not members:
        return 0.0
    run = _call(members[0] if len(members) == 1 else LossEnsemble(list(members)), 8, None, sample)
    run().backward()
    return _fastest(lambda: run().backward(), 5)
