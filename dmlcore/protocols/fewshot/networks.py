"""The network of all arms: one trunk and embedding for a data set, with a softmax layer on top for classifiers."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from dmlcore import plugins
from dmlcore.models import build_model

Init = Literal["default", "normal", "xavier", "published"]
INITS: dict[Init, str] = {
    "default": "as PyTorch draws each layer",
    "normal": "weights from N(0, 1), biases of 0",
    "xavier": "Xavier uniform weights, as in the authors' later note",
    "published": "weights and biases from N(0, 1), as in the paper's code",
}
"""How weights can be drawn."""
MOMENTUM = (
    0.9  # of running statistics, as the authors' code: after ten steps at PyTorch's 0.1 they still lag behind the weights
)


class Classifier(nn.Module):
    """An embedding network with a ReLU and a softmax layer.

    Args:
        network: samples to embeddings `[B, D]`, taken over as it is.
        width: D.
        classes: C.
    """

    def __init__(self, network: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.network = network
        self.head = nn.Linear(width, classes)

    def forward(self, samples: Tensor) -> Tensor:
        """Logits `[B, C]`."""
        return self.head(self.network(samples).relu())


def build_network(
    name: str | None,
    *,
    options: dict[str, Any],
    sample_shape: tuple[int, ...],
    kind: str,
    embedding_dim: int,
    init: Init,
    seed: int,
) -> nn.Module:
    """The embedding network: raw embeddings `[B, D]`, the same weights for the same seed.

    Args:
        name, options: of the trunk, as `dmlcore.models.build_model`. Without a name features take one that can begin at random.
        sample_shape, kind: of the data.
        embedding_dim: D.
        init: how weights are drawn.
        seed: of the weights.
    """
    network = build_model(
        name or plugins.defaults().TRUNKS_AT_RANDOM.get(kind),
        sample_shape=sample_shape,
        kind=kind,
        embedding_dim=embedding_dim,
        options=options,
        normalize=False,
        seed=seed,
    )
    for layer in network.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.momentum = MOMENTUM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        draw_weights(network, init)
    return network


def build_classifier(network: nn.Module, width: int, classes: int, init: Init, seed: int) -> Classifier:
    """A classifier on a network, with a fresh softmax layer; arguments as above."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = Classifier(network, width, classes)
        draw_weights(classifier.head, init)
    return classifier


def draw_weights(module: nn.Module, init: Init) -> None:
    """Draw all matrices and kernels anew from the global generator, and their biases for `published`; else these are 0. Layers
    that normalise stay."""
    if init == "default":
        return
    with torch.no_grad():
        for layer in module.modules():
            weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
            if not isinstance(weight, nn.Parameter) or weight.ndim < 2:
                continue
            nn.init.xavier_uniform_(weight) if init == "xavier" else nn.init.normal_(weight)
            if isinstance(bias, nn.Parameter):
                nn.init.normal_(bias) if init == "published" else nn.init.zeros_(bias)


def copy_of(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module by value: later steps do not change it."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
