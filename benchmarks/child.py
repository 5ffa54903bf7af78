"""One measurement of the benchmark of losses, in its own process: `python -m benchmarks.child JSON` prints the row as JSON.

The peak of memory is that of the rival's first step in this fresh process, before anything else of that size was allocated;
then the rival, the fused loss and the bare products take turns. A step is forward and backward, as a user calls it.
"""

from __future__ import annotations

import gc
import json
import math
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import dmlcore
from benchmarks.cases import Measurement, has_pairs, has_proxies, members, peer
from benchmarks.measuring import Row, interleaved, malloc_settings, peak_of, quantiles

PER_CLASS = 4
PRODUCT_ROWS = 8192  # the bare products take so many rows at a time: more would need gigabytes for a matrix nobody keeps
CHECKED = 256  # samples on which fused is compared with the definition before anything is timed
Compute = Callable[[Tensor, Tensor], Tensor]


def data(count: int, width: int, classes: int = 0) -> tuple[Tensor, Tensor]:
    """A batch of `count` points of unit norm, four per class in random order: `[N, D]`, `[N]`; labels below `classes`."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) // PER_CLASS
    labels = labels[torch.randperm(count, generator=generator)]
    centres = torch.randn(int(labels.max()) + 1, width, generator=generator)
    x = functional.normalize(centres[labels] + 0.7 * torch.randn(count, width, generator=generator))
    return x, labels % classes if classes else labels


def build(measurement: Measurement) -> Any:
    """The case's losses as one module: an ensemble, or the loss alone."""
    torch.manual_seed(0)
    sizes = {"num_classes": max(measurement.classes, 1), "embedding_dim": measurement.d}
    losses = [dmlcore.losses.create(member.loss, **sizes, **member.options) for member in members(measurement.case)]
    return losses[0] if len(losses) == 1 else dmlcore.LossEnsemble(losses)


def definition(module: Any) -> Compute:
    """The module's value by the plain definitions."""
    if not isinstance(module, dmlcore.LossEnsemble):
        return module.reference
    return lambda x, y: sum((loss.reference(x, y) for loss in module.members), torch.zeros(()))


