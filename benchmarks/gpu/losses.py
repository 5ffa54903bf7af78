"""The tables of losses: forward and backward of one loss and of five, also from a CUDA graph; and InfoNCE of large batches."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.cases import members, peer
from benchmarks.child import data, definition
from benchmarks.gpu.devices import Device, Run
from benchmarks.gpu.turns import Budget, Build, Missing, failure, measure
from benchmarks.measuring import Row
from dmlcore.kernels import plan_options
from dmlcore.kernels.jit.driver import why_not_there

SINGLES = ("ms", "contrastive", "sup_con", "circle", "triplet hard")
CASES = (*SINGLES, "five")
PRODUCT_CELLS = 1 << 28  # similarities of the bare products at a time: 1 GiB of float32
TEMPERATURE = 0.07
TOGETHER = "one launch"
"""The rival that is the fused form with one kernel for all losses that can share it."""


@dataclass(frozen=True)
class Group:
    """Arms on one case and size; `fused` and `products` are always among them."""

    case: str
    n: int
    d: int
    rivals: tuple[str, ...]
    precision: str = "high"
    dtype: torch.dtype = torch.float32


def groups(sizes: tuple[int, ...], widths: tuple[int, ...]) -> Iterator[Group]:
    """What is measured, the most telling first: every size fused, then precisions, then beside pytorch-metric-learning and
    torch.compile, which takes long to compile. Where time runs out, the rest says so."""
    for d in widths:
        for n in sizes:
            for case in CASES:
                yield Group(case, n, d, ())
    middle = sizes[-2:][0]
    yield Group("five", middle, widths[0], (), "highest")
    yield Group("five", middle, widths[0], (), dtype=torch.bfloat16)
    for n in sizes:
        yield Group("five", n, widths[0], (TOGETHER,))
    for rival in ("pml", "compiled"):
        for d in widths:
            for case in ("five", *SINGLES):
                for n in sizes if rival == "pml" else [n for n in sizes if n <= 8192][-3:]:
                    yield Group(case, n, d, (rival,))


def run_losses(
    device: Device, budget: Budget, sizes: tuple[int, ...], widths: tuple[int, ...], seconds: float
) -> Iterator[Row]:
    """Rows of the table `losses`.

    Args:
        sizes: numbers of samples, ascending multiples of four.
        widths: dimensions.
        seconds: of repeats per group of arms.
    """
    before = torch.get_float32_matmul_precision()
    try:
        for group in groups(sizes, widths):
            torch.set_float32_matmul_precision(group.precision)
            for rival, row in measure(device, arms(device, group), budget, seconds).items():
                yield {**_columns("losses", group, rival), **row}
    finally:
        torch.set_float32_matmul_precision(before)


def arms(device: Device, group: Group) -> dict[str, Build]:
    """The bare products, the fused loss and the group's rivals."""
    builds: dict[str, Build] = {"products": lambda: products(device, group)}
    return builds | {rival: lambda rival=rival: arm(device, group, rival) for rival in ("fused", *group.rivals)}


