"""What a model is made of, as plain values for a file, and the model of such values. Its weights are kept apart."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from torch import nn

from dmlcore import plugins
from dmlcore.errors import ConfigError
from dmlcore.models.building import build_model
from dmlcore.models.embedding import EmbeddingModel
from dmlcore.models.python_model import PythonModel


def architecture_of(model: EmbeddingModel) -> dict[str, Any]:
    """Plain values of a model as it serves: without what only losses need.

    Raises:
        ConfigError: its trunk is a module from Python, which no file can describe.
    """
    if isinstance(model.trunk, PythonModel):
        raise ConfigError(
            "the model's trunk is a module from Python, which a file of weights cannot build again. Export it by --onnx or"
            " --torch-export, or make the trunk a plugin"
        )
    compressor = model.compressor if model.served == "compressed" else None
    described = None
    if compressor is not None:
        described = {
            "name": _name("compressor", compressor),
            "width": compressor.width,
            "out": compressor.out,
            "options": _plain(compressor.options),
        }
    return {
        "trunk": {"name": _name("model", model.trunk), "options": _plain(model.trunk.shared_options())},
        "embedding_dim": model.head_dim,
        "has_head": not isinstance(model.head, nn.Identity),
        "head_norm": model.head_norm,
        "head_hidden": model.head_hidden,
        "heads": model.heads,
        "head_names": list(model.head_names),
        "heads_see_blocks": model.heads_see_blocks,
        "normalize": model.normalize,
        "student": model.student.out_features if model.served == "student" and model.student is not None else 0,
        "compressor": described,
        "served": model.served,
    }


def serving_state(model: EmbeddingModel) -> dict[str, Any]:
    """The weights that a model of `architecture_of` has, by name."""
    left_out = [part for part, is_served in (("student", "student"), ("compressor", "compressed")) if model.served != is_served]
    left_out.append("distill_heads")
    return {name: value for name, value in model.state_dict().items() if name.partition(".")[0] not in left_out}


def build_architecture(
    values: dict[str, Any], sample_shape: tuple[int, ...], kind: str, kept: Path | None = None
) -> EmbeddingModel:
    """The model of what `architecture_of` gave, with whatever weights.

    Args:
        values: as they were given.
        sample_shape: of one sample.
        kind: `images`, `features` or `texts`.
        kept: what `Trunk.keep` wrote, or None.

    Raises:
        ConfigError: values that no model has, or a plugin that is not there.
        KeyError, TypeError, ValueError: they are not what `architecture_of` gives.
    """
    compressor = None
    if values["compressor"] is not None:
        about = values["compressor"]
        component = plugins.find("compressor", about["name"]).component
        compressor = component(about["width"], about["out"], **about["options"])
    return build_model(
        str(values["trunk"]["name"]),
        sample_shape=sample_shape,
        kind=kind,
        embedding_dim=values["embedding_dim"],
        options=dict(values["trunk"]["options"]),
        normalize=bool(values["normalize"]),
        head_norm=values["head_norm"],
        head_hidden=values.get("head_hidden", 0),  # earlier versions had linear heads only
        kept=kept,
        has_head=bool(values["has_head"]),
        heads=values["heads"],
        head_names=values["head_names"],
        heads_see_blocks=bool(values.get("heads_see_blocks", False)),
        student=values["student"],
        compressor=compressor,
        served=values["served"],
    )


def _name(kind: str, component: Any) -> str:
    """By which a component is found again: its own, or the file that it stands in."""
    for of_kind, reference, loaded in plugins.plugin_files.loaded():
        if of_kind == kind and loaded is type(component):
            return reference
    return component.name


def _plain(options: Any) -> dict[str, Any]:
    """Options by name; None is left out where it is the default, else `"none"`."""
    if not dataclasses.is_dataclass(options):
        return {}
    plain = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if value is None and field.default is None:
            continue
        plain[field.name] = "none" if value is None else list(value) if isinstance(value, tuple) else value
    return plain
