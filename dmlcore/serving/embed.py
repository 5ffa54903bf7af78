"""The embeddings of data as a file, in bounded memory and resumable. The forms of files are in `embedding_files.py`."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed

from dmlcore import progress
from dmlcore.config import check_range
from dmlcore.data import LabelledDataset
from dmlcore.errors import DataError
from dmlcore.files import make_folder, remove_temporaries
from dmlcore.ranks import Group, Layout
from dmlcore.ranks.dividing import DividedRows, agreeing, dividing, told_by_first
from dmlcore.serving.embedding_files import Columns, check_form, write_columns
from dmlcore.serving.growing import GrowingMatrix
from dmlcore.serving.inputs import Parts
from dmlcore.serving.model import BATCH, Model, Precision
from dmlcore.serving.run import TrainedRun
from dmlcore.serving.samples import dataset_batches, default_threads

_BLOCK = 2**14  # samples after which what is done is brought to the disk
_PROBES = 64  # samples by whose content data are known again
_NAMED = 3  # samples named in a note


def write_embeddings(
    model: Model,
    data: Any,
    out: str | Path,
    options: dict[str, Any] | None = None,
    *,
    overwrite: bool = False,
    batch_size: int = BATCH,
    workers: int | None = None,
    precision: Precision = "fp32",
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Write the embeddings of data, in the order of their source, with what is known of the samples.

    An `.npz` holds `x` float32 [N, D], `row` int64 [N], `split` (text [N]), where there are labels `y` int64 [N] and
    `class_name` (text [N]), and where the samples are files `path` (text [N]). An `.npy` holds the embeddings, and a `.csv`
    beside it the rest. `.parquet` and `.arrow` hold the columns `row`, `path`, `label`, `split` and `embedding`. `row` is as in
    `Parts.places`. `split` is `none` for samples of a run's own data that are in no part, and `all` for other data.

    What is done lies in a folder beside the file until all is done. The same call goes on from there after an interruption.
    Several processes embed a block each in turn, and the first one writes. The others return nothing.

    Args:
        model: that embeds.
        data: as `Model.embed` takes them.
        out: the file; its ending says its form.
        options: of the data.
        overwrite: replace a file that exists.
        batch_size, workers, precision: as of `Model.encode`.
        note: is told in a sentence what happens to what an earlier call has left.

    Returns:
        What was written: the file, its samples, the length of an embedding, samples by part, notes.

    Raises:
        ConfigError: another form of file, `out` exists already without `overwrite`, or its folder cannot be made.
        DataError: the data cannot be used.
        TrainingError: the file cannot be written; one that was there before is intact.
    """
    out, group = Path(out), dividing()
    with agreeing(group):
        check_range("batch_size", batch_size, least=1)
        check_range("workers", workers, least=0, most=1024)
        check_form(out, overwrite=overwrite)
        parts = model.parts(data, options)
    whole, split = parts.joined()
    identity = {"model": model.fingerprint(), "precision": precision, "data": _identity(whole, parts), "samples": len(whole)}
    blocks = _Blocks(model, whole, batch_size, default_threads() if workers is None else workers, precision)
    if group is not None and group.rank:
        with agreeing(group):
            pass
        for _ in blocks.from_row(told_by_first(group, lambda: 0)):
            pass
        return {}
    with contextlib.ExitStack() as stack:
        with agreeing(group):
            make_folder(out.parent)
            matrix = GrowingMatrix(out.with_name(f".{out.name}.part"), model.embedding_dim, identity, note)
            stack.enter_context(matrix)
        start = matrix.rows if group is None else told_by_first(group, lambda: matrix.rows)
        for rows, failed in blocks.from_row(start):
            matrix.append(rows, failed)
        notes = [*parts.notes, *_told_failures(matrix.failed, len(whole))]
        is_read = np.ones(len(whole), dtype=bool)
        is_read[list(matrix.failed)] = False
        columns = Columns.of(parts, whole, split, is_read)
        remove_temporaries(out.parent)
        files = write_columns(out, matrix.values(), is_read, columns, identity["model"])
        matrix.remove()
    about = {"run": str(model.folder.path), "step": model.step} if isinstance(model, TrainedRun) else {"model": model.name}
    return {
        "out": str(out),
        "samples": int(is_read.sum()),
        "embedding_dim": model.embedding_dim,
        **files,
        **about,
        "parts": {name: len(part) for name, part in parts.parts.items() if len(part)},
        "notes": notes,
    }


