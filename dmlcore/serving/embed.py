"""The embeddings of data as a file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from dmlcore.errors import ConfigError
from dmlcore.evaluation import evaluating
from dmlcore.files import make_folder, remove_temporaries, write_atomically
from dmlcore.seals import seal_archive
from dmlcore.serving.inputs import words_of
from dmlcore.serving.run import TrainedRun


def write_embeddings(
    run: TrainedRun, data: Any, out: str | Path, options: dict[str, Any] | None = None, *, overwrite: bool = False
) -> dict[str, Any]:
    """Write `x` float32 [N, D], `row` int64 [N], `split` (text [N]) and, where there are labels, `y` int64 [N] and `class_name`
    (text [N]) of all samples, part by part. `row` is the sample's place among those of the data that can be read. `split` is
    `query` or `gallery` for test samples that are only one of these, `none` for samples of the run's data that are in no part,
    and `all` for other data.

    Args:
        run: whose model embeds.
        data: a data set's name, a path, or the data themselves, as `open_data` takes them.
        out: the .npz file.
        options: of the data.
        overwrite: replace a file that exists.

    Returns:
        What was written: the file, its samples, the length of an embedding, samples by part.

    Raises:
        ConfigError: `out` is no .npz file, exists already without `overwrite`, or its folder cannot be made.
        TrainingError: the file cannot be written; one that was there before is intact.
    """
    out = Path(out)
    if out.suffix != ".npz":
        raise ConfigError(f"out is '{out}', but must end in .npz")
    if out.exists() and not overwrite:
        raise ConfigError(f"{out} exists already; choose another --out, or replace it with --overwrite")
    make_folder(out.parent)
    opened = run.parts(data, options)
    parts = {name: part for name, part in opened.parts.items() if len(part)}
    workers = run.config.settings.data.workers
    arrays: dict[str, Any] = {
        "x": np.concatenate([evaluating.embed(run.model, part, workers=workers).cpu().numpy() for part in parts.values()]),
        "row": np.concatenate([np.asarray(part.rows, dtype=np.int64) for part in parts.values()]),
        "split": np.concatenate([words_of(name, part) for name, part in parts.items()]),
    }
    if opened.has_labels:
        names = [np.array(part.class_names, dtype=str)[part.dense_labels] for part in parts.values()]
        arrays |= {"y": np.concatenate([part.labels for part in parts.values()]), "class_name": np.concatenate(names)}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    seal_archive(buffer)
    remove_temporaries(out.parent)
    write_atomically(out, buffer.getbuffer())
    return {
        "out": str(out),
        "samples": len(arrays["x"]),
        "embedding_dim": arrays["x"].shape[1],
        "arrays": list(arrays),
        "run": str(run.folder.path),
        "step": run.step,
        "parts": {name: len(part) for name, part in parts.items()},
        "notes": opened.notes,
    }
