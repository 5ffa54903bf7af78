"""What a step will need of the device's memory, before it is taken."""

from __future__ import annotations

import torch

from dmlcore.models import EmbeddingModel

_SAMPLES = 2  # of the batch that is tried
_COPIES = 4  # of each weight: itself, its gradient and the two means of Adam


def bytes_of_a_step(
    model: EmbeddingModel, sample_shape: tuple[int, ...], samples: int, precision: str = "fp32", processes: int = 1
) -> int:
    """Bytes that weights, their optimiser and the activations of a training step need, about. Losses need little beside.

    What autograd keeps is counted in a forward pass of two samples and scaled to the batch. The model and the random numbers
    are left as they were.

    Args:
        model: on any device.
        sample_shape: of one sample.
        samples: that go through the model at once.
        precision: `fp32`, `bf16` or `fp16`.
        processes: among which weights are divided.
    """
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    kept: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    was_training = model.training
    statistics = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        model.train()
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                model(torch.zeros(_SAMPLES, *sample_shape, device=device))
    finally:
        model.train(was_training)
        with torch.no_grad():
            for buffer, before in statistics:
                buffer.copy_(before)
    activations = sum(kept.values()) * samples / _SAMPLES
    return int((weights + (_COPIES - 1) * trained) / processes + activations * (0.5 if precision != "fp32" else 1))


def told(size: int) -> str:
    """A size in words: `about 9 GB`."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"about {size / factor:.2g} {unit}" if size < 10 * factor else f"about {size / factor:.0f} {unit}"
    return "less than 1 MB"
