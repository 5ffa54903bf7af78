"""The embeddings of data as a file, in bounded memory and resumable. The forms of files are in `embedding_files.py`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dmlcore import progress
from dmlcore.config import check_range
from dmlcore.data import LabelledDataset
from dmlcore.errors import DataError
from dmlcore.files import make_folder, remove_temporaries
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
    out = Path(out)
    check_range("batch_size", batch_size, least=1)
    check_range("workers", workers, least=0, most=1024)
    check_form(out, overwrite=overwrite)
    make_folder(out.parent)
    parts = model.parts(data, options)
    whole, split = parts.joined()
    identity = {"model": model.fingerprint(), "precision": precision, "data": _identity(whole, parts), "samples": len(whole)}
    with GrowingMatrix(out.with_name(f".{out.name}.part"), model.embedding_dim, identity, note) as matrix:
        threads = default_threads() if workers is None else workers
        with progress.task("embedding samples", len(whole)) as advance:
            while matrix.rows < len(whole):
                start = matrix.rows
                block = whole.between(start, start + max(_BLOCK // batch_size, 1) * batch_size)
                failed: dict[int, str] = {}
                rows = []
                for batch in model.embed_batches(dataset_batches(block, batch_size, threads, failed), precision):
                    rows.append(batch.cpu())
                    advance(start + batch_size * len(rows))
                matrix.append(torch.cat(rows).numpy(), failed)
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
