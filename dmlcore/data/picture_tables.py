"""The table of the image files that a source lists: by an index of an earlier start where nothing has changed, else by looking
for them. What an index is, is in `picture_index`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from dmlcore.data.encoded import ListedImages, PathImages
from dmlcore.data.image_tables import FileOptions, image_table
from dmlcore.data.picture_index import PictureIndex
from dmlcore.data.sources import DataSource, Table
from dmlcore.errors import ConfigError, suggestion


def open_index(source: DataSource, path: str, purpose: Mapping[str, Any] | None = None) -> PictureIndex:
    """The index of the image files of a source. Where it is not known, the source looks for them and lets it `learn`.

    Args:
        source: with `FileOptions`.
        path: of the folder or list that the files follow from.
        purpose: plain values of what else decides which files, labels and parts there are.
    """
    options: FileOptions = source.options
    key = json.dumps({"source": source.name, "labels": source.needs_labels, **(purpose or {})})
    index = PictureIndex(os.path.abspath(path), key, is_kept=options.index != "none")
    if options.index == "auto":
        index.recall()
    return index


def picture_table(
    source: DataSource,
    index: PictureIndex,
    where: str,
    *,
    called: str | None = None,
    levels: Sequence[str] = (),
    most_looked_at: int | None = None,
) -> Table:
    """A table of image files. Where there are very many, what is learnt of them is kept in the user's cache for the next start.

    Args:
        source: with `FileOptions`.
        index: of `open_index`, which knows the files.
        where: the folder that they are shown relative to.
        called: what their paths begin with; empty: nothing. None: `where`.
        levels: of coarser labels, which the table shall have.
        most_looked_at: as for `image_table`.

    Raises:
        DataError: more than half of the files cannot be read.
        ConfigError: a level that there is not.
    """
    pictures = index.pictures(where if called is None else called)
    for level in levels:
        if level not in pictures.levels:
            has = ", ".join(pictures.levels) or "none"
            raise ConfigError(f"'{source.name}' has no level '{level}', but {has}.{suggestion(level, list(pictures.levels))}")
    sizes = pictures.sizes
    table = image_table(
        PathImages(pictures.paths, where) if sizes is None else ListedImages(pictures.paths, where, sizes),
        pictures.labels,
        pictures.class_names,
        source.options,
        where,
        split=pictures.split,
        image_size=source.image_size,
        default_image_size=source.default_image_size,
        label_sets=pictures.label_sets,
        label_names=pictures.label_names,
        levels={level: pictures.levels[level] for level in levels},
        most_looked_at=most_looked_at,
        index=index,
    )
    table.split_note = pictures.split_note
    table.has_labels = table.class_names != [""]
    notes = ["the files are as an index in the cache says; the option index = renew looks again"] if index.is_known else []
    table.skipped = [*pictures.notes, *notes, *table.skipped]
    return table
