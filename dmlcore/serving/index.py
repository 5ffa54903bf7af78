"""An index: embeddings with what identifies them, kept in a folder so that the nearest of a query are found quickly."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dmlcore import progress
from dmlcore.allocation import give_back_freed_memory
from dmlcore.data import pyarrow
from dmlcore.errors import ConfigError, DataError, TrainingError
from dmlcore.files import expanded
from dmlcore.locks import FolderLock
from dmlcore.serving import conditions, index_files, index_kinds, index_shards
from dmlcore.serving.entries import Entries, release, unit
from dmlcore.serving.faiss_package import Gpu, faiss
from dmlcore.serving.index_files import IndexFolder
from dmlcore.version import VERSION

RECALL_AT = (1, 10)
GOOD = 0.99  # recall@10 from which a search tries no harder
SAMPLE = 200  # queries of which recall is measured
REMOVED = 0.25  # share of removed entries from which the structure is built anew without them
_QUERIES = 256  # queries whose candidates are compared at a time


@dataclass(frozen=True)
class Hits:
    """What queries find.

    Attributes:
        positions: int64 [Q, k], of entries in the index, the nearest first; -1 where there are no more.
        scores: float32 [Q, k], cosines; -inf where there are no more.
    """

    positions: np.ndarray
    scores: np.ndarray


class Index:
    """An index that is open. Files stay on the disk, and are read as far as a search needs them.

    Args:
        folder: of the index.
        memory_mapped: leave the structure of the search on the disk, too. Searches are slower until it was read once.
        gpu: that searches, where the kind can use one.

    Raises:
        ConfigError: there is no index, or a package is missing.
        TrainingError: a file is missing or damaged, which checksums tell.
    """

    def __init__(self, folder: str | Path, *, memory_mapped: bool = True, gpu: Gpu | None = None) -> None:
        target = IndexFolder(expanded(folder))
        about = target.read_about()
        try:
            self._open(target, about, target.checked(about), memory_mapped, gpu)
        except TrainingError:
            newer = target.read_about()
            if newer["generation"] == about["generation"]:
                raise
            self._open(target, newer, target.checked(newer), memory_mapped, gpu)  # it was changed while its files were read

    @classmethod
    def _just_written(cls, target: IndexFolder, about: dict[str, Any], gpu: Gpu | None) -> Index:
        """An index whose `index.json` is not there yet, and whose checksums were computed now.

        Its structure is searched by the processor, as its time is measured. What it is compared with may come from a GPU.
        """
        index = cls.__new__(cls)
        index._open(target, about, {role: target.path / entry["name"] for role, entry in about["files"].items()}, True)
        if about["kind"] != index_kinds.Flat.name:
            index.gpu = gpu
        return index

    def _open(
        self, target: IndexFolder, about: dict[str, Any], files: dict[str, Path], is_mapped: bool, gpu: Gpu | None = None
    ) -> None:
        self.folder, self.about, self.gpu = target, about, gpu
        count, dim = about["count"], about["dim"]
        self.vectors = index_files.read_vectors(files["vectors"], count, dim)
        self.table = index_files.read_table(files["entries"], count)
        self.there = np.load(files["there"], allow_pickle=False) if "there" in files else None
        self.structure = index_kinds.KINDS[about["kind"]](dim, gpu)
        if "search" in files:
            self.structure.load(files["search"], count, is_mapped=is_mapped)

    def __len__(self) -> int:
        """Entries that can be found."""
        return self.about["count"] - self.about["removed"]

    @property
    def dim(self) -> int:
        """The length of a vector."""
        return self.about["dim"]

    @property
    def columns(self) -> list[str]:
        """What is known of each entry."""
        return self.table.column_names

    def check_model(self, fingerprint: str) -> None:
        """Refuse vectors of another model, whose cosines with those of the index mean nothing.

        Args:
            fingerprint: of what embedded them. Empty: it is not known, as where the index does not know its own.

        Raises:
            ConfigError: it is not the one that the index was built with.
        """
        own = self.about.get("fingerprint")
        if own and fingerprint and own != fingerprint:
            raise ConfigError(
                f"the index in {self.folder.path} was built with another model, or before the model was trained on:"
                " similarities would mean nothing. Build it again, or use its own model"
            )

    def positions(self) -> np.ndarray:
        """Positions of the entries that can be found, int64."""
        return np.arange(self.about["count"]) if self.there is None else np.flatnonzero(self.there)

    def entries(self, positions: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """What is known of some entries, in this order."""
        return self.table.take(pyarrow().array(np.asarray(positions, dtype=np.int64))).to_pylist()

    def values(self, column: str) -> np.ndarray:
        """A column of all positions, [N].

        Raises:
            ConfigError: there is no such column.
        """
        return conditions.column_of(self.table, column)

    def search(
        self, queries: Any, k: int = 10, *, where: Sequence[str] = (), effort: int | None = None, is_exact: bool = False
    ) -> Hits:
        """The k nearest entries of each query.

        Args:
            queries: [Q, D] numbers; they are made unit vectors.
            k: how many, at least 1. Fewer are found where there are no more.
            where: conditions that entries must meet, such as `label=cup,bowl`, `label!=cup` or `price<10`.
            effort: how hard to look, instead of what was stored when the index was built.
            is_exact: compare with every entry.

        Raises:
            ConfigError: another length of vectors, a k below 1, or a condition that cannot be read.
        """
        queries = self.checked(queries)
        if k < 1:
            raise ConfigError(f"k is {k}, but must be at least 1")
        allowed = self._allowed(where)
        number = len(self.vectors) if allowed is None else int(allowed.sum())
        if not number:
            empty = (len(queries), k)
            return Hits(np.full(empty, -1), np.full(empty, -np.inf, dtype=np.float32))
        # Few entries are compared one by one also where there is a structure: that is exact and as quick.
        few = allowed is not None and number * self.dim <= index_kinds.EXACT
        if is_exact or few or isinstance(self.structure, index_kinds.Flat):
            scores, positions = index_kinds.exact(self.vectors, queries, k, allowed, self.gpu)
            return Hits(positions, scores)
        return self._approximate(queries, k, allowed, effort or self.about["effort"], number)

    def checked(self, queries: Any) -> np.ndarray:
        """Queries as unit vectors, float32 [Q, D].

        Raises:
            ConfigError: another shape.
            DataError: numbers that are not finite.
        """
        if hasattr(queries, "detach"):
            queries = queries.detach().cpu().numpy()
        queries = np.asarray(queries, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise ConfigError(
                f"queries have the shape {list(queries.shape)}, but {self.folder.path} holds vectors of {self.dim}, so"
                f" [Q, {self.dim}] is needed. Was it built with another model?"
            )
        if not np.isfinite(queries).all():
            raise DataError("queries hold NaN or infinite numbers")
        return unit(queries)

    def _allowed(self, where: Sequence[str]) -> np.ndarray | None:
        if not where:
            return self.there
        allowed = conditions.met(self.table, where)
        return allowed if self.there is None else allowed & self.there

    def _approximate(self, queries: np.ndarray, k: int, allowed: np.ndarray | None, effort: int, number: int) -> Hits:
        hits = Hits(np.full((len(queries), k), -1), np.full((len(queries), k), -np.inf, dtype=np.float32))
        candidates = min(k * self.structure.oversampling, number)
        for start in progress.track(range(0, len(queries), _QUERIES), "searching", len(queries), _QUERIES):
            part = slice(start, start + _QUERIES)
            places = self.structure.search(queries[part], candidates, effort, allowed)  # [q, c]
            scores = np.einsum("qd,qcd->qc", queries[part], self.vectors[np.maximum(places, 0)], optimize=True)
            scores[places < 0] = -np.inf
            order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            size = order.shape[1]
            hits.scores[part, :size] = np.take_along_axis(scores, order, 1)
            hits.positions[part, :size] = np.take_along_axis(places, order, 1)
        lacking = np.flatnonzero((hits.positions[:, : min(k, number)] < 0).any(1))
        if len(lacking):  # a structure may lose its way among few allowed entries
            hits.scores[lacking], hits.positions[lacking] = index_kinds.exact(self.vectors, queries[lacking], k, allowed)
        return hits

    def measure(self) -> dict[str, Any]:
        """Recall against exact search, of an even sample of the entries as queries that do not find themselves."""
        rows = self.positions()
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).round().astype(int))]
        queries, most = np.asarray(self.vectors[rows]), min(max(RECALL_AT), len(self) - 1)
        if most < 1:
            return {"queries": 0}
        with progress.task("measuring recall"):
            right = _others(self.search(queries, most + 1, is_exact=True).positions, rows)[:, :most]
            release(self.vectors)  # all of them were read
            for effort in self.structure.efforts:
                began = time.perf_counter()
                places = _others(self.search(queries, most + 1, effort=effort).positions, rows)[:, :most]
                seconds = time.perf_counter() - began
                recall = {f"recall@{min(k, most)}": _overlap(places, right, min(k, most)) for k in RECALL_AT}
                if recall[f"recall@{most}"] >= GOOD:
                    break
        return {**recall, "queries": len(rows), "milliseconds": 1000 * seconds / len(rows), "effort": effort}


def _others(places: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Neighbours without the query itself, [Q, k - 1]; of a query that did not find itself without the last."""
    is_own = places == own[:, None]
    is_own[~is_own.any(1), -1] = True
    return places[~is_own].reshape(len(places), -1)


