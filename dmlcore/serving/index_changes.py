"""Changes of an index: entries that are added, replaced or removed. Each change is a new generation of its files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dmlcore.data import pyarrow
from dmlcore.errors import ConfigError, first_line
from dmlcore.locks import FolderLock
from dmlcore.serving import conditions, index_kinds
from dmlcore.serving.entries import Entries
from dmlcore.serving.faiss_package import Gpu
from dmlcore.serving.index import REMOVED, Index, table_of, write_generation

_SETTINGS = ("asked_kind", "memory", "seed", "model")


def add_entries(folder: str | Path, entries: Entries, gpu: Gpu | None = None) -> dict[str, Any]:
    """Add entries. One whose path is there already replaces that entry; where paths repeat, path and row count together.

    Args:
        folder: of the index.
        entries: vectors of the index's length. Columns that they lack are empty, and new columns are empty for the others.
        gpu: that helps to change the structure.

    Returns:
        `added`, `replaced`, `entries` and the `index` as it is now.

    Raises:
        ConfigError: another length of vectors or another model, a column of another type, or another process changes the index.
    """
    with _Change(folder) as index:
        if entries.vectors.shape[1] != index.dim:
            raise ConfigError(
                f"the embeddings have length {entries.vectors.shape[1]}, but the index in {index.folder.path} holds vectors of"
                f" {index.dim}. Was it built with another model?"
            )
        index.check_model(entries.model)
        arrow, new = pyarrow(), table_of(entries)
        try:
            table = arrow.concat_tables([index.table, new], promote_options="default")
        except (arrow.ArrowInvalid, arrow.ArrowTypeError) as error:
            raise ConfigError(f"the columns do not fit those of the index: {first_line(error)}") from error
        replaced = _same_identity(index, entries)
        there = np.concatenate([_there(index), np.ones(len(entries), dtype=bool)])
        there[replaced] = False
        changed = _next(index, entries, table, there, gpu)
        return {"added": len(entries) - len(replaced), "replaced": len(replaced), "entries": len(changed), "index": changed}


def remove_entries(folder: str | Path, where: Sequence[str]) -> dict[str, Any]:
    """Remove the entries that meet all conditions.

    Args:
        folder: of the index.
        where: as of `Index.search`, at least one.

    Returns:
        `removed`, `entries` and the `index` as it is now.

    Raises:
        ConfigError: no condition, one that cannot be read or that no entry meets, or nothing would be left.
    """
    if not where:
        raise ConfigError("nothing says what to remove; give a condition such as label=cup or path=old.jpg")
    with _Change(folder) as index:
        is_meant = conditions.met(index.table, where) & _there(index)
        if not is_meant.any():
            raise ConfigError(f"no entry of {index.folder.path} meets {' and '.join(where)}")
        there = _there(index) & ~is_meant
        if not there.any():
            raise ConfigError(f"all entries of {index.folder.path} meet {' and '.join(where)}; remove the folder instead")
        changed = _next(index, None, index.table, there)
        return {"removed": int(is_meant.sum()), "entries": len(changed), "index": changed}


class _Change:
    """The index of a folder that no other process changes inside the block."""

    def __init__(self, folder: str | Path) -> None:
        self._index = Index(folder)  # before the lock: a folder without an index gets no file
        self._lock: FolderLock | None = None

    def __enter__(self) -> Index:
        self._lock = FolderLock(self._index.folder.path)
        if self._index.folder.read_about()["generation"] != self._index.about["generation"]:
            self._index = Index(self._index.folder.path)  # another process was done in between
        return self._index

    def __exit__(self, *_: Any) -> None:
        assert self._lock is not None
        self._lock.release()


def _there(index: Index) -> np.ndarray:
    return np.ones(index.about["count"], dtype=bool) if index.there is None else index.there


def _same_identity(index: Index, entries: Entries) -> np.ndarray:
    """Positions of the entries that new ones replace, int64."""
    if entries.path is None or "path" not in index.columns:
        return np.empty(0, dtype=np.int64)
    positions = index.positions()
    taken = index.table.take(pyarrow().array(positions))
    paths, rows = taken["path"].to_pylist(), taken["row"].to_pylist()
    is_unique = all(number == 1 or not path for counts in (Counter(paths), Counter(entries.path))
                    for path, number in counts.items())  # fmt: skip
    new = set(entries.path) if is_unique else set(zip(entries.path, entries.row.tolist(), strict=True))
    keys = paths if is_unique else zip(paths, rows, strict=True)
    return positions[[at for at, (key, path) in enumerate(zip(keys, paths, strict=True)) if path and key in new]]


def _next(index: Index, entries: Entries | None, table: Any, there: np.ndarray, gpu: Gpu | None = None) -> Index:
    """Write the next generation. Many removed entries are left out for good, and the structure is built anew."""
    settings = {key: index.about[key] for key in _SETTINGS} | {"fingerprint": index.about.get("fingerprint", "")}
    generation = index.about["generation"] + 1
    kind, _ = index_kinds.choose(len(table), index.dim, settings["memory"], settings["asked_kind"])
    is_compacted = kind is index_kinds.Flat or (~there).mean() > REMOVED
    old, new = index.vectors, [] if entries is None else [entries.vectors]
    if is_compacted:
        rows = [np.flatnonzero(there[: len(old)]), *(np.flatnonzero(there[len(old) :]) for _ in new)]
        parts = list(zip([old, *new], rows, strict=True))
        table = table.take(pyarrow().array(np.flatnonzero(there)))
        return write_generation(index.folder, parts, table, settings, generation, gpu=gpu)
    grown = None
    if kind.name == index.about["kind"]:
        grown = kind(index.dim, gpu)
        grown.load(index.folder.file(index.about, "search"), len(old), is_mapped=False)
    parts = [(old, None), *((vectors, None) for vectors in new)]
    return write_generation(index.folder, parts, table, settings, generation, there, grown, gpu)