def products(measurement: Measurement, module: Any, x: Tensor) -> Callable[[], object]:
    """The bare matrix products of forward and backward, into memory that is there already."""
    n, d = x.shape
    rows = min(n, PRODUCT_ROWS) if n <= PRODUCT_ROWS else 1024
    s, g = torch.empty(rows, n), torch.empty(n, d)
    # a loss with several centres per class multiplies with all of them
    count = sum(loss.proxies.numel() // d for loss in _losses(module) if loss.needs_classes)
    p = functional.normalize(torch.randn(max(count, 1), d))
    sp, gp, gx = torch.empty(len(p), n), torch.empty(len(p), d), torch.empty(n, d)

    def run() -> None:
        if has_pairs(measurement.case):
            for i in range(0, n, rows):
                torch.mm(x[i : i + rows], x.T, out=s[: min(rows, n - i)])
                torch.mm(s[: min(rows, n - i)], x, out=g[i : i + rows])
        if has_proxies(measurement.case):
            torch.mm(p, x.T, out=sp)
            torch.mm(sp, x, out=gp)
            torch.mm(sp.T, p, out=gx)

    return run


def _losses(module: Any) -> list[Any]:
    return list(module.members) if isinstance(module, dmlcore.LossEnsemble) else [module]


def step(module: Any, compute: Compute, x: Tensor, y: Tensor) -> Callable[[], float]:
    """One forward and backward pass; gradients are thrown away afterwards."""
    leaf = x.clone().requires_grad_()

    def run() -> float:
        value = compute(leaf, y)
        value.backward()
        leaf.grad = None
        module.zero_grad(set_to_none=True)
        return float(value.detach())

    return run


def rival_of(measurement: Measurement, module: Any) -> Compute:
    """What the measurement's rival computes."""
    if measurement.rival in ("fused", "threads"):
        return module
    if measurement.rival == "plain":
        return definition(module)
    if measurement.rival == "compiled":
        return torch.compile(definition(module))
    peers = [peer(member, max(measurement.classes, 1), measurement.d) for member in members(measurement.case)]
    return lambda x, y: sum((loss(x, y) for loss in peers), torch.zeros(()))


def check(measurement: Measurement, module: Any) -> None:
    """Fused = definition on a small batch.

    Raises:
        AssertionError: they differ.
    """
    x, y = data(min(measurement.n, CHECKED), measurement.d, measurement.classes)
    fused, plain = float(module(x, y).detach()), float(definition(module)(x, y).detach())
    if not math.isclose(fused, plain, rel_tol=2e-4, abs_tol=1e-6):
        raise AssertionError(f"{measurement.case}: fused gives {fused}, the definition {plain}")


def measure(measurement: Measurement, seconds: float) -> Row:
    """A row without what is common to all: times, ratios, memory.

    Args:
        measurement: what to measure.
        seconds: of repeats; the first step and one round are always run.
    """
    torch.set_num_threads(measurement.threads)
    module = build(measurement)
    check(measurement, module)
    compute = rival_of(measurement, module)
    # libraries load and warm up on something small; a compiled function is made for one size
    warm = data(measurement.n if measurement.rival == "compiled" else 64, measurement.d, measurement.classes)
    for _ in range(2):
        step(module, compute, *warm)()
    del warm
    x, y = data(measurement.n, measurement.d, measurement.classes)
    run = step(module, compute, x, y)
    gc.collect()
    clock = time.perf_counter if measurement.rival == "threads" else time.process_time
    began = clock()
    value: list[float] = []
    peak = peak_of(lambda: value.append(run()))
    first = clock() - began
    gradients = 4 * (x.numel() + sum(parameter.numel() for parameter in module.parameters())) / 2**20
    row: Row = {"value": value[0], "first_seconds": first}
    # compiling left memory behind that the step may use: its peak would be too small
    row["peak_mb"] = math.nan if measurement.rival == "compiled" else max(peak - gradients, 0.0)

    arms = _arms(measurement, module, run, x, y)
    slow = first > seconds
    if first > 4 * seconds:  # the step that is measured already has to do
        del arms[measurement.rival]

    def prepare(name: str) -> None:
        # a new number of threads starts or ends some, and a core that rested wakes slowly: no user pays that at each step
        if measurement.rival == "threads":
            torch.set_num_threads(measurement.threads if name == "threads" else 1)
            for _ in range(3):
                run()

    times = interleaved(arms, budget=seconds, least=1 if slow else 3, most=1 if slow else 400, clock=clock, prepare=prepare)
    times.setdefault(measurement.rival, [first])
    return row | _figures(measurement, times)


def _arms(
    measurement: Measurement, module: Any, run: Callable[[], object], x: Tensor, y: Tensor
) -> dict[str, Callable[[], object]]:
    """What takes turns: the rival's step, the fused one and the bare products."""
    arms = {measurement.rival: run}
    if measurement.rival == "threads":
        arms = {"threads": run, "one": run}
    elif measurement.rival != "fused":
        arms["fused"] = step(module, module, x, y)
    arms["products"] = products(measurement, module, x)
    for name, arm in arms.items():
        if name != measurement.rival:
            arm()
    return arms


def _figures(measurement: Measurement, times: dict[str, list[float]]) -> Row:
    """The columns that follow from the seconds of every arm."""
    middle = {name: quantiles(seconds)[0] for name, seconds in times.items()}
    median, low, high = quantiles(times[measurement.rival])
    return {
        "seconds": median,
        "low": low,
        "high": high,
        "repeats": len(times[measurement.rival]),
        "clock": "wall" if measurement.rival == "threads" else "cpu",
        "products_seconds": middle["products"],
        "ratio_to_products": median / middle["products"],
        "ratio_to_fused": median / middle["fused"] if "fused" in middle else math.nan,
        "speedup": middle["one"] / median if "one" in middle else math.nan,
        "microseconds": 1e6 * median,
        "members": len(members(measurement.case)),
    }


def main() -> None:
    request = json.loads(sys.argv[1])
    if request["megabytes"]:  # private memory that can be written to: what a rival allocates
        limit = int(request["megabytes"]) << 20
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    measurement = Measurement(**request["measurement"])
    try:
        row = {**measure(measurement, request["seconds"]), "status": "ok"}
    except MemoryError as error:
        row = {"status": "memory", "detail": str(error)}
    except RuntimeError as error:
        if "alloc" not in str(error) and "memory" not in str(error):
            raise
        row = {"status": "memory", "detail": " ".join(str(error).split())[:200]}
    print(json.dumps({**row, "allocator": malloc_settings()}))


if __name__ == "__main__":
    main()