def _overlap(places: np.ndarray, right: np.ndarray, k: int) -> float:
    pairs = zip(places[:, :k].tolist(), right[:, :k].tolist(), strict=True)
    return float(np.mean([len(set(mine) & set(true)) / k for mine, true in pairs]))


def build_index(
    entries: Entries,
    folder: str | Path,
    *,
    kind: str | None = None,
    memory: float = 2.0,
    seed: int = 0,
    model: str | None = None,
    gpu: Gpu | None = None,
) -> Index:
    """Write an index of entries. Where ranks divide the work, the first calls this, and the others `index_shards.help_first`.

    Args:
        entries: at least one.
        folder: a new or empty one.
        kind: `flat`, `hnsw`, `ivf-flat` or `ivf-pq`; None: by size and memory.
        memory: gigabytes that the structure may take in memory.
        seed: of what is drawn.
        model: what made the embeddings and will embed queries, as a path; None: it is not known.
        gpu: that helps to build it, as `faiss_package.gpu_of` gives; None: the processor alone.

    Raises:
        ConfigError: the folder holds something, or an option is wrong.
        TrainingError: the disk is full.
    """
    target = IndexFolder(expanded(folder))
    faiss()
    index_shards.announce(lambda: index_kinds.choose(len(entries), entries.vectors.shape[1], memory, kind)[0])
    target.check_free()
    lock = FolderLock(target.path)
    try:
        settings = {"asked_kind": kind, "memory": memory, "seed": seed, "model": model, "fingerprint": entries.model}
        return write_generation(target, [(entries.vectors, None)], table_of(entries), settings, generation=1, gpu=gpu)
    finally:
        lock.release()


