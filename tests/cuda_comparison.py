"""How a CUDA result is judged, and what a step must hold to, on the emulator and on a device alike."""

from __future__ import annotations

from typing import Any

import torch
from cases import BATCHES, Case, embeddings_of, value_and_gradients
from torch import Tensor

from dmlcore.kernels import FunctorCall, fused_rows


def batch_of(case: Case, name: str) -> tuple[Tensor, Tensor]:
    """A batch of the table; for losses that take nearest points one where no two chosen ones are equally far to float32."""
    x, y = BATCHES[name]
    return (embeddings_of(y, seed=4), y) if name == "large" and case.takes_nearest else (x, y)


def compare(case: Case, x: Tensor, y: Tensor, device: str = "cpu", **keywords: Tensor) -> None:
    """Fused in float32 against the definition in float64 of the same rounded inputs: at most twice the error of torch."""
    low, exact = case.create(torch.float32).to(device), case.create().to(device)
    exact.load_state_dict(low.state_dict())
    x, y = x.to(device), y.to(device)
    single = {name: (tensor.float() if tensor.is_floating_point() else tensor).to(device) for name, tensor in keywords.items()}
    double = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in single.items()}
    result = value_and_gradients(low, x.float(), y, low, **single)
    own = value_and_gradients(low, x.float(), y, low.reference, **single)
    truth = value_and_gradients(exact, x.float().double(), y, exact.reference, **double)
    # beside twice torch's error: a few roundings, because at this size torch is often exactly right by luck
    assert abs(result[0].double() - truth[0]) <= 2 * abs(own[0].double() - truth[0]) + 1e-5 * abs(truth[0]) + 1e-6
    inputs = [x, *low.parameters()]
    for vectors, *gradients in zip(inputs, result[1], own[1], truth[1], strict=True):
        norms = vectors.detach().double()
        norms = norms.norm(dim=1, keepdim=True) if norms.ndim > 1 else torch.ones_like(norms)
        # a gradient goes with 1 / norm, and the norms differ by 10^16: compare what does not
        g, o, t = (gradient.double() * torch.where(norms > 0, norms, 1.0) for gradient in gradients)
        if case.takes_nearest:  # which of coincident points is nearest, the last bit decides: add them up
            _, place = torch.unique(vectors.detach(), dim=0, return_inverse=True)
            g, o, t = (torch.zeros_like(t).index_add_(0, place, gradient) for gradient in (g, o, t))
        if t.numel():
            assert (g - t).abs().max() <= 2 * (o - t).abs().max() + 1e-5 * t.abs().max() + 1e-6


FIVE = (
    FunctorCall("ms", (2.0, 50.0, 0.5, 0.1)),
    FunctorCall("contrastive", (0.0, 1.0)),
    FunctorCall("sup_con", (0.1,)),
    FunctorCall("circle", (0.4, 80.0)),
    FunctorCall("triplet_semihard", (0.1,)),
)
"""An ensemble of every kind of loss: with limits, hinges, log-sums and slots."""


def five_rows(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values and counts of `FIVE`, and the gradient of the sum of the values."""
    leaf = x.detach().requires_grad_()
    values, counts = fused_rows(leaf, y, None, None, FIVE)
    values.sum().backward()
    assert leaf.grad is not None
    return values.detach(), counts, leaf.grad


def same_bits_every_time(x: Tensor, y: Tensor) -> None:
    first = five_rows(x, y)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, five_rows(x, y), strict=True))


def autocast_does_not_reach_in(x: Tensor, y: Tensor) -> None:
    """Half precision is widened, and a region of autocast changes nothing."""
    for dtype in (torch.float16, torch.bfloat16):
        low, single = five_rows(x.to(dtype), y), five_rows(x.to(dtype).float(), y)
        assert torch.equal(low[0], single[0]) and low[2].dtype == dtype
        assert torch.equal(low[2], single[2].to(dtype))
        with torch.autocast(x.device.type, dtype):
            assert all(torch.equal(a, b) for a, b in zip(five_rows(x.to(dtype), y), low, strict=True))


def scaler_skips_what_is_not_finite(x: Tensor, y: Tensor) -> None:
    """`GradScaler` leaves a step out when an embedding is not finite, and takes the next one."""
    weight = torch.nn.Parameter(torch.ones(x.shape[1], device=x.device))
    optimiser = torch.optim.SGD([weight], 0.1)
    scaler = torch.amp.GradScaler(x.device.type, init_scale=1024.0)
    for bad in (True, False):
        start, batch = weight.detach().clone(), x.clone()
        if bad:
            batch[1, 0] = torch.inf
        optimiser.zero_grad()
        values, counts = fused_rows(batch * weight, y, None, None, FIVE)
        scaler.scale(values.sum() / counts.sum()).backward()
        scaler.step(optimiser)
        scaler.update()
        assert torch.equal(weight, start) is bad
        assert torch.isfinite(weight).all()
    assert scaler.get_scale() == 512.0


def compiled_rows(x: Tensor, y: Tensor, **options: Any) -> None:
    """`torch.compile` of a step gives what the eager step gives."""

    def step(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return fused_rows(x, y, None, None, FIVE)

    compiled = torch.compile(step, **options)
    expected = five_rows(x, y)
    for _ in range(3):  # the first calls record, the later ones replay
        leaf = x.detach().clone().requires_grad_()
        values, counts = compiled(leaf, y)
        values.sum().backward()
        assert leaf.grad is not None
        results = (values.detach(), counts, leaf.grad)
        assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))
