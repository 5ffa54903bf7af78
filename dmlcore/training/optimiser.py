"""What all optimizers share: how they are built, their rates at a step, and clipping. The groups of parameters that they step
are in `parameter_groups`, and the optimizers themselves are plugins.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from dmlcore.errors import ConfigError, PluginError
from dmlcore.losses.parting import Part, squared_norm
from dmlcore.training.parameter_groups import OF_MODEL, parameter_groups
from dmlcore.training.setting_groups.optimiser import OptimiserSettings
from dmlcore.training.setting_groups.rates import RateSettings

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


def build_optimiser(
    model: EmbeddingModel,
    ensemble: LossEnsemble,
    settings: OptimiserSettings,
    optimizer: Optimizer,
    rates: RateSettings | None = None,
    further: Sequence[LossEnsemble] = (),
    against_heads: Iterable[nn.Parameter] = (),
    rows: Mapping[nn.Parameter, nn.Parameter] | None = None,
) -> torch.optim.Optimizer:
    """An optimizer over `parameter_groups`, of further losses and of what plays against the heads too. It steps `rows` in
    place of the parameters of which this process has some rows only.

    Raises:
        ConfigError: there is no parameter, or as `parameter_groups`.
        PluginError: the plugin gives no optimizer, or one over other groups.
    """
    groups = parameter_groups(model, [ensemble, *further], settings, rates or RateSettings(), against_heads)
    if not groups:
        raise ConfigError("there is nothing to train: neither the model nor a loss has weights. Choose another --model")
    if rows:
        groups = [{**group, "params": [rows.get(p, p) for p in group["params"]]} for group in groups]
    built = optimizer.build(groups)
    if not isinstance(built, torch.optim.Optimizer) or [group.get("role") for group in built.param_groups] != [
        group["role"] for group in groups
    ]:
        raise PluginError(f"the optimizer '{optimizer.name}' must build a torch.optim.Optimizer over the groups it is given")
    return built


def set_rates(optimiser: torch.optim.Optimizer, factor: float, of_roles: Mapping[str, float] | None = None) -> dict[str, float]:
    """Set every group's learning rate to its base rate times a factor, and times that of its role if it has one; returns the
    highest rate of each role."""
    rates: dict[str, float] = {}
    for group in optimiser.param_groups:
        rate = group["base_rate"] * factor
        group["lr"] = rate * (of_roles or {}).get(group["role"], 1.0)
        rates[group["role"]] = max(rates.get(group["role"], 0.0), group["lr"])
    return rates


def clip(optimiser: torch.optim.Optimizer, limit: float | None, parts: Collection[Part] = ()) -> torch.Tensor:
    """Clip gradients by norm, the model's and those of the losses' own numbers apart, since proxies have far larger ones.

    Ensemble weights are left alone: the gradient of a penalty on their sum would use the limit up.

    Args:
        optimiser: after backward, before step.
        limit: the largest norm; None only measures.
        parts: the parameters of which each of several processes has a part. Their norms are those of all parts.

    Returns:
        [2] norms before clipping: the model's, the losses'.
    """
    norms = []
    for is_model in (True, False):
        parameters = [
            p
            for group in optimiser.param_groups
            if group["role"] != "weights" and (group["role"] in OF_MODEL) == is_model
            for p in group["params"]
        ]
        norms.append(_clip(parameters, limit, parts))
    return torch.stack(norms)


_TO_NORMS = 1e-6  # what torch adds before it divides the limit


def _clip(parameters: Iterable[nn.Parameter], limit: float | None, parts: Collection[Part]) -> torch.Tensor:
    parameters = list(parameters)
    numbers = {id(p) for p in parameters}
    parts = [part for part in parts if id(part.parameter) in numbers]
    divided = {id(part.parameter) for part in parts}
    gradients = [p.grad for p in parameters if p.grad is not None and id(p) not in divided]
    norm = parameters[0].new_zeros(()) if parameters else torch.zeros(())
    if gradients:
        norm = nn.utils.get_total_norm(gradients)
    if parts:
        norm = (norm.double().square() + squared_norm(parts)).sqrt().to(norm.dtype)
    # asked of the CPU it costs less than multiplying by 1; elsewhere the host would wait
    is_short = limit is not None and norm.is_cpu and bool(norm + _TO_NORMS <= limit)
    if limit is not None and not is_short:
        nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm.detach()
