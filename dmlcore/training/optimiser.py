"""What all optimizers share: a group per role (trunk, head, proxies, learnable scalars of losses, ensemble weights), rates and
clipping. The optimizers themselves are plugins.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from dmlcore.errors import ConfigError, PluginError
from dmlcore.training.setting_groups.optimiser import OptimiserSettings

if TYPE_CHECKING:
    from dmlcore.ensemble import LossEnsemble
    from dmlcore.models import EmbeddingModel


@dataclass(frozen=True)
class NoOptimizerOptions:
    """Options of an optimizer that has none."""


class Optimizer:
    """A rule that turns gradients into steps.

    Args:
        options: an instance of `Options`.
    """

    name: ClassVar[str] = ""
    climbs: ClassVar[bool] = False
    """Whether the gradient is taken a second time, where `perturbation` moves the weights of the model to. Then both passes see
    the same batch, the same random numbers and the same state of the losses, and batch statistics are updated once."""
    Options: ClassVar[type] = NoOptimizerOptions

    def __init__(self, options: Any = None) -> None:
        self.options: Any = self.Options() if options is None else options

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimizer over groups of parameters, all of whose state its `state_dict` has.

        Args:
            groups: dicts with `params`, `lr`, `weight_decay`, and keys of dmlcore (`role`, `base_rate`), which must stay.
        """
        raise NotImplementedError(f"the optimizer '{self.name}' must write build()")

    def perturbation(self, parameters: Sequence[nn.Parameter]) -> list[torch.Tensor]:
        """What is added to each parameter before the second pass.

        Args:
            parameters: of the model, with gradients. In float16 these are all scaled by one unknown number.
        """
        raise NotImplementedError(f"the optimizer '{self.name}' climbs, so it must write perturbation()")


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


def build_optimiser(
    model: EmbeddingModel, ensemble: LossEnsemble, settings: OptimiserSettings, optimizer: Optimizer
) -> torch.optim.Optimizer:
    """An optimizer over `parameter_groups`.

    Raises:
        ConfigError: there is no parameter.
        PluginError: the plugin gives no optimizer, or one over other groups.
    """
    groups = parameter_groups(model, ensemble, settings)
    if not groups:
        raise ConfigError("there is nothing to train: neither the model nor a loss has weights. Choose another --model")
    built = optimizer.build(groups)
    if not isinstance(built, torch.optim.Optimizer) or [group.get("role") for group in built.param_groups] != [
        group["role"] for group in groups
    ]:
        raise PluginError(f"the optimizer '{optimizer.name}' must build a torch.optim.Optimizer over the groups it is given")
    return built


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
