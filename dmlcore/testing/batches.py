"""The batches that losses and miners are checked on: the ordinary one, and those that break careless code."""

from __future__ import annotations

import torch
from torch import Tensor

WIDTH, CLASSES = 6, 5


def labels() -> dict[str, Tensor]:
    """Labels by the name of their batch."""
    return {
        "random": torch.tensor([2, 0, 1, 1, 3, 0, 2, 2, 3, 1, 0, 4]),
        "one sample": torch.tensor([1]),
        "one class": torch.tensor([2, 2, 2, 2]),
        "all different": torch.arange(5),
        "pairs": torch.tensor([0, 0, 1, 1, 2, 2]),
    }


def batches() -> dict[str, tuple[Tensor, Tensor]]:
    """Embeddings `[B, 6]` float64 and labels 0..4 by name, the same every time."""
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(CLASSES, WIDTH, generator=generator, dtype=torch.float64)
    by_name = {
        name: (centres[y] + 0.8 * torch.randn(len(y), WIDTH, generator=generator, dtype=torch.float64), y)
        for name, y in labels().items()
    }
    x, y = by_name["random"]
    by_name["duplicates"] = (torch.cat([x[:4], x[:4]]), torch.cat([y[:4], y[:4]]))
    by_name["collapsed"] = (x[:1].repeat(8, 1), y[:8])
    by_name["zero vectors"] = (torch.cat([x[:5], torch.zeros_like(x[:2])]), y[:7])
    return by_name


def near(a: Tensor, b: Tensor, tolerance: float = 1e-7) -> bool:
    """Whether two tensors agree, relative to the larger of 1 and the largest number of the second."""
    return bool((a - b).abs().max() <= tolerance * (1 + b.abs().max())) if a.numel() else a.shape == b.shape
