"""Models: trunks that turn samples into features, and the head that turns features into embeddings. Losses and training are not
here. Names are loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dmlcore.models.architecture import architecture_of, build_architecture, serving_state
    from dmlcore.models.building import ImagesWanted, build_model, build_trunk, images_wanted
    from dmlcore.models.checkpointing import checkpoint_stages
    from dmlcore.models.embedding import EmbeddingModel
    from dmlcore.models.naming import default_trunk, find_trunk
    from dmlcore.models.pooling import Pool, rows_of
    from dmlcore.models.pretrained import PretrainedOptions, PretrainedTrunk, import_library, not_here
    from dmlcore.models.trunks import Trunk
    from dmlcore.models.weight_files import (
        do_weights_follow,
        in_torch_cache,
        load_weights,
        read_weights,
        weights_follow,
        write_weights,
    )
    from dmlcore.models.weight_names import without_prefixes

_HOMES = {
    "architecture": ("architecture_of", "build_architecture", "serving_state"),
    "building": ("ImagesWanted", "build_model", "build_trunk", "images_wanted"),
    "checkpointing": ("checkpoint_stages",),
    "embedding": ("EmbeddingModel",),
    "naming": ("default_trunk", "find_trunk"),
    "pooling": ("Pool", "rows_of"),
    "pretrained": ("PretrainedOptions", "PretrainedTrunk", "import_library", "not_here"),
    "trunks": ("Trunk",),
    "weight_files": (
        "do_weights_follow",
        "in_torch_cache",
        "load_weights",
        "read_weights",
        "weights_follow",
        "write_weights",
    ),
    "weight_names": ("without_prefixes",),
}

__all__ = [
    "EmbeddingModel",
    "ImagesWanted",
    "Pool",
    "PretrainedOptions",
    "PretrainedTrunk",
    "Trunk",
    "architecture_of",
    "build_architecture",
    "build_model",
    "build_trunk",
    "checkpoint_stages",
    "default_trunk",
    "do_weights_follow",
    "find_trunk",
    "images_wanted",
    "import_library",
    "in_torch_cache",
    "load_weights",
    "not_here",
    "read_weights",
    "rows_of",
    "serving_state",
    "weights_follow",
    "without_prefixes",
    "write_weights",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"dmlcore.models.{module}"), name)
    raise AttributeError(f"module 'dmlcore.models' has no attribute '{name}'")
