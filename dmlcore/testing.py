"""A conformance check for authors of losses: `check_loss(MyLoss)` in a test proves what users rely on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dmlcore.errors import PluginError
from dmlcore.losses import Loss


@dataclass(frozen=True)
class Check:
    """One property that was checked.

    Attributes:
        name: what was checked.
        passed: whether it holds.
        detail: what was found where it does not, or why it was not checked.
    """

    name: str
    passed: bool
    detail: str = ""


def _labels() -> dict[str, Tensor]:
    return {
        "random": torch.tensor([2, 0, 1, 1, 3, 0, 2, 2, 3, 1, 0, 4]),
        "one sample": torch.tensor([1]),
        "one class": torch.tensor([2, 2, 2, 2]),
        "all different": torch.arange(5),
        "pairs": torch.tensor([0, 0, 1, 1, 2, 2]),
    }


def _batches(width: int) -> dict[str, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(5, width, generator=generator, dtype=torch.float64)
    made = {
        name: (centres[y] + 0.8 * torch.randn(len(y), width, generator=generator, dtype=torch.float64), y)
        for name, y in _labels().items()
    }
    x, y = made["random"]
    made["duplicates"] = (torch.cat([x[:4], x[:4]]), torch.cat([y[:4], y[:4]]))
    made["collapsed"] = (x[:1].repeat(8, 1), y[:8])
    made["zero vectors"] = (torch.cat([x[:5], torch.zeros_like(x[:2])]), y[:7])
    return made


def _gradients(compute: Callable[[Tensor, Tensor], Tensor], loss: Loss, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.detach().clone().requires_grad_()
    value = compute(leaf, y)
    if not isinstance(value, Tensor) or value.ndim != 0:
        got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise AssertionError(f"forward must return a scalar tensor, got {got}")
    if not value.requires_grad:
        return value, torch.zeros_like(leaf)
    gradient = torch.autograd.grad(value, leaf, allow_unused=True)[0]
    return value.detach(), torch.zeros_like(leaf) if gradient is None else gradient


def _near(a: Tensor, b: Tensor, tolerance: float = 1e-7) -> bool:
    return bool((a - b).abs().max() <= tolerance * (1 + b.abs().max())) if a.numel() else a.shape == b.shape


def run_checks(loss_class: type[Loss], **options: Any) -> list[Check]:
    """Every check, passed or not; arguments as `check_loss`."""
    width, classes = 6, 5

    def create() -> Loss:
        torch.manual_seed(0)
        return loss_class(num_classes=classes, embedding_dim=width, **options).double()

    checks: list[Check] = []

    def check(name: str, run: Callable[[], str | None]) -> None:
        try:
            detail = run()
        except Exception as error:
            detail = f"{type(error).__name__}: {error}"
        checks.append(Check(name, not detail, detail or ""))

    batches = _batches(width)
    x, y = batches["random"]

    def has_contract() -> str | None:
        if not isinstance(loss_class, type) or not issubclass(loss_class, Loss):
            return "the class must derive from dmlcore.losses.Loss (or PairLoss, ProxyLoss)"
        if not getattr(loss_class, "name", None):
            return "the class needs a `name`"
        return None if loss_class.__doc__ else "the class needs a docstring: its formula and source"

    check("name, base class and docstring", has_contract)

    def batch_check(batch: str) -> Callable[[], str | None]:
        def run() -> str | None:
            loss = create()
            value, gradient = _gradients(loss, loss, *batches[batch])
            if not bool(torch.isfinite(value)):
                return f"the value is {value.item()}"
            return None if bool(torch.isfinite(gradient).all()) else "the gradient is not finite"

        return run

    for batch in batches:
        check(f"finite value and gradient: {batch}", batch_check(batch))

    def fused_is_plain() -> str | None:
        loss = create()
        for batch in ("random", "one class", "all different", "pairs"):
            mine = _gradients(loss, loss, *batches[batch])
            plain = _gradients(loss.reference, loss, *batches[batch])
            if not _near(mine[0], plain[0]) or not _near(mine[1], plain[1]):
                return f"forward and reference differ on the batch '{batch}': {mine[0].item()} and {plain[0].item()}"
        return None

    check("fused = plain, value and gradient", fused_is_plain)

    def order() -> str | None:
        loss, shuffle = create(), torch.tensor([7, 2, 11, 0, 9, 4, 10, 1, 3, 8, 6, 5])
        value, gradient = _gradients(loss, loss, x, y)
        other, other_gradient = _gradients(loss, loss, x[shuffle], y[shuffle])
        if not _near(other, value):
            return f"the value depends on the order of the batch: {value.item()} and {other.item()}"
        return None if _near(other_gradient, gradient[shuffle]) else "the gradient does not follow the order of the batch"

    check("order of the batch", order)

    def gradient() -> str | None:
        loss, leaf = create(), x.detach().clone().requires_grad_()
        torch.autograd.gradcheck(lambda t: loss(t, y), (leaf,), eps=1e-7, atol=1e-5, rtol=1e-4)
        return None

    check("gradient = finite differences", gradient)

    def low_precision() -> str | None:
        exact, loss = create(), create().float()
        value, _ = _gradients(loss, loss, x.float(), y)
        truth, _ = _gradients(exact, exact, x, y)
        return None if _near(value.double(), truth, 1e-4) else f"float32 gives {value.item()}, float64 {truth.item()}"

    check("float32", low_precision)

    def state() -> str | None:
        loss, other = create(), create()
        with torch.no_grad():
            for parameter in loss.parameters():
                parameter.add_(0.1)
        other.load_state_dict(loss.state_dict())
        return None if torch.equal(loss(x, y), other(x, y)) else "state_dict does not restore the loss"

    check("state round trip", state)

    def in_an_ensemble() -> str | None:
        from dmlcore.ensemble import LossEnsemble

        loss = create()
        total = LossEnsemble([loss], weights=[2.0])(x, y)
        return None if _near(total, 2 * loss(x, y)) else "an ensemble of weight 2 is not twice the loss"

    check("inside an ensemble", in_an_ensemble)
    return checks


def check_loss(loss_class: type[Loss], **options: Any) -> list[Check]:
    """Prove that a loss keeps its contract: shapes, degenerate batches, fused = plain, order, gradients, precision, state.

    Args:
        loss_class: the class (not an object); created with 5 classes and 6 dimensions where it owns proxies.
        options: options by name.

    Returns:
        The checks, all passed.

    Raises:
        PluginError: at least one failed; the message lists them.
    """
    checks = run_checks(loss_class, **options)
    failed = [check for check in checks if not check.passed]
    if failed:
        name = getattr(loss_class, "name", getattr(loss_class, "__name__", str(loss_class)))
        raise PluginError(
            f"loss '{name}' fails {len(failed)} of {len(checks)} checks: " + "; ".join(f"{c.name}: {c.detail}" for c in failed)
        )
    return checks
