"""Data: sources (embedded glyphs, folders, manifests, arrays), class-disjoint splits, sampling, augmentation and loading.

Models, losses and metrics are not here. Names are loaded on first use, so that `dmlcore.data.glyphs` needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dmlcore.data.augmentation import CropAugmentation, ShiftAugmentation
    from dmlcore.data.datasets import LabelledDataset
    from dmlcore.data.loading import Batches, OrderedBatches, batches
    from dmlcore.data.opening import find_source, load_table, open_data
    from dmlcore.data.samplers import BatchSampler, ClassBalancedSampler, ShuffledSampler
    from dmlcore.data.sources import DataSource, Table
    from dmlcore.data.split_files import ClassSplit, SplitFile
    from dmlcore.data.splits import Splits
    from dmlcore.data.stores import FeatureStore, ImageFiles, PixelStore, Store
    from dmlcore.data.transforms import Transform, TransformOptions, Transforms

_HOMES = {
    "augmentation": ("CropAugmentation", "ShiftAugmentation"),
    "datasets": ("LabelledDataset",),
    "loading": ("Batches", "OrderedBatches", "batches"),
    "opening": ("find_source", "load_table", "open_data"),
    "samplers": ("BatchSampler", "ClassBalancedSampler", "ShuffledSampler"),
    "sources": ("DataSource", "Table"),
    "split_files": ("ClassSplit", "SplitFile"),
    "splits": ("Splits",),
    "stores": ("FeatureStore", "ImageFiles", "PixelStore", "Store"),
    "transforms": ("Transform", "TransformOptions", "Transforms"),
}

__all__ = [
    "BatchSampler",
    "Batches",
    "ClassBalancedSampler",
    "ClassSplit",
    "CropAugmentation",
    "DataSource",
    "FeatureStore",
    "ImageFiles",
    "LabelledDataset",
    "OrderedBatches",
    "PixelStore",
    "ShiftAugmentation",
    "ShuffledSampler",
    "SplitFile",
    "Splits",
    "Store",
    "Table",
    "Transform",
    "TransformOptions",
    "Transforms",
    "batches",
    "find_source",
    "load_table",
    "open_data",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"dmlcore.data.{module}"), name)
    raise AttributeError(f"module 'dmlcore.data' has no attribute '{name}'")
