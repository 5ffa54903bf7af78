"""A model as modules of sentence-transformers: its own ones where they say all, else one module of dmlcore, which is
`sentence_module.py`. Sentence-transformers itself is not needed to write a folder.
"""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dmlcore.ensemble import Compressor
from dmlcore.models import EmbeddingModel
from dmlcore.serving.model import Model
from dmlcore.serving.model_card import card_of
from dmlcore.serving.model_folder import CARD, CONFIG, TRUNK, WEIGHTS

_OWN = "dmlcore.serving.sentence_module.Encoder"
_LIBRARY = "sentence_transformers.models."
_CLOSE = 1e-5  # how far a map may be from linear, relative to what it gives: rounding


def add_sentence_modules(model: Model, folder: Path, config: dict[str, Any]) -> bool:
    """Make a model folder one that sentence-transformers reads.

    Args:
        model: that the folder holds.
        folder: changed. With modules of sentence-transformers alone it is no model folder any more.
        config: of the model folder.

    Returns:
        Whether it needs no code of dmlcore.
    """
    layers = _layers(model.model)
    modules = None if layers is None or model.kind != "texts" else model.model.trunk.sentence_modules(folder)
    is_plain = modules is not None and layers is not None
    if modules is not None and layers is not None:
        for layer in layers:
            path = f"{len(modules)}_{'Normalize' if layer is None else 'Dense'}"
            _write_layer(folder / path, layer)
            modules.append({"path": path, "type": f"{_LIBRARY}{'Normalize' if layer is None else 'Dense'}"})
        for name in (CONFIG, WEIGHTS):
            (folder / name).unlink()
        shutil.rmtree(folder / TRUNK, ignore_errors=True)
    else:
        modules = [{"path": "", "type": _OWN}]
    listed = [{"idx": number, "name": str(number), **module} for number, module in enumerate(modules)]
    _write_json(folder / "modules.json", listed)
    _write_json(
        folder / "config_sentence_transformers.json",
        {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine", "prompts": {}, "default_prompt_name": None},
    )
    (folder / CARD).write_text(card_of(config, form="plain" if is_plain else "module"), encoding="utf-8")
    return is_plain


def _layers(model: EmbeddingModel) -> list[nn.Linear | None] | None:
    """What stands behind the trunk, as linear maps and normalisations (None). None: more than that."""
    if model.served == "student":
        assert model.student is not None
        return [model.student, None]
    if model.heads > 1 or not isinstance(model.head, nn.Linear | nn.Identity):
        return None
    layers: list[nn.Linear | None] = [model.head] if isinstance(model.head, nn.Linear) else []
    if model.normalize or model.served == "compressed":
        layers.append(None)
    if model.served == "compressed":
        assert model.compressor is not None
        linear = _as_linear(model.compressor)
        return None if linear is None else [*layers, linear, None]
    return layers


def _as_linear(compressor: Compressor) -> nn.Linear | None:
    """A compressor as a linear map; None where it is none."""
    with torch.no_grad():
        device = next((value.device for value in compressor.state_dict().values()), torch.device("cpu"))
        bias = compressor(torch.zeros(1, compressor.width, device=device))[0]
        weight = (compressor(torch.eye(compressor.width, device=device)) - bias).T  # [out, width]
        probes = torch.randn(32, compressor.width, generator=torch.Generator().manual_seed(0)).to(device)
        expected, linear = compressor(probes), probes @ weight.T + bias
        if not torch.allclose(expected, linear, atol=_CLOSE * float(expected.abs().max()), rtol=0):
            return None
        layer = nn.Linear(compressor.width, compressor.out)
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer


def _write_layer(folder: Path, layer: nn.Linear | None) -> None:
    folder.mkdir()
    if layer is None:
        _write_json(folder / "config.json", {})
        return
    about = {"in_features": layer.in_features, "out_features": layer.out_features, "bias": layer.bias is not None}
    _write_json(folder / "config.json", {**about, "activation_function": "torch.nn.modules.linear.Identity"})
    weights: dict[str, Tensor] = {
        f"linear.{name}": value.detach().cpu().contiguous() for name, value in layer.named_parameters()
    }
    importlib.import_module("safetensors.torch").save_file(
        weights, str(folder / "model.safetensors"), metadata={"format": "pt"}
    )


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