def table_of(entries: Entries) -> Any:
    """The columns of entries as a table of Arrow."""
    arrow = pyarrow()
    return arrow.table({name: arrow.array(values) for name, values in entries.all_columns().items()})


def write_generation(
    target: IndexFolder,
    parts: Sequence[tuple[np.ndarray, np.ndarray | None]],
    table: Any,
    settings: dict[str, Any],
    generation: int,
    there: np.ndarray | None = None,
    grown: index_kinds.Structure | None = None,
    gpu: Gpu | None = None,
) -> Index:
    """Write the files of a generation and make them the index.

    Args:
        target: the folder.
        parts: as of `write_vectors`.
        table: columns of all of these vectors.
        settings: what the index was asked to be.
        generation: a number.
        there: bool [N], which entries were not removed; None: all.
        grown: a structure that holds the first vectors; the others are added to it.
        gpu: that helps to build it.
    """
    began = time.perf_counter()
    count, dim = len(table), parts[0][0].shape[1]
    kind, reason = index_kinds.choose(count, dim, settings["memory"], settings["asked_kind"])
    files = {"vectors": target.write("vectors", generation, lambda path: index_files.write_vectors(path, parts, unit))}
    files["entries"] = target.write("entries", generation, lambda path: index_files.write_table(path, table))
    if there is not None and not there.all():
        files["there"] = target.write("there", generation, lambda path: _save(path, there))
    vectors = index_files.read_vectors(target.path / files["vectors"]["name"], count, dim)
    if kind is not index_kinds.Flat:
        structure = grown or kind(dim, gpu)
        if grown is not None:
            structure.add(vectors[structure.faiss.ntotal :])
        else:
            structure.train(vectors, settings["seed"])
            index_shards.add(structure, vectors, target.path / files["vectors"]["name"])
        files["search"] = target.write("search", generation, structure.save)
        del structure, grown  # the file is opened below
        give_back_freed_memory()
    about = {
        **settings,
        "generation": generation,
        "kind": kind.name,
        "reason": reason,
        "effort": kind.efforts[0],
        "count": count,
        "dim": dim,
        "removed": 0 if there is None else int((~there).sum()),
        "columns": table.column_names,
        "dmlcore": VERSION,
        "files": files,
    }
    measures = Index._just_written(target, about, gpu).measure()
    about |= {"effort": measures.pop("effort", kind.efforts[0]), "measures": measures}
    about["measures"]["seconds"] = time.perf_counter() - began
    target.commit(about)
    return Index(target.path)


def _save(path: Path, values: np.ndarray) -> None:
    with open(path, "wb") as file:  # given a name, numpy would add a suffix to it
        np.save(file, values)
