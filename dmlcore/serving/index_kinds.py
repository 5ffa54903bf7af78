"""The kinds of search structures of faiss, behind one interface.

A structure proposes candidates. Their scores are computed from the vectors themselves, in `index.py`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dmlcore import progress
from dmlcore.errors import ConfigError, TrainingError, suggestion
from dmlcore.serving.entries import release
from dmlcore.serving.faiss_package import AT_ONCE, MOST, Gpu, faiss

GB = 1_000_000_000
EXACT = 20_000_000  # numbers that are searched exactly: 160,000 vectors of 128 take some 10 ms a query on one core
GRAPH = 300_000  # vectors whose graph is built in some 2 minutes on one core; 10^6 take 9, and lists are made in one
PIECE = 50_000  # vectors added in one go
_TRAINING_PER_LIST = 40  # vectors that find the centre of a list; faiss asks for 39


class Structure(ABC):
    """What finds candidates among N unit vectors, by their inner products.

    Args:
        dim: D.
        gpu: that helps to build and to search it, as far as the kind can use one.

    Attributes:
        efforts: how hard a search may try, ascending. The first that is good enough on a sample is stored.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    efforts: ClassVar[tuple[int, ...]] = (1,)
    least: ClassVar[int] = 1  # vectors that it can be built of
    is_mergeable: ClassVar[bool] = False
    """Whether structures that were trained alike can be joined, so that several processes fill one each."""
    oversampling: ClassVar[int] = 1
    """Candidates per neighbour that is asked for; more than one where the structure knows the vectors only roughly."""

    def __init__(self, dim: int, gpu: Gpu | None = None) -> None:
        self.dim, self.gpu = dim, gpu
        self.faiss: Any = None

    @staticmethod
    @abstractmethod
    def memory(count: int, dim: int) -> int:
        """Bytes that N vectors take in memory while they are searched."""

    def build(self, vectors: np.ndarray, seed: int) -> None:
        """Take the vectors [N, D]."""
        self.train(vectors, seed)
        self.add(vectors)

    @abstractmethod
    def train(self, vectors: np.ndarray, seed: int) -> None:
        """Find from the vectors [N, D] how they will be kept, and keep none yet."""

    def trained(self) -> bytes:
        """The structure as bytes, before anything was added."""
        return faiss().serialize_index(self.faiss).tobytes()

    def take_trained(self, content: bytes) -> None:
        """Become what `trained` gave in another process."""
        self.faiss = faiss().deserialize_index(np.frombuffer(content, dtype=np.uint8))

    def join(self, path: Path) -> None:
        """Take the vectors of a structure that was trained alike and saved, behind the others."""
        part = faiss().read_index(str(path))
        self.faiss.merge_from(part, self.faiss.ntotal)

    def add(self, vectors: np.ndarray) -> None:
        """Take further vectors [n, D], behind the others."""
        pieces, add = range(0, len(vectors), PIECE), self._adding()
        for start in progress.track(pieces, f"building {self.name}", len(vectors), PIECE):
            add(np.ascontiguousarray(vectors[start : start + PIECE]))
            release(vectors)

    def _adding(self) -> Callable[[np.ndarray], None]:
        return self.faiss.add

    def search(self, queries: np.ndarray, k: int, effort: int, allowed: np.ndarray | None) -> np.ndarray:
        """Candidates int64 [Q, k]; -1 where there are no more.

        Args:
            queries: float32 [Q, D].
            k: how many.
            effort: one of `efforts`.
            allowed: bool [N], what may be proposed; None: all.
        """
        library, selector = faiss(), None
        if allowed is not None:
            bits = np.packbits(allowed, bitorder="little")
            selector = library.IDSelectorBitmap(len(allowed), library.swig_ptr(bits))
        structure = self._searched(k, allowed)
        # Other libraries import `faiss.contrib.torch_utils`, which puts a function in this place that takes no parameters.
        search = getattr(structure, "search_numpy", structure.search)
        return search(queries, k, params=self._parameters(effort, selector))[1]

    def _searched(self, k: int, allowed: np.ndarray | None) -> Any:
        """What searches: the structure, or its copy on a GPU."""
        return self.faiss

    def _parameters(self, effort: int, selector: Any) -> Any:
        raise NotImplementedError

    def save(self, path: Path) -> None:
        """Write the structure."""
        try:
            faiss().write_index(self.faiss, str(path))
        except RuntimeError as error:
            raise TrainingError(f"cannot write {path}: {_reason(error)}") from error

    def load(self, path: Path, count: int, *, is_mapped: bool) -> None:
        """Read the structure, whose checksum was verified.

        Args:
            path: of the file.
            count: N that is expected.
            is_mapped: leave it on the disk and read what a search needs; nothing can be added then.

        Raises:
            TrainingError: it is damaged or of other vectors.
        """
        library = faiss()
        try:
            flags = library.IO_FLAG_MMAP_IFC if is_mapped else 0
            self.faiss = library.read_index(str(path), flags)
        except (RuntimeError, MemoryError) as error:
            raise TrainingError(f"{path} cannot be read: {_reason(error)}. Build the index again") from error
        if self.faiss.ntotal != count or self.faiss.d != self.dim:
            raise TrainingError(
                f"{path} holds {self.faiss.ntotal:,} vectors of {self.faiss.d}, but {count:,} of {self.dim} are expected."
                f" Build the index again"
            )


