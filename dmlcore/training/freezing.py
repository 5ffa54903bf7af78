"""What of a trunk stays as it was through all of training: stages, and the normalisation of batches."""

from __future__ import annotations

import functools

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dmlcore.errors import ConfigError
from dmlcore.models import Trunk
from dmlcore.models.stages import stages_of
from dmlcore.training.setting_groups.rates import RateSettings


def freeze_parts(trunk: Trunk, rates: RateSettings, recipe: str | None = None) -> None:
    """Freeze what the settings say. To be called before an optimiser is built.

    Frozen parameters get no gradient and no decay. Frozen stages, and BatchNorm layers whose statistics are frozen, compute in
    training what they compute in an evaluation, whatever `train` is called with. So running means stay, and nothing is dropped.

    Args:
        trunk: changed in place. Its parameters keep their names.
        rates: the settings.
        recipe: that the run follows, which may have set them.

    Raises:
        ConfigError: more stages than the trunk has, or no BatchNorm.
    """
    if rates.trainable_stages is not None:
        _freeze_stages(trunk, rates.trainable_stages)
    if rates.freeze_norm != "none":
        layers = [module for module in trunk.modules() if isinstance(module, _BatchNorm)]
        if not layers:
            by = "" if recipe is None else f", as the recipe '{recipe}' may say,"
            raise ConfigError(
                f"freeze_norm is '{rates.freeze_norm}'{by} but the model '{trunk.name}' has no BatchNorm layers. Say"
                f" --freeze-norm none, or take a model with such layers"
            )
        for layer in layers:
            if rates.freeze_norm == "all":
                layer.requires_grad_(False)
            _stay_in_evaluation(layer)


def _freeze_stages(trunk: Trunk, trainable: int) -> None:
    stages = stages_of(trunk)
    if trainable > len(stages):
        raise ConfigError(
            f"trainable_stages is {trainable}, but the model '{trunk.name}' has {len(stages)} stages. Leave it out to train all"
        )
    if not trainable:
        trunk.requires_grad_(False)
        _stay_in_evaluation(trunk)
    for stage in stages[: len(stages) - trainable]:
        for parameter in stage.parameters():
            parameter.requires_grad_(False)
        for module in stage.modules:
            _stay_in_evaluation(module)


def _stay_in_evaluation(module: nn.Module) -> None:
    module.__class__ = _fixed(type(module))  # a class, so that copies of the model stay so as well
    module.eval()


@functools.cache
def _fixed(kind: type[nn.Module]) -> type[nn.Module]:
    def train(self: nn.Module, mode: bool = True) -> nn.Module:
        return kind.train(self, False)

    return type(kind.__name__, (kind,), {"train": train, "__module__": kind.__module__})
