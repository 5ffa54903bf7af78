"""A row of the report on fidelity, and how two statements of an equation are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

import dmlcore

SEEDS = (0, 1, 2)  # of the batches on which a loss is compared
EXACT = 1e-9  # relative, in float64: what is farther apart is not the same equation

Status = Literal["agrees", "documented", "differs"]


@dataclass(frozen=True)
class Row:
    """What a publication has, and what dmlcore has for it.

    Attributes:
        component: of the publication.
        source: where the publication states it.
        ours: how it is had here.
        status: `agrees`; `documented`: it deviates on purpose, and `evidence` says by how much; `differs`: a fault.
        evidence: what was measured, or which test shows it.
    """

    component: str
    source: str
    ours: str
    status: Status
    evidence: str


@dataclass(frozen=True)
class Distance:
    """How far apart two statements are, relative to the size of the published one.

    Attributes:
        value: of the value.
        gradient: of the gradient, over all leaves.
        cosine: of the angle between the gradients.
        length: of our gradient in units of the published one.
    """

    value: float
    gradient: float
    cosine: float
    length: float


def distance(published: Callable[..., Tensor], ours: Callable[..., Tensor], leaves: Sequence[Tensor]) -> Distance:
    """Compare values and gradients of two functions of the same float64 leaves.

    Args:
        published: the transcription.
        ours: of dmlcore.
        leaves: what both take; gradients are taken for each.
    """
    (value, gradient), (our_value, our_gradient) = (_value_and_gradient(function, leaves) for function in (published, ours))
    norm, our_norm = float(gradient.norm()), float(our_gradient.norm())
    return Distance(
        abs(our_value - value) / max(abs(value), 1e-300),
        float((our_gradient - gradient).norm()) / max(norm, 1e-300),
        float(gradient @ our_gradient) / max(norm * our_norm, 1e-300),
        our_norm / max(norm, 1e-300),
    )


def _value_and_gradient(function: Callable[..., Tensor], leaves: Sequence[Tensor]) -> tuple[float, Tensor]:
    inputs = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    value = function(*inputs)
    gradients = torch.autograd.grad(value, inputs, allow_unused=True)
    parts = [torch.zeros_like(i) if g is None else g for i, g in zip(inputs, gradients, strict=True)]
    return float(value.detach()), torch.cat([part.flatten() for part in parts])


def distances_of_loss(
    published: Callable[[Tensor, Tensor], Tensor], name: str, *, samples: int = 24, **options: Any
) -> list[Distance]:
    """A loss beside its transcription, on several batches.

    Args:
        published: from raw embeddings [N, D] and labels [N] to the value.
        name: of the loss.
        samples: N.
        options: of the loss.
    """
    distances = []
    for seed in SEEDS:
        x, labels = batch(seed, samples)
        loss = dmlcore.losses.create(name, **options).double()
        distances.append(distance(lambda e, y=labels: published(e, y), lambda e, y=labels, f=loss: f(e, y), [x]))
    return distances


def distances_with_proxies(
    published: Callable[[Tensor, Tensor, Tensor], Tensor], name: str, *, classes: int = 6, **options: Any
) -> list[Distance]:
    """As `distances_of_loss`, by embeddings and proxies. `published` takes the proxies [C, D] between the two others."""
    distances = []
    for seed in SEEDS:
        x, labels = batch(seed, classes=classes)
        torch.manual_seed(seed)
        loss = dmlcore.losses.create(name, num_classes=classes, embedding_dim=x.shape[1], **options).double()

        def ours(e: Tensor, proxies: Tensor, loss: Any = loss, y: Tensor = labels) -> Tensor:
            return torch.func.functional_call(loss, {"proxies": proxies}, (e, y))

        distances.append(distance(lambda e, p, y=labels: published(e, p, y), ours, [x, loss.proxies.detach()]))
    return distances


def same(component: str, source: str, ours: str, distances: Sequence[Distance] | Distance) -> Row:
    """A row of something that must agree in value and gradient."""
    several = [distances] if isinstance(distances, Distance) else list(distances)
    value, gradient = max(d.value for d in several), max(d.gradient for d in several)
    status: Status = "agrees" if max(value, gradient) <= EXACT else "differs"
    return Row(component, source, ours, status, f"value {_short(value)}, gradient {_short(gradient)}")


def equal(component: str, source: str, ours: str, error: float, what: str, limit: float = EXACT) -> Row:
    """A row of numbers that must agree.

    Args:
        component, source, ours: as of a row.
        error: the largest relative error.
        what: was compared.
        limit: of the error.
    """
    return Row(component, source, ours, "agrees" if error <= limit else "differs", f"{what}: {_short(error)}")


def _short(error: float) -> str:
    return f"{error:.0e}" if error else "0"


def batch(seed: int, samples: int = 24, classes: int = 6, width: int = 8) -> tuple[Tensor, Tensor]:
    """Raw embeddings [N, D] float64 around a centre per class, and labels [N], each class equally often and mixed."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % classes
    centres = torch.randn(classes, width, generator=generator, dtype=torch.float64)
    return centres[labels] + 0.9 * torch.randn(samples, width, generator=generator, dtype=torch.float64), labels
