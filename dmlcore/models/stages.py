"""The stages of a network, from its input to its output: what learns slower the earlier it stands, or is not trained."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

_ENOUGH = 4  # stages; a network that is divided into fewer is divided further


@dataclass
class Stage:
    """A part of a network.

    Attributes:
        modules: whose parameters it has, without those of other stages.
        own: parameters that no module of these has, such as the tokens of a transformer.
    """

    modules: list[nn.Module]
    own: list[nn.Parameter]

    def parameters(self) -> list[nn.Parameter]:
        """All of them."""
        return [*self.own, *(parameter for module in self.modules for parameter in module.parameters())]


def stages_of(network: nn.Module) -> list[Stage]:
    """The stages of a network, the first one first.

    A network is divided into its children in the order in which they were registered. While fewer than four of these have
    weights, the one with most layers is divided in the same way. So the stages of a ResNet are its stem and its four rows of
    blocks, and those of a transformer are its patches and its single blocks. What has no matrix, such as a last
    normalisation, belongs to the stage before it. Tokens and positions belong to the first stage.

    Args:
        network: any. One without parameters has no stages.

    Returns:
        Stages that together have all parameters. One that several modules share may be in several stages.
    """
    units = _merged([Stage([network], [])]) if any(True for _ in network.parameters()) else []
    while len(units) < _ENOUGH:
        divisible = [unit for unit in units if any(_children(module) for module in unit.modules)]
        if not divisible:
            break
        largest = max(divisible, key=_layers)  # of equals the first
        place = next(number for number, unit in enumerate(units) if unit is largest)
        units[place : place + 1] = _divided(largest)
        units = _merged(units)
    return units


def _children(module: nn.Module) -> list[nn.Module]:
    return [child for child in module.children() if next(child.parameters(), None) is not None]


def _layers(unit: Stage) -> int:
    return sum(parameter.ndim > 1 for parameter in unit.parameters())


def _divided(unit: Stage) -> list[Stage]:
    """The children of the module with most layers, each a stage, and the other modules of the unit around them."""
    largest = max((m for m in unit.modules if _children(m)), key=lambda m: _layers(Stage([m], [])))
    parts: list[Stage] = []
    for module in unit.modules:
        children = _children(module) if module is largest else []
        parts += [Stage([child], []) for child in children or [module]]
        if children:
            parts[-len(children)].own += module.parameters(recurse=False)
    parts[0].own = [*unit.own, *parts[0].own]
    return parts


def _merged(units: list[Stage]) -> list[Stage]:
    """Units without a matrix are joined with the one before them, or at the beginning with the next one."""
    merged: list[Stage] = []
    for unit in units:
        if merged and (not _layers(unit) or not _layers(merged[-1])):
            merged[-1] = Stage([*merged[-1].modules, *unit.modules], [*merged[-1].own, *unit.own])
        else:
            merged.append(unit)
    return merged
