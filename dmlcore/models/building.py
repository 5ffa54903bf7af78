"""Building a model from its name and options, with a seed. The trunks and the head have modules of their own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from dmlcore import plugins
from dmlcore.config import build_options, check_range
from dmlcore.errors import ConfigError, PluginError
from dmlcore.models.embedding import EmbeddingModel
from dmlcore.models.heads import HeadNorm
from dmlcore.models.naming import find_trunk
from dmlcore.models.python_model import PythonModel
from dmlcore.models.trunks import Trunk


@dataclass(frozen=True)
class ImagesWanted:
    """What images a trunk was made for: what data become where the user says nothing else.

    Attributes:
        size: side, pixels.
        interpolation: how image files are resized.
    """

    size: int = 64
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"


def images_wanted(name: str | None = None, options: dict[str, Any] | None = None, kept: Path | None = None) -> ImagesWanted:
    """The images that a trunk was made for.

    Args:
        name: as for `build_model`.
        options: of the trunk.
        kept: as for `build_model`.

    Raises:
        ConfigError: no such trunk, an unknown option.
    """
    component, built = _trunk_and_options(name, "images", options, kept)
    return ImagesWanted(component.image_size(built), component.interpolation(built))


def _trunk_and_options(
    name: str | None, kind: str, options: dict[str, Any] | None, kept: Path | None
) -> tuple[type[Trunk], Any]:
    component, implied = find_trunk(name, kind)
    built = build_options(component.Options, {**implied, **(options or {})}, component.name)
    return component, built if kept is None else component.kept(built, kept)


def build_model(
    name: str | nn.Module | None = None,
    *,
    sample_shape: tuple[int, ...],
    kind: str,
    embedding_dim: int = 64,
    options: dict[str, Any] | None = None,
    normalize: bool = True,
    head_norm: HeadNorm = "none",
    seed: int = 0,
    kept: Path | None = None,
    **head: Any,
) -> EmbeddingModel:
    """A model with freshly drawn (or, if its options say so, trained) weights. The global random state is left as it was.

    Args:
        name: a trunk's name, or that of a library's network, as `find_trunk` takes it. None: the default of the kind of data.
            Or a module of your own as the trunk, samples to features [B, F], of which a copy is taken.
        sample_shape: of one sample, (C, H, W) or (F,).
        kind: `images`, `features` or `texts`.
        embedding_dim: D >= 1.
        options: of the trunk.
        normalize: embeddings of unit norm.
        head_norm: `layer` puts a LayerNorm between trunk and head, `batch` a BatchNorm.
        seed: of the weights.
        kept: the folder in which a run keeps what its trunk was made of (`Trunk.keep`). None: it is made anew.
        head: its hidden layer, heads, student, compressor and so on, as `EmbeddingModel` takes them.

    Raises:
        ConfigError: an unknown name or option, a trunk that cannot take this data.
    """
    check_range("embedding_dim", embedding_dim, least=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trunk = _trunk(name, sample_shape, kind, options, kept)
        return EmbeddingModel(trunk, embedding_dim, normalize=normalize, head_norm=head_norm, **head)


def build_trunk(
    name: str | nn.Module | None = None,
    *,
    sample_shape: tuple[int, ...],
    kind: str,
    options: dict[str, Any] | None = None,
    seed: int = 0,
    kept: Path | None = None,
) -> Trunk:
    """The trunk of a model alone. Arguments and errors are those of `build_model`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _trunk(name, sample_shape, kind, options, kept)


def _trunk(
    name: str | nn.Module | None, sample_shape: tuple[int, ...], kind: str, options: dict[str, Any] | None, kept: Path | None
) -> Trunk:
    module = name if isinstance(name, nn.Module) else None
    if isinstance(name, nn.Module):
        component, trunk_options = PythonModel, build_options(PythonModel.Options, options or {}, PythonModel.name)
    else:
        component, trunk_options = _trunk_and_options(name, kind, options, kept)
    if kind not in component.accepts:
        fitting = sorted(entry.name for entry in plugins.registry("model").values() if kind in entry.component.accepts)
        raise ConfigError(
            f"model '{component.name}' takes {' and '.join(sorted(component.accepts))}, but the data are {kind}."
            f" Models for {kind}: {', '.join(fitting)}"
        )
    trunk = component(trunk_options, sample_shape) if module is None else PythonModel(trunk_options, sample_shape, module)
    if not isinstance(getattr(trunk, "features", None), int):
        raise PluginError(f"model '{component.name}' does not set 'features', the columns of its output")
    return trunk
