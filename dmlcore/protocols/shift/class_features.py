"""A vector per class: the mean of its samples as they are, of a trunk's features, or of a trained model's embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from dmlcore.data import LabelledDataset, Table, load_table
from dmlcore.data.sources import DataSource
from dmlcore.errors import DataError
from dmlcore.evaluation.evaluating import embed, raw_features
from dmlcore.files import expanded
from dmlcore.models import build_model, images_wanted
from dmlcore.serving import TrainedRun
from dmlcore.training.building import choose_device

AS_THEY_ARE = "features"
_CHUNK = 4096  # samples whose features are in memory at a time


def is_run(model: str) -> bool:
    """Whether a model is named by the folder of a run."""
    return expanded(model).is_dir()


def class_means(
    data: str,
    options: dict[str, Any],
    *,
    model: str = AS_THEY_ARE,
    model_options: dict[str, Any] | None = None,
    image_size: int | None = None,
    device: str = "auto",
    workers: int = 0,
    seed: int = 0,
    trusts_plugins: bool = False,
) -> tuple[DataSource, Table, np.ndarray]:
    """Read data and describe every class by a mean.

    Args:
        data: what `--data` names.
        options: of the data.
        model: `features`, a trunk's name, or the folder of a run (whose served embedding is taken).
        model_options: of the trunk.
        image_size: pixels, or None.
        device: of a model.
        workers: processes that decode image files.
        seed: of the weights of a trunk that has none of its own.
        trusts_plugins: run the files of code that the run names.

    Returns:
        The source, its table, and float64 [C, F], a row per class of the table.

    Raises:
        ConfigError: no such model or option.
        DataError: data that cannot be read, of another shape than the run takes, or features that are not finite.
    """
    if model == AS_THEY_ARE:
        source, table = load_table(data, options=options, image_size=image_size)
        describe: Callable[[LabelledDataset], Tensor] = lambda part: raw_features(part, workers=workers)  # noqa: E731
    elif is_run(model):
        run = TrainedRun(expanded(model), device=device, trusts_plugins=trusts_plugins)
        size = run.sample_shape[1] if run.kind == "images" else None
        source, table = load_table(data, options=options, image_size=size)
        run.check_fits(data, table)
        describe = lambda part: embed(run.model, part, workers=workers)  # noqa: E731
    else:
        where = choose_device(device)
        images = images_wanted(model, model_options)
        source, table = load_table(
            data,
            options=options,
            image_size=image_size,
            default_image_size=images.size,
            interpolation=images.interpolation,
        )
        built = build_model(model, sample_shape=table.sample_shape, kind=table.kind, options=model_options, seed=seed)
        trunk = built.trunk.to(where)
        describe = lambda part: embed(trunk, part, workers=workers)  # noqa: E731
    return source, table, _means(table, describe)


def _means(table: Table, describe: Callable[[LabelledDataset], Tensor]) -> np.ndarray:
    sums: np.ndarray | None = None
    for start in range(0, len(table.labels), _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, len(table.labels)))
        labels = table.labels[rows]
        part = LabelledDataset(table.samples, rows, labels, table.class_names, table.sample_shape)
        vectors = describe(part).double().cpu().numpy()  # [b, F]
        if sums is None:
            sums = np.zeros((len(table.class_names), vectors.shape[1]))
        np.add.at(sums, labels, vectors)
    assert sums is not None
    if not np.isfinite(sums).all():
        raise DataError("the model gives features that are NaN or infinite for this data")
    return sums / np.bincount(table.labels, minlength=len(sums))[:, None]
