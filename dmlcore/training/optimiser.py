"""AdamW with one group per role: trunk, head, proxies, learnable scalars of losses, ensemble weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import nn

from dmlcore.errors import ConfigError
from dmlcore.training.settings import OptimiserSettings

if TYPE_CHECKING:
    from dmlcore.ensemble import LossEnsemble
    from dmlcore.models import EmbeddingModel


def parameter_groups(model: EmbeddingModel, ensemble: LossEnsemble, settings: OptimiserSettings) -> list[dict]:
    """Groups for an optimiser, each with `role`, `params`, `base_rate` and `weight_decay`; empty roles are left out.

    Only the trunk and the head decay: proxies are used by direction, and a loss's own numbers have no business near zero.
    """
    assert settings.learning_rate is not None
    head = [*model.head.parameters(), *(model.student.parameters() if model.student is not None else ())]
    roles: dict[str, tuple[list[nn.Parameter], float, float]] = {
        "trunk": (list(model.trunk.parameters()), 1.0, settings.weight_decay),
        "head": (head, settings.head_factor, settings.weight_decay),
    }
    owned = ensemble.parameter_roles()
    for role, rate in (
        ("proxies", settings.proxies_factor),
        ("scalars", settings.scalars_factor),
        ("weights", settings.weights_factor),
    ):
        roles[role] = (list(owned.get(role, [])), rate, 0.0)
    groups = []
    for role, (parameters, rate, decay) in roles.items():
        parameters = [p for p in parameters if p.requires_grad]
        if parameters:
            base = settings.learning_rate * rate
            groups.append({"role": role, "params": parameters, "lr": base, "base_rate": base, "weight_decay": decay})
    return groups


def build_optimiser(model: EmbeddingModel, ensemble: LossEnsemble, settings: OptimiserSettings) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`.

    Raises:
        ConfigError: there is no parameter.
    """
    groups = parameter_groups(model, ensemble, settings)
    if not groups:
        raise ConfigError("there is nothing to train: neither the model nor a loss has weights. Choose another --model")
    return torch.optim.AdamW(groups)


def set_rates(optimiser: torch.optim.Optimizer, factor: float) -> dict[str, float]:
    """Set every group's learning rate to its base rate times the schedule's factor; returns the rates by role."""
    for group in optimiser.param_groups:
        group["lr"] = group["base_rate"] * factor
    return {group["role"]: group["lr"] for group in optimiser.param_groups}


def clip(optimiser: torch.optim.Optimizer, limit: float | None) -> torch.Tensor:
    """Clip gradients by norm, the model's and those of the losses' own numbers apart, since proxies have far larger ones.

    Ensemble weights are left alone: the gradient of a penalty on their sum would use the limit up.

    Args:
        optimiser: after backward, before step.
        limit: the largest norm; None only measures.

    Returns:
        [2] norms before clipping: the model's, the losses'.
    """
    norms = []
    for is_model in (True, False):
        parameters = [
            p
            for group in optimiser.param_groups
            if group["role"] != "weights" and (group["role"] in ("trunk", "head")) == is_model
            for p in group["params"]
        ]
        norms.append(_clip(parameters, limit))
    return torch.stack(norms)


def _clip(parameters: Iterable[nn.Parameter], limit: float | None) -> torch.Tensor:
    parameters = list(parameters)
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros((), device=parameters[0].device if parameters else None)
    norm = nn.utils.get_total_norm(gradients)
    if limit is not None:
        nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm.detach()
