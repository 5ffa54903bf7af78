"""How a CUDA result is judged, on the emulator and on a device alike."""

from __future__ import annotations

import torch
from cases import Case, value_and_gradients
from torch import Tensor


def compare(case: Case, x: Tensor, y: Tensor, device: str = "cpu", **keywords: Tensor) -> None:
    """Fused in float32 against the definition in float64 of the same rounded inputs: at most twice the error of torch."""
    low, exact = case.create(torch.float32).to(device), case.create().to(device)
    exact.load_state_dict(low.state_dict())
    x, y = x.to(device), y.to(device)
    single = {name: (tensor.float() if tensor.is_floating_point() else tensor).to(device) for name, tensor in keywords.items()}
    double = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in single.items()}
    mine = value_and_gradients(low, x.float(), y, low, **single)
    own = value_and_gradients(low, x.float(), y, low.reference, **single)
    truth = value_and_gradients(exact, x.float().double(), y, exact.reference, **double)
    # beside twice torch's error: a few roundings, because at this size torch is often exactly right by luck
    assert abs(mine[0].double() - truth[0]) <= 2 * abs(own[0].double() - truth[0]) + 1e-5 * abs(truth[0]) + 1e-6
    inputs = [x, *low.parameters()]
    for vectors, *gradients in zip(inputs, mine[1], own[1], truth[1], strict=True):
        norms = vectors.detach().double()
        norms = norms.norm(dim=1, keepdim=True) if norms.ndim > 1 else torch.ones_like(norms)
        # a gradient goes with 1 / norm, and the norms differ by 10^16: compare what does not
        g, o, t = (gradient.double() * torch.where(norms > 0, norms, 1.0) for gradient in gradients)
        if case.takes_nearest:  # which of coincident points is nearest, the last bit decides: add them up
            _, place = torch.unique(vectors.detach(), dim=0, return_inverse=True)
            g, o, t = (torch.zeros_like(t).index_add_(0, place, gradient) for gradient in (g, o, t))
        if t.numel():
            assert (g - t).abs().max() <= 2 * (o - t).abs().max() + 1e-5 * t.abs().max() + 1e-6
