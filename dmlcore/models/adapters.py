"""Low-rank adapters (LoRA) in a network: its own weights are frozen, and a product of two narrow matrices beside each linear
layer is trained. The layers themselves are those of peft.
"""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor, nn

from dmlcore.errors import ConfigError

_SCALE = 2  # alpha over rank, as most recipes have it
_BASE, _ADAPTER = ".base_layer.", ".lora_"  # in peft's names of weights


def add_adapters(network: nn.Module, rank: int) -> None:
    """Put an adapter beside each linear layer of a network, or beside each convolution where it has no linear layer, and freeze
    all else. At first the adapters change nothing.

    Args:
        network: changed in place.
        rank: columns of the smaller matrices, >= 1.

    Raises:
        ConfigError: peft is missing, or the network has no such layers.

    Source: Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen, "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022,
    eq. 3, with `alpha = 2 rank`.
    """
    try:
        peft = importlib.import_module("peft")
    except ImportError as error:
        raise ConfigError(f"low-rank adapters need the package peft ({error}): `pip install peft`, or set lora to 0") from None
    layers: list[str] = []
    for kind in (nn.Linear, nn.Conv2d):
        layers = layers or [name for name, module in network.named_modules() if type(module) is kind and _can_adapt(module)]
    if not layers:
        raise ConfigError("low-rank adapters need linear layers or convolutions, but this network has none")
    settings = peft.LoraConfig(r=rank, lora_alpha=_SCALE * rank, lora_dropout=0.0, target_modules=layers)
    peft.inject_adapter_in_model(settings, network)


def merge_adapters(network: nn.Module) -> None:
    """Add what adapters have learnt to the weights beside which they stand, and take them out. Changed in place."""
    for name, module in list(network.named_modules()):
        if hasattr(module, "base_layer"):
            layer: Any = module
            layer.merge()
            parent, _, attribute = name.rpartition(".")
            setattr(network.get_submodule(parent), attribute, layer.base_layer)


def own_weights(network: nn.Module) -> dict[str, Tensor]:
    """A network's state without adapters, by the names that it has without them."""
    return {name.replace(_BASE, "."): value for name, value in network.state_dict().items() if _ADAPTER not in name}


def _can_adapt(layer: nn.Module) -> bool:
    return getattr(layer, "groups", 1) == 1  # a convolution in groups has no small product of matrices