def run_graphs(device: Device, budget: Budget, sizes: tuple[int, ...], widths: tuple[int, ...]) -> Iterator[Row]:
    """Rows of the table `calls`: seconds per call of small batches as a user makes them, and of a CUDA graph's replay.

    `milliseconds` is the wall time per call of many in a row, `device_ms` the median of the device's own time for one.
    """
    for case in ("five", "ms"):
        for d in widths:
            for n in sizes:
                group = Group(case, n, d, ())
                for rival in ("fused", "fused graph"):
                    row: Row = {"status": "time", "detail": "the table's time was up"}
                    if budget.left() > 0:
                        try:
                            run = arm(device, group, "fused", keep_gradient=True)
                            run()
                            run = device.graph(run) if rival == "fused graph" else run
                            run()
                            own = sorted(device.seconds(run) for _ in range(budget.repeats))
                            wall = device.calls(run, 10 * budget.repeats)
                            row = {"status": "ok", "milliseconds": 1e3 * wall, "device_ms": 1e3 * own[len(own) // 2]}
                            row["repeats"] = 10 * budget.repeats
                        except Exception as error:
                            row = failure(error)
                            device.release()
                    yield {**_columns("calls", group, rival), **row}


def run_contrast(device: Device, budget: Budget, sizes: tuple[int, ...], width: int, seconds: float) -> Iterator[Row]:
    """Rows of the table `infonce`: two views of a batch, both directions, in bfloat16, beside memeff."""
    for n in sizes:
        group = Group("infonce", n, width, ("memeff",), dtype=torch.bfloat16)
        for rival, row in measure(device, contrast_arms(device, group), budget, seconds).items():
            yield {**_columns("infonce", group, rival), **row}


def contrast_arms(device: Device, group: Group) -> dict[str, Build]:
    """Two views of a batch: the bare products, the fused loss and memeff."""
    return {
        "products": lambda: contrast_products(device, group),
        "fused": lambda: _contrast(device, group, _own_contrast),
        "memeff": lambda: _contrast(device, group, _memeff),
    }


def _columns(table: str, group: Group, rival: str) -> Row:
    dtype = str(group.dtype).removeprefix("torch.")
    return {
        "table": table,
        "case": group.case,
        "rival": rival,
        "n": group.n,
        "d": group.d,
        "dtype": dtype,
        "precision": group.precision,
    }


def products(device: Device, group: Group) -> Run:
    """`E E^T` and `G E`, the bare products of forward and backward, in memory that is there already."""
    x = data(group.n, group.d)[0].to(device.torch, group.dtype)
    rows = max(1, min(group.n, PRODUCT_CELLS // group.n))
    s, g = x.new_empty(rows, group.n), torch.empty_like(x)

    def run() -> None:
        for i in range(0, group.n, rows):
            part = s[: min(rows, group.n - i)]
            torch.mm(x[i : i + rows], x.T, out=part)
            torch.mm(part, x, out=g[i : i + rows])

    return run


def arm(device: Device, group: Group, rival: str, keep_gradient: bool = False) -> Run:
    """One step, forward and backward, of a case: fused, its definition plain or compiled, or from pytorch-metric-learning."""
    module = build(group.case).to(device.torch)
    x, y = data(group.n, group.d)
    leaf, labels = x.to(device.torch, group.dtype).requires_grad_(), y.to(device.torch)
    compute: Callable[[Tensor, Tensor], Tensor] = module
    if rival == "plain":
        compute = definition(module)
    elif rival == "compiled":
        compute = device.compiled(definition(module))
    elif rival == "pml":
        compute = _peer(group)
    elif rival == TOGETHER:
        compute = _together(module)
    if keep_gradient:
        leaf.grad = torch.zeros_like(leaf)

    def run() -> Tensor:
        value = compute(leaf, labels)
        value.backward()
        if not keep_gradient:
            leaf.grad = None
        return value.detach()

    return run


def _together(module: Any) -> Callable[[Tensor, Tensor], Tensor]:
    if reason := why_not_there():
        raise Missing(reason)

    def compute(x: Tensor, y: Tensor) -> Tensor:
        with plan_options(one_launch=1), warnings.catch_warnings():
            warnings.simplefilter("error")  # that each loss has kept its own
            return module(x, y)

    return compute


def build(case: str) -> Any:
    """The case's losses as one module."""
    import dmlcore

    torch.manual_seed(0)
    losses = [dmlcore.losses.create(member.loss, **member.options) for member in members(case)]
    return losses[0] if len(losses) == 1 else dmlcore.LossEnsemble(losses)


def _peer(group: Group) -> Callable[[Tensor, Tensor], Tensor]:
    try:
        importlib.import_module("pytorch_metric_learning")
    except ImportError:
        raise Missing("pytorch-metric-learning is not installed") from None
    peers = [peer(member, 1, group.d) for member in members(group.case)]
    return lambda x, y: torch.stack([loss(x, y) for loss in peers]).sum()


def contrast_products(device: Device, group: Group) -> Run:
    """The products of both directions: the similarities once, and a product for the gradient of either side."""
    x = data(group.n, group.d)[0].to(device.torch, group.dtype)
    rows = max(1, min(group.n, PRODUCT_CELLS // group.n))
    s, g, h = x.new_empty(rows, group.n), torch.empty_like(x), torch.empty_like(x)

    def run() -> None:
        for i in range(0, group.n, rows):
            part = s[: min(rows, group.n - i)]
            torch.mm(x[i : i + rows], x.T, out=part)
            torch.mm(part, x, out=g[i : i + rows])
            torch.addmm(h, part.T, x[i : i + rows], out=h)

    return run


def _contrast(device: Device, group: Group, make: Callable[[int], Callable[[Tensor, Tensor], Tensor]]) -> Run:
    compute = make(group.n)
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(group.n, group.d, generator=generator)
    second = first + 0.7 * torch.randn(group.n, group.d, generator=generator)
    views = [functional.normalize(view).to(device.torch, group.dtype).requires_grad_() for view in (first, second)]

    def run() -> Tensor:
        value = compute(*views)
        value.backward()
        for view in views:
            view.grad = None
        return value.detach()

    return run


def _own_contrast(n: int) -> Callable[[Tensor, Tensor], Tensor]:
    import dmlcore

    loss = dmlcore.losses.create("nt_xent", temperature=TEMPERATURE)

    def compute(a: Tensor, b: Tensor) -> Tensor:
        labels = torch.arange(n, device=a.device)
        there = loss(a, labels, references=b, reference_labels=labels)
        return (there + loss(b, labels, references=a, reference_labels=labels)) / 2

    return compute


def _memeff(n: int) -> Callable[[Tensor, Tensor], Tensor]:
    try:
        module = importlib.import_module("memeff")
    except ImportError:
        raise Missing("memeff is not installed") from None
    return module.MemoryEfficientCLIPLoss(temperature=TEMPERATURE, stable=False)
