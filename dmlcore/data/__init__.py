"""Data: what a source is, class-disjoint splits, sampling, augmentation and loading. The built-in sources, samplers and
transforms are plugins in `dmlcore_plugins`. Names are loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dmlcore.data.array_tables import array_table
    from dmlcore.data.arrow_tables import ColumnOptions, arrow_table, joined_parts, pyarrow
    from dmlcore.data.augmentation import CropAugmentation, ShiftAugmentation
    from dmlcore.data.class_names import is_missing, tidy_names
    from dmlcore.data.csv_tables import CsvRow, read_csv
    from dmlcore.data.datasets import LabelledDataset
    from dmlcore.data.encoded import BytesImages, EncodedImages, PathImages
    from dmlcore.data.image_search import ImageSearch, is_image, sub_folders
    from dmlcore.data.image_tables import (
        FileOptions,
        ImageOptions,
        LevelledFileOptions,
        LevelledOptions,
        PixelOptions,
        choose_augmentation,
        decode_images,
        image_table,
        report_unreadable,
    )
    from dmlcore.data.images import IMAGE_SUFFIXES, UNREADABLE, decode
    from dmlcore.data.label_sets import LabelSets
    from dmlcore.data.levels import levelled
    from dmlcore.data.library_changes import change_each, library_change
    from dmlcore.data.loading import Batches, OrderedBatches, batches
    from dmlcore.data.matlab import matlab_field, matlab_numbers, matlab_texts, read_matlab
    from dmlcore.data.multi_label import NamedSets, named_sets, parted_labels, set_classes
    from dmlcore.data.opening import default_source, find_source, load_table, open_data
    from dmlcore.data.part_words import ROLES, SPLIT_WORDS, split_words
    from dmlcore.data.path_lists import PathList
    from dmlcore.data.picture_index import Pictures, mark_of
    from dmlcore.data.picture_tables import open_index, picture_table
    from dmlcore.data.published_images import (
        LevelledSplitOptions,
        Listing,
        PublishedImages,
        SplitOptions,
        dense_ids,
        first_half,
        id_numbers,
        official_note,
        read_rows,
    )
    from dmlcore.data.python_data import PythonData
    from dmlcore.data.recorded_splits import RecordedSplit
    from dmlcore.data.samplers import BatchSampler, SamplerOptions, create_sampler
    from dmlcore.data.sources import KINDS_OF_DATA, DataSource, Table
    from dmlcore.data.split_files import ClassSplit, SplitFile
    from dmlcore.data.splits import Splits
    from dmlcore.data.stores import FeatureStore, ImageFiles, PixelStore, Store
    from dmlcore.data.texts import TEXT_BYTES, TextStore, count_trigrams, text_table, texts_of
    from dmlcore.data.transforms import Transform, TransformOptions, Transforms

_HOMES = {
    "array_tables": ("array_table",),
    "arrow_tables": ("ColumnOptions", "arrow_table", "joined_parts", "pyarrow"),
    "augmentation": ("CropAugmentation", "ShiftAugmentation"),
    "class_names": ("is_missing", "tidy_names"),
    "csv_tables": ("CsvRow", "read_csv"),
    "datasets": ("LabelledDataset",),
    "encoded": ("BytesImages", "EncodedImages", "PathImages"),
    "image_search": ("ImageSearch", "is_image", "sub_folders"),
    "image_tables": (
        "FileOptions",
        "ImageOptions",
        "LevelledFileOptions",
        "LevelledOptions",
        "PixelOptions",
        "choose_augmentation",
        "decode_images",
        "image_table",
        "report_unreadable",
    ),
    "images": ("IMAGE_SUFFIXES", "UNREADABLE", "decode"),
    "label_sets": ("LabelSets",),
    "levels": ("levelled",),
    "library_changes": ("change_each", "library_change"),
    "loading": ("Batches", "OrderedBatches", "batches"),
    "multi_label": ("NamedSets", "named_sets", "parted_labels", "set_classes"),
    "opening": ("default_source", "find_source", "load_table", "open_data"),
    "matlab": ("matlab_field", "matlab_numbers", "matlab_texts", "read_matlab"),
    "path_lists": ("PathList",),
    "picture_index": ("Pictures", "mark_of"),
    "picture_tables": ("open_index", "picture_table"),
    "published_images": (
        "LevelledSplitOptions",
        "Listing",
        "PublishedImages",
        "SplitOptions",
        "dense_ids",
        "first_half",
        "id_numbers",
        "official_note",
        "read_rows",
    ),
    "python_data": ("PythonData",),
    "recorded_splits": ("RecordedSplit",),
    "samplers": ("BatchSampler", "SamplerOptions", "create_sampler"),
    "sources": ("KINDS_OF_DATA", "DataSource", "Table"),
    "split_files": ("ClassSplit", "SplitFile"),
    "part_words": ("ROLES", "SPLIT_WORDS", "split_words"),
    "splits": ("Splits",),
    "stores": ("FeatureStore", "ImageFiles", "PixelStore", "Store"),
    "texts": ("TEXT_BYTES", "TextStore", "text_table", "texts_of", "count_trigrams"),
    "transforms": ("Transform", "TransformOptions", "Transforms"),
}

__all__ = [
    "IMAGE_SUFFIXES",
    "KINDS_OF_DATA",
    "ROLES",
    "SPLIT_WORDS",
    "TEXT_BYTES",
    "UNREADABLE",
    "BatchSampler",
    "Batches",
    "BytesImages",
    "ClassSplit",
    "ColumnOptions",
    "CropAugmentation",
    "CsvRow",
    "DataSource",
    "EncodedImages",
    "FeatureStore",
    "FileOptions",
    "ImageFiles",
    "ImageOptions",
    "ImageSearch",
    "LabelSets",
    "LabelledDataset",
    "LevelledFileOptions",
    "LevelledOptions",
    "LevelledSplitOptions",
    "Listing",
    "NamedSets",
    "OrderedBatches",
    "PathImages",
    "PathList",
    "Pictures",
    "PixelOptions",
    "PixelStore",
    "PublishedImages",
    "PythonData",
    "RecordedSplit",
    "SamplerOptions",
    "ShiftAugmentation",
    "SplitFile",
    "SplitOptions",
    "Splits",
    "Store",
    "Table",
    "TextStore",
    "Transform",
    "TransformOptions",
    "Transforms",
    "array_table",
    "arrow_table",
    "batches",
    "change_each",
    "choose_augmentation",
    "count_trigrams",
    "create_sampler",
    "decode",
    "decode_images",
    "default_source",
    "dense_ids",
    "find_source",
    "first_half",
    "id_numbers",
    "image_table",
    "is_image",
    "is_missing",
    "joined_parts",
    "levelled",
    "library_change",
    "load_table",
    "mark_of",
    "matlab_field",
    "matlab_numbers",
    "matlab_texts",
    "named_sets",
    "official_note",
    "open_data",
    "open_index",
    "parted_labels",
    "picture_table",
    "pyarrow",
    "read_csv",
    "read_matlab",
    "read_rows",
    "report_unreadable",
    "set_classes",
    "split_words",
    "sub_folders",
    "text_table",
    "texts_of",
    "tidy_names",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"dmlcore.data.{module}"), name)
    raise AttributeError(f"module 'dmlcore.data' has no attribute '{name}'")
