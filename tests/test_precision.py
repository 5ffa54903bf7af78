"""Losses at norms from tiny to huge and scales of any kind: float32 against the definition in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from dmlcore.config import build_options
from dmlcore.errors import ConfigError
from dmlcore.losses import Loss, create, names
from dmlcore.plugins import registry

NORMS = (1e-10, 1e-3, 1.0, 30.0, 1e3, 1e7, 1e10)
FACTORS = ("scale", "gamma", "beta", "alpha", "temperature")
LABELS = torch.arange(8).repeat_interleave(4)


def variants(name: str) -> list[dict[str, Any]]:
    """The defaults, and every factor of exponents at values that are powers of two and that are not."""
    fields = registry("loss")[name].component.Options.__dataclass_fields__
    changed = [{field: value} for field in FACTORS if field in fields for value in (0.05, 0.9, 1.0, 64.0)]
    changed += [{"distance": "dot"}] if "distance" in fields else []
    return [{}, *(options for options in changed if is_in_range(name, options))]


def is_in_range(name: str, options: dict[str, Any]) -> bool:
    try:
        build_options(registry("loss")[name].component.Options, options, name)
    except ConfigError:  # a beta that is a distance, say
        return False
    return True


def value_and_gradients(loss: Loss, x: Tensor, *, plain: bool) -> list[Tensor]:
    leaf = x.clone().requires_grad_()
    value = (loss.reference if plain else loss)(leaf, LABELS)
    gradients = torch.autograd.grad(value, [leaf, *loss.parameters()], allow_unused=True)
    return [value.detach(), *(gradient for gradient in gradients if gradient is not None)]


def error(results: list[Tensor], exact: list[Tensor]) -> float:
    """The largest relative error, each tensor by its own norm."""
    pairs = zip(results, exact, strict=True)
    return max(float((a.double() - b).norm() / b.norm().clamp_min(1e-300)) for a, b in pairs)


@pytest.mark.parametrize("name", names())
def test_float32_holds_at_every_norm_and_scale(name: str) -> None:
    """Rounding errors of float32, or few times those of the plain definition: a gradient at a hinge may lose more."""
    generator = torch.Generator().manual_seed(1)
    directions = torch.nn.functional.normalize(torch.randn(32, 16, generator=generator))
    lengths = 1 + torch.rand(32, 1, generator=generator)
    for options in variants(name):
        loss = create(name, num_classes=8, embedding_dim=16, **options)
        double = copy.deepcopy(loss).double()
        for norm in NORMS:
            x = directions * norm * lengths
            exact = value_and_gradients(double, x.double(), plain=True)
            fused, plain = (error(value_and_gradients(loss, x, plain=way), exact) for way in (False, True))
            assert fused <= max(5e-6, 4 * plain), f"{options} at norm {norm}: {fused}, plain {plain}"


@pytest.mark.parametrize("scale", [0.05, 0.9, 1.0, 64.0, 100.0])
def test_sphereface_is_as_precise_as_float32_where_logits_are_huge(scale: float) -> None:
    torch.manual_seed(0)
    loss = create("sphereface", num_classes=8, embedding_dim=16, scale=scale)
    double = copy.deepcopy(loss).double()
    for norm in (1e3, 1e5, 1e7, 1e10):
        x = torch.nn.functional.normalize(torch.randn(32, 16)) * norm
        exact = value_and_gradients(double, x.double(), plain=True)
        assert error(value_and_gradients(loss, x, plain=False), exact) < 2e-6
