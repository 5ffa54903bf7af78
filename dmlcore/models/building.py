"""Building a model from its name and options, with a seed. The trunks and the head have modules of their own."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from dmlcore import plugins
from dmlcore.config import build_options, check_range
from dmlcore.errors import ConfigError, PluginError
from dmlcore.models.embedding import EmbeddingModel
from dmlcore.models.naming import find_trunk
from dmlcore.models.python_model import PythonModel


def default_image_size(name: str | None = None, options: dict[str, Any] | None = None) -> int:
    """The side to which image files of different sizes are best brought for a model, pixels: for `open_data`.

    Args:
        name: as for `build_model`.
        options: of the trunk.

    Raises:
        ConfigError: no such trunk, an unknown option.
    """
    component, implied = find_trunk(name, "images")
    return component.image_size(build_options(component.Options, {**implied, **(options or {})}, component.name))


def build_model(
    name: str | nn.Module | None = None,
    *,
    sample_shape: tuple[int, ...],
    kind: str,
    embedding_dim: int = 64,
    options: dict[str, Any] | None = None,
    normalize: bool = True,
    head_norm: Literal["none", "layer"] = "none",
    seed: int = 0,
    **head: Any,
) -> EmbeddingModel:
    """A model with freshly drawn (or, if its options say so, trained) weights. The global random state is left as it was.

    Args:
        name: a trunk's name, or one that it claims; None: the default of the kind of data. Or a module of your own as the
            trunk, samples to features [B, F], of which a copy is taken.
        sample_shape: of one sample, (C, H, W) or (F,).
        kind: `images` or `features`.
        embedding_dim: D >= 1.
        options: of the trunk.
        normalize: embeddings of unit norm.
        head_norm: `layer` puts a LayerNorm between trunk and head.
        seed: of the weights.
        head: heads, student, compressor and so on, as `EmbeddingModel` takes them.

    Raises:
        ConfigError: an unknown name or option, a trunk that cannot take this data.
    """
    check_range("embedding_dim", embedding_dim, least=1)
    module = name if isinstance(name, nn.Module) else None
    component, implied = (PythonModel, {}) if isinstance(name, nn.Module) else find_trunk(name, kind)
    trunk_options = build_options(component.Options, {**implied, **(options or {})}, component.name)
    if kind not in component.accepts:
        fitting = sorted(entry.name for entry in plugins.registry("model").values() if kind in entry.component.accepts)
        raise ConfigError(
            f"model '{component.name}' takes {' and '.join(sorted(component.accepts))}, but the data are {kind}."
            f" Models for {kind}: {', '.join(fitting)}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trunk = component(trunk_options, sample_shape) if module is None else PythonModel(trunk_options, sample_shape, module)
        if not isinstance(getattr(trunk, "features", None), int):
            raise PluginError(f"model '{component.name}' does not set 'features', the columns of its output")
        return EmbeddingModel(trunk, embedding_dim, normalize=normalize, head_norm=head_norm, **head)