def _reason(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1][:200] if str(error).strip() else type(error).__name__


class Flat(Structure):
    """Every vector is compared. There is no structure beside the vectors, and results are exact."""

    name = "flat"
    about = "compares a query with every vector"

    @staticmethod
    def memory(count: int, dim: int) -> int:
        return 4 * count * dim

    def train(self, vectors: np.ndarray, seed: int) -> None:
        pass

    def add(self, vectors: np.ndarray) -> None:
        pass

    def search(self, queries: np.ndarray, k: int, effort: int, allowed: np.ndarray | None) -> np.ndarray:
        raise AssertionError("exact search needs no candidates")

    def save(self, path: Path) -> None:
        raise AssertionError("there is nothing to save")


class Hnsw(Structure):
    """A graph of near vectors that a search walks along (Malkov and Yashunin, TPAMI 2020)."""

    name = "hnsw"
    about = "walks along a graph of near vectors"
    efforts = (64, 128, 256, 512)
    _LINKS = 16
    _CARE = 64  # vectors looked at for the links of each

    @staticmethod
    def memory(count: int, dim: int) -> int:
        return count * (4 * dim + 4 * 2 * Hnsw._LINKS + 4 * Hnsw._LINKS // 8 + 16)

    def train(self, vectors: np.ndarray, seed: int) -> None:
        library = faiss()
        self.faiss = library.IndexHNSWFlat(self.dim, self._LINKS, library.METRIC_INNER_PRODUCT)
        self.faiss.hnsw.efConstruction = self._CARE

    def _parameters(self, effort: int, selector: Any) -> Any:
        return faiss().SearchParametersHNSW(efSearch=effort, sel=selector)


class IvfFlat(Structure):
    """Vectors in lists around centres; a search looks into the nearest lists."""

    name = "ivf-flat"
    about = "compares a query with the vectors of the nearest lists"
    efforts = (8, 16, 32, 64, 128, 256)
    is_mergeable = True
    has_copy: ClassVar[bool] = True
    """Whether a GPU can search a copy of it."""

    def __init__(self, dim: int, gpu: Gpu | None = None) -> None:
        super().__init__(dim, gpu)
        self._copy: Any = None

    @staticmethod
    def memory(count: int, dim: int) -> int:
        return count * (4 * dim + 8) + 4 * dim * lists(count)

    def train(self, vectors: np.ndarray, seed: int) -> None:
        number = lists(len(vectors))
        self._faiss_of(number)
        clustering = self.faiss.cp
        clustering.seed, clustering.max_points_per_centroid, clustering.min_points_per_centroid = (
            seed + 1,
            _TRAINING_PER_LIST,
            1,
        )
        size = min(len(vectors), _TRAINING_PER_LIST * number)
        rows = np.sort(np.random.default_rng(seed).choice(len(vectors), size, replace=False))
        if self.gpu is not None:
            nearest = self.gpu.copy(self._quantizer)  # kept until the end: faiss does not own it
            self.faiss.clustering_index = nearest
        with progress.task(f"finding the centres of {number:,} lists"):
            self.faiss.train(np.ascontiguousarray(vectors[rows]))
        self.faiss.clustering_index = None

    def _faiss_of(self, number: int) -> None:
        library = faiss()
        self._quantizer = library.IndexFlatIP(self.dim)  # kept: faiss does not own it
        self.faiss = library.IndexIVFFlat(self._quantizer, self.dim, number, library.METRIC_INNER_PRODUCT)

    def _adding(self) -> Callable[[np.ndarray], None]:
        self._copy = None
        return super()._adding() if self.gpu is None else self.gpu.adding_to(self.faiss)

    def _searched(self, k: int, allowed: np.ndarray | None) -> Any:
        if self.gpu is None or not self.has_copy or allowed is not None or k > MOST:  # a GPU takes no conditions
            return self.faiss
        self._copy = self._copy or self.gpu.copy(self.faiss)
        return self._copy

    def _parameters(self, effort: int, selector: Any) -> Any:
        return faiss().SearchParametersIVF(nprobe=effort, sel=selector)


class IvfPq(IvfFlat):
    """Lists as in `IvfFlat`, whose vectors are kept as codes of about D / 4 bytes (Jegou, Douze and Schmid, TPAMI 2011)."""

    name = "ivf-pq"
    about = "looks into the nearest lists of short codes, and compares the best with their vectors"
    least = 256  # one for each value of a byte of a code
    oversampling = 8
    has_copy = False  # faiss searches codes of some lengths only on a GPU

    @staticmethod
    def memory(count: int, dim: int) -> int:
        return count * (code_bytes(dim) + 8) + 4 * dim * lists(count)

    def _faiss_of(self, number: int) -> None:
        library = faiss()
        self._quantizer = library.IndexFlatIP(self.dim)
        self.faiss = library.IndexIVFPQ(
            self._quantizer, self.dim, number, code_bytes(self.dim), 8, library.METRIC_INNER_PRODUCT
        )
        self.faiss.pq.cp.max_points_per_centroid = 64  # of 256 centres; more would take minutes and change nothing
        self.faiss.pq.cp.min_points_per_centroid = 1  # faiss would print a warning


KINDS: dict[str, type[Structure]] = {kind.name: kind for kind in (Flat, Hnsw, IvfFlat, IvfPq)}


def lists(count: int) -> int:
    """Lists of N vectors: about 4 sqrt(N), with enough vectors in each."""
    return max(1, min(round(4 * math.sqrt(count)), count // _TRAINING_PER_LIST))


def code_bytes(dim: int) -> int:
    """Bytes of a vector's code: the divisor of D that is nearest to D / 4."""
    return min((size for size in range(1, dim + 1) if dim % size == 0), key=lambda size: abs(size - dim / 4))


def choose(count: int, dim: int, memory: float, kind: str | None = None) -> tuple[type[Structure], str]:
    """The kind for N vectors of length D, and the reason as a sentence.

    Args:
        count: N.
        dim: D.
        memory: gigabytes that the structure may take.
        kind: what the user asked for; None: by size and memory.

    Raises:
        ConfigError: an unknown kind, or no memory.
    """
    if not memory > 0:
        raise ConfigError(f"memory is {memory:g}, but must be a positive number of gigabytes")
    what, limit = f"{count:,} vectors of {dim}", f"{memory:g} GB"
    if kind is not None:
        if kind not in KINDS:
            raise ConfigError(f"there is no kind of index '{kind}'.{suggestion(kind, KINDS)}")
        if count < KINDS[kind].least:
            return Flat, f"flat: {kind} was asked for, but needs at least {KINDS[kind].least} vectors, and there are {count}"
        return KINDS[kind], f"{kind}, as asked for: {KINDS[kind].about}"
    if count * dim <= EXACT and Flat.memory(count, dim) <= memory * GB:
        return Flat, f"flat: {what} are few enough to compare a query with all of them, which is exact"
    need = {kind: kind.memory(count, dim) / GB for kind in (Hnsw, IvfFlat, IvfPq)}
    if count <= GRAPH and need[Hnsw] <= memory:
        return Hnsw, f"hnsw: {what} are too many to compare with all, and with their graph take {need[Hnsw]:.2g} GB of {limit}"
    if need[IvfFlat] <= memory:
        why = "a graph would take long to build" if count > GRAPH else f"a graph would need {need[Hnsw]:.2g} GB"
        return IvfFlat, f"ivf-flat: of {what} {why}, and lists of the vectors take {need[IvfFlat]:.2g} GB of {limit}"
    return IvfPq, f"ivf-pq: {what} would take {need[IvfFlat]:.2g} GB, more than {limit}; short codes take {need[IvfPq]:.2g} GB"


def exact(
    vectors: np.ndarray, queries: np.ndarray, k: int, allowed: np.ndarray | None = None, gpu: Gpu | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of all vectors: scores float32 [Q, k] and positions int64 [Q, k]; -1 where there are no more.

    Args:
        vectors: float32 [N, D], also of a file.
        queries: float32 [Q, D].
        k: how many.
        allowed: bool [N], what may be found; None: all.
        gpu: that compares them; None: the processor.
    """
    library, gpu = faiss(), gpu if k <= MOST else None
    knn = getattr(library, "knn_numpy", library.knn)  # the same, which takes no arrays of files
    rows = None if allowed is None else np.flatnonzero(allowed)
    count = len(vectors) if rows is None else len(rows)
    piece = PIECE if rows is not None else count
    if gpu is not None:
        piece = max(AT_ONCE // vectors[:1].nbytes, 1)
    scores, places = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for start in range(0, count, max(piece, 1)):
        if rows is None:
            part = vectors[start : start + piece]
        else:
            part = np.ascontiguousarray(vectors[rows[start : start + piece]])
        if gpu is None:
            near, at = knn(queries, part, min(k, len(part)), metric=library.METRIC_INNER_PRODUCT)
        else:
            near, at = gpu.nearest(queries, part, min(k, len(part)))
        at = at + start if rows is None else rows[start + at]
        scores, places = np.hstack([scores, near]), np.hstack([places, at])
        if start:
            order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            scores, places = np.take_along_axis(scores, order, 1), np.take_along_axis(places, order, 1)
    return _filled(scores, places, k)


def _filled(scores: np.ndarray, places: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Exactly k columns."""
    missing = ((0, 0), (0, k - scores.shape[1]))
    return (
        np.pad(scores.astype(np.float32), missing, constant_values=-np.inf),
        np.pad(places.astype(np.int64), missing, constant_values=-1),
    )
