"""Models: trunks that turn samples into features, and the head that turns features into embeddings. Losses and training are not
here. Names are loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dmlcore.models.building import build_model, default_image_size
    from dmlcore.models.embedding import EmbeddingModel
    from dmlcore.models.naming import default_trunk, find_trunk
    from dmlcore.models.trunks import Trunk
    from dmlcore.models.weight_names import without_prefixes

_HOMES = {
    "building": ("build_model", "default_image_size"),
    "embedding": ("EmbeddingModel",),
    "naming": ("default_trunk", "find_trunk"),
    "trunks": ("Trunk",),
    "weight_names": ("without_prefixes",),
}

__all__ = ["EmbeddingModel", "Trunk", "build_model", "default_image_size", "default_trunk", "find_trunk", "without_prefixes"]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"dmlcore.models.{module}"), name)
    raise AttributeError(f"module 'dmlcore.models' has no attribute '{name}'")
