"""How fast a loss is: fused, its definition, the definition under `torch.compile`, and the bare products any of them needs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dmlcore.config import check_range
from dmlcore.errors import ConfigError
from dmlcore.kernels import info
from dmlcore.losses import Loss, ProxyLoss
from dmlcore.testing.statements import where_both_stand

PER_CLASS = 4
LEAST = 5  # repeats of the slowest arm, whatever the time

Repeat = Callable[[], object]


def bench(
    loss_class: type[Loss],
    *,
    samples: int = 1024,
    dimensions: int = 128,
    seconds: float = 5.0,
    device: str = "cpu",
    options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Time forward and backward of a loss, every form in turn, after their results were compared.

    Args:
        loss_class: the class; losses that own proxies get `samples / 4` classes.
        samples: B, four of each class.
        dimensions: D.
        seconds: of measuring, beside compiling and warming up; at least five repeats are made.
        device: `cpu` or `cuda`.
        options: options by name.

    Returns:
        `loss`, `options`, `samples`, `dimensions`, `device`, `threads`, `is_fused`, `why_not_fused`, and `rows`: `form`,
        `milliseconds` (median), `fast`, `slow` (20 and 80 % quantiles), `repeats`, `ratio` (to the bare products), or `failed`,
        the reason why it was not timed.

    Raises:
        ConfigError: sizes out of range, no such device, or a fused form that differs from the definition.
    """
    _check_sizes(samples, dimensions, seconds, device)
    torch.manual_seed(0)
    classes = max(samples // PER_CLASS, 2)
    loss = loss_class(num_classes=classes, embedding_dim=dimensions, **(options or {})).to(device)
    labels = (torch.arange(samples) % classes).to(device)
    centres = torch.randn(classes, dimensions)
    x = functional.normalize(centres[labels.cpu()] + 0.7 * torch.randn(samples, dimensions)).to(device)
    arms: dict[str, Repeat] = {"bare products": _products(loss, x, classes)}
    if loss.is_fused:
        _compare(loss, x, labels)
        arms["fused"] = _step(loss, loss, x, labels)
    arms["definition"] = _step(loss, loss.reference, x, labels)
    arms["definition, torch.compile"] = _step(loss, torch.compile(loss.reference), x, labels)
    return {
        "loss": loss.name,
        "options": {} if options is None else options,
        "samples": samples,
        "dimensions": dimensions,
        "device": torch.cuda.get_device_name() if device == "cuda" else f"cpu, {info()['cpu']['level']}",
        "threads": torch.get_num_threads(),
        "is_fused": loss.is_fused,
        "why_not_fused": loss.why_not_fused,
        "rows": _timed(arms, seconds, device),
    }


def _check_sizes(samples: int, dimensions: int, seconds: float, device: str) -> None:
    check_range("samples", samples, least=2 * PER_CLASS)
    check_range("dimensions", dimensions, least=2)
    check_range("seconds", seconds, above=0)
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is 'cuda', but torch sees no CUDA device")
    if device not in ("cpu", "cuda"):
        raise ConfigError(f"device is '{device}', but must be cpu or cuda")


def _step(loss: Loss, compute: Callable[[Tensor, Tensor], Tensor], x: Tensor, labels: Tensor) -> Repeat:
    """Forward and backward, as in training; gradients are thrown away."""
    leaf = x.clone().requires_grad_()

    def run() -> None:
        compute(leaf, labels).backward()
        leaf.grad = None
        loss.zero_grad(set_to_none=True)

    return run


def _products(loss: Loss, x: Tensor, classes: int) -> Repeat:
    """The matrix products of forward and backward alone, into memory that is there already, in parts of 1024 anchors."""
    is_proxy = isinstance(loss, ProxyLoss)
    references = functional.normalize(torch.randn(classes, x.shape[1])).to(x) if is_proxy else x
    rows = min(len(x), 1024)
    s, grad_x, grad_references = x.new_empty(rows, len(references)), x.new_empty(rows, x.shape[1]), torch.zeros_like(references)

    def run() -> None:
        for start in range(0, len(x), rows):
            part = x[start : start + rows]
            count = len(part)
            torch.mm(part, references.T, out=s[:count])
            torch.mm(s[:count], references, out=grad_x[:count])
            if is_proxy:  # a batch with itself has one gradient, not two
                grad_references.addmm_(s[:count].T, part)

    return run


def _compare(loss: Loss, x: Tensor, labels: Tensor) -> None:
    fused, plain = float(loss(x, labels).detach()), float(loss.reference(x, labels).detach())
    if not abs(fused - plain) <= 1e-3 * (1 + abs(plain)):
        raise ConfigError(
            f"the fused form of {loss.name} gives {fused}, its definition {plain}; see `dmlcore plugins check {loss.name}`."
            f" {where_both_stand(loss)}".rstrip()
        )


def _timed(arms: dict[str, Repeat], seconds: float, device: str) -> list[dict[str, Any]]:
    failed: dict[str, str] = {}
    for name, run in arms.items():
        try:
            for _ in range(2):  # compiling, and what is made on first use
                run()
        except Exception as error:  # no compiler, or too little memory: the others are still of interest
            failed[name] = " ".join(f"{type(error).__name__}: {error}".split())[:160]
    wait: Repeat = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    times: dict[str, list[float]] = {name: [] for name in arms if name not in failed}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, times.values())) < LEAST:
        for name in times:
            wait()
            began = time.perf_counter()
            arms[name]()
            wait()
            times[name].append(1e3 * (time.perf_counter() - began))
    products = statistics.median(times["bare products"])
    rows: list[dict[str, Any]] = []
    for name in arms:
        if name in failed:
            rows.append({"form": name, "failed": failed[name]})
            continue
        ordered = sorted(times[name])
        last = len(ordered) - 1
        middle = statistics.median(ordered)
        rows.append(
            {
                "form": name,
                "milliseconds": middle,
                "fast": ordered[round(0.2 * last)],
                "slow": ordered[round(0.8 * last)],
                "repeats": len(ordered),
                "ratio": middle / products,
            }
        )
    return rows