class _Blocks:
    """The embeddings of a data set, block by block. Several processes embed a block each, and the first gets all."""

    def __init__(self, model: Model, whole: LabelledDataset, batch_size: int, threads: int, precision: Precision) -> None:
        self.model, self.whole = model, whole
        self.precision: Precision = precision
        self.batch_size, self.threads = batch_size, threads
        self.rows = max(_BLOCK // batch_size, 1) * batch_size  # of a block

    def from_row(self, start: int) -> Iterator[tuple[np.ndarray, dict[int, str]]]:
        """Rows float32 [b, D] from a row on, and by row of the block why one holds nothing."""
        group, count = dividing(), len(self.whole)
        with progress.task("embedding samples", count) as advance:
            while start < count:
                if group is None:
                    yield self._block(start, advance)
                    start += self.rows
                    continue
                yield from self._blocks_of_ranks(group, start, advance)
                start += self.rows * group.size

    def _blocks_of_ranks(self, group: Group, start: int, advance: Callable[[int], None]) -> Iterator[Any]:
        bounds = [min(start + number * self.rows, len(self.whole)) for number in range(group.size + 1)]
        sizes = tuple(stop - first for first, stop in itertools.pairwise(bounds))
        rows, failed = self._block(bounds[group.rank], advance)
        whole = DividedRows(torch.from_numpy(rows).to(self.model.device), Layout(group, group.rank, sizes)).on_first()
        tables: list[Any] = [None] * group.size
        distributed.all_gather_object(tables, failed, group=group.process_group)
        if whole is not None:
            pieces = whole.cpu().split(list(sizes))
            yield from ((piece.numpy(), table) for piece, table in zip(pieces, tables, strict=True) if len(piece))

    def _block(self, start: int, advance: Callable[[int], None]) -> tuple[np.ndarray, dict[int, str]]:
        failed: dict[int, str] = {}
        rows = [torch.empty(0, self.model.embedding_dim)]
        if start < len(self.whole):
            block = self.whole.between(start, start + self.rows)
            batches = dataset_batches(block, self.batch_size, self.threads, failed)
            for batch in self.model.embed_batches(batches, self.precision):
                rows.append(batch.cpu())
                advance(start + self.batch_size * (len(rows) - 1))
        return torch.cat(rows).numpy(), failed


def _identity(whole: LabelledDataset, parts: Parts) -> str:
    """What follows from the samples' order, names and labels, and from the content of some."""
    digest = hashlib.sha256(np.ascontiguousarray(whole.rows).data)
    digest.update(np.ascontiguousarray(whole.labels).data)
    paths = parts.paths
    for path in () if paths is None else (paths[row] for row in whole.rows.tolist()):
        digest.update(str(path).encode("utf-8", "surrogateescape") + b"\0")
    try:
        probes = whole.spread(_PROBES)
        digest.update(np.ascontiguousarray(probes.batch(range(len(probes))).numpy()).data)
    except DataError as error:  # which is noted when all are read
        digest.update(str(error).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _told_failures(failed: dict[int, str], count: int) -> list[str]:
    """A note on samples that could not be read.

    Raises:
        DataError: none could.
    """
    if not failed:
        return []
    shown = "; ".join(failed[row] for row in sorted(failed)[:_NAMED])
    if len(failed) == count:
        raise DataError(f"none of {count:,} samples can be read: {shown}")
    return [f"{len(failed):,} samples that cannot be read were left out: {shown}{'; ...' if len(failed) > _NAMED else ''}"]
