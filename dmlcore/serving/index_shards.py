"""Filling the structure of an index by several processes. The first one finds how vectors are kept, each puts a part of the
vectors in, and the first joins the parts. The result is that of one process, byte by byte.

The vectors are read from the folder of the index, and the parts written there, so all processes must see that folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import distributed

from dmlcore.ranks import Group
from dmlcore.ranks.dividing import dividing, share_of, told_by_first
from dmlcore.serving import index_files
from dmlcore.serving.faiss_package import Gpu
from dmlcore.serving.index_kinds import KINDS, PIECE, Structure


@dataclass(frozen=True)
class _Order:
    """What the first process asks of the others."""

    kind: str
    trained: bytes
    vectors: str
    count: int
    dim: int


def announce(choose: Callable[[], type[Structure]]) -> None:
    """Tell the processes that `help_first` which kind of structure will be filled. A mistake of `choose` is raised by all."""
    group = dividing()
    if group is None:
        choose()
    else:
        told_by_first(group, lambda: choose().name)


def add(structure: Structure, vectors: np.ndarray, path: Path) -> None:
    """Put all vectors into a trained structure, on the first process.

    Args:
        structure: without vectors.
        vectors: float32 [N, D].
        path: of their file.
    """
    group = dividing()
    if group is None or not structure.is_mergeable:
        structure.add(vectors)
        return
    told_by_first(group, lambda: _Order(structure.name, structure.trained(), str(path), *vectors.shape))
    structure.add(_share(vectors, group))
    for part in map(Path, _parts_of_all(group, None)):
        structure.join(part)
        part.unlink()


def help_first(gpu: Gpu | None = None) -> None:
    """What the other processes do while the first one builds an index, on a GPU of their own or without one."""
    group = dividing()
    assert group is not None and group.rank > 0
    kind = told_by_first(group, lambda: "")
    if not KINDS[kind].is_mergeable:
        return
    order: _Order = told_by_first(group, lambda: None)  # type: ignore[assignment, return-value]
    structure = KINDS[order.kind](order.dim, gpu)
    structure.take_trained(order.trained)
    structure.add(_share(index_files.read_vectors(Path(order.vectors), order.count, order.dim), group))
    path = Path(order.vectors)
    # With the number of the process, so that what a killed one leaves is removed.
    part = path.with_name(f".part-{group.rank}-of-{path.stem}.{os.getpid()}.tmp")
    structure.save(part)
    _parts_of_all(group, str(part))


def _share(vectors: np.ndarray, group: Group) -> np.ndarray:
    """The vectors of this process: whole pieces, so that their lists are those that one process finds."""
    pieces = share_of(-(-len(vectors) // PIECE), group.rank, group.size)
    return vectors[pieces.start * PIECE : pieces.stop * PIECE]


def _parts_of_all(group: Group, own: str | None) -> list[str]:
    """The files of all processes that wrote one, in their order."""
    names: list[str | None] = [None] * group.size
    distributed.all_gather_object(names, own, group=group.process_group)
    return [name for name in names if name is not None]
