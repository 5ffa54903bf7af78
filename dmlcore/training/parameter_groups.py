"""The groups of parameters that an optimizer steps, each with a role, a rate and a decay."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from dmlcore.errors import ConfigError
from dmlcore.models.stages import stages_of
from dmlcore.training.setting_groups.optimiser import OptimiserSettings
from dmlcore.training.setting_groups.rates import RateSettings

if TYPE_CHECKING:
    from dmlcore.ensemble import LossEnsemble
    from dmlcore.models import EmbeddingModel

OF_MODEL = ("trunk", "head")


def parameter_groups(
    model: EmbeddingModel,
    ensembles: Sequence[LossEnsemble],
    settings: OptimiserSettings,
    rates: RateSettings,
    against_heads: Iterable[nn.Parameter] = (),
) -> list[dict[str, Any]]:
    """Groups for an optimiser, each with `role`, `params`, `base_rate` and `weight_decay`. Roles without parameters are left
    out, and frozen parameters are in no group. A role has several groups where its parameters differ in rate or decay.

    By default only the trunk and the head decay: proxies are used by direction, and a loss's own numbers have no business near
    zero.

    Raises:
        ConfigError: a rate or a decay of its own for a role that has no parameters.
    """
    assert settings.learning_rate is not None
    roles = _parameters_by_role(model, ensembles, rates)
    roles["head"] += against_heads
    factors = {
        "trunk": 1.0,
        "head": rates.head_factor,
        "proxies": rates.proxies_factor,
        "classifier": rates.proxies_factor if rates.classifier_factor is None else rates.classifier_factor,
        "scalars": rates.scalars_factor,
        "weights": rates.weights_factor,
    }
    decays = {
        "trunk": settings.weight_decay,
        "head": settings.weight_decay if rates.head_decay is None else rates.head_decay,
        "proxies": rates.proxies_decay or 0.0,
        "classifier": (rates.proxies_decay or 0.0) if rates.classifier_decay is None else rates.classifier_decay,
        "scalars": rates.scalars_decay or 0.0,
        "weights": rates.weights_decay or 0.0,
    }
    _check_roles(roles, rates)
    groups = []
    for role, parameters in roles.items():
        for part, factor in _by_depth(model, parameters, rates.layer_decay) if role == "trunk" else [(parameters, 1.0)]:
            base = settings.learning_rate * factors[role] * factor
            for same, decay in _by_decay(part, decays[role], rates.decay_vectors or role not in OF_MODEL):
                if same:
                    groups.append({"role": role, "params": same, "lr": base, "base_rate": base, "weight_decay": decay})
    return groups


def _parameters_by_role(
    model: EmbeddingModel, ensembles: Sequence[LossEnsemble], rates: RateSettings
) -> dict[str, list[nn.Parameter]]:
    owned: dict[str, list[nn.Parameter]] = {}
    for role, parameters in (item for ensemble in ensembles for item in ensemble.parameter_roles().items()):
        owned.setdefault(role, []).extend(parameters)
    members = [loss for ensemble in ensembles for loss in ensemble.members] if rates.parts_classifiers else []
    classifiers = [p for loss in members for p in loss.classifier_parameters()]
    roles = {
        "trunk": list(model.trunk.parameters()),
        "head": [
            *model.head.parameters(),
            *(model.student.parameters() if model.student is not None else ()),
            *model.distill_heads.parameters(),
        ],
        "proxies": _without(owned.get("proxies", []), classifiers),
        "classifier": list({id(p): p for p in classifiers}.values()),
        "scalars": _without(owned.get("scalars", []), classifiers),
        "weights": list(owned.get("weights", [])),
    }
    return {role: [p for p in parameters if p.requires_grad] for role, parameters in roles.items()}


def _without(parameters: Iterable[nn.Parameter], left_out: list[nn.Parameter]) -> list[nn.Parameter]:
    numbers = {id(p) for p in left_out}
    return [p for p in parameters if id(p) not in numbers]


def _check_roles(roles: dict[str, list[nn.Parameter]], rates: RateSettings) -> None:
    """Refuse what is said of a role that nothing has."""
    names = {
        "head": "the model has no embedding head that is trained",
        "proxies": "no loss has proxies",
        "classifier": "no loss has a classifier of its own, as cross_entropy has",
        "scalars": "no loss has learnable numbers",
        "weights": "the weighting learns no weights",
    }
    for role, why in names.items():
        for key in (f"{role}_decay", f"{role}_factor", f"{role}_warmup"):
            default = RateSettings.__dataclass_fields__[key].default  # a factor is there without being said
            is_said = getattr(rates, key) != default and (default is None or key.endswith("warmup"))
            if not roles[role] and is_said:
                raise ConfigError(f"{key} is {getattr(rates, key)}, but {why}. Leave it out")


def _by_depth(
    model: EmbeddingModel, parameters: list[nn.Parameter], decay: float
) -> Iterator[tuple[list[nn.Parameter], float]]:
    """Parameters of the trunk by the factor on their rate: 1 for the last stage, `decay` for the one before it, and so on."""
    if decay == 1:
        yield parameters, 1.0
        return
    stages = stages_of(model.trunk)
    left = {id(p): p for p in parameters}
    for number, stage in enumerate(stages):
        part = [left.pop(id(p)) for p in stage.parameters() if id(p) in left]
        yield part, decay ** (len(stages) - 1 - number)
    assert not left


def _by_decay(parameters: list[nn.Parameter], decay: float, decays_vectors: bool) -> Iterator[tuple[list[nn.Parameter], float]]:
    if decays_vectors or decay == 0:
        yield parameters, decay
        return
    yield [p for p in parameters if p.ndim > 1], decay
    yield [p for p in parameters if p.ndim <= 1], 0.0
