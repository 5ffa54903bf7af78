"""Evaluating a model on a data set: embedding it in batches, the baselines, and the rows of the table. The metrics
themselves are in `metrics`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dmlcore import progress
from dmlcore.errors import ConfigError, PluginError
from dmlcore.evaluation.metric import Metric, further
from dmlcore.evaluation.metrics import retrieval_metrics
from dmlcore.evaluation.relevance import Labels, select
from dmlcore.evaluation.reranking import reranked_metrics

if TYPE_CHECKING:
    from dmlcore.data import LabelledDataset
    from dmlcore.models import EmbeddingModel

COLUMNS = {
    "R@1": "recall@1",
    "R@2": "recall@2",
    "R@4": "recall@4",
    "R@8": "recall@8",
    "R-prec": "r_precision",
    "MAP@R": "map@r",
    "mAP": "map",
}
_RAW = {"images": "raw pixels", "features": "raw features", "texts": "raw trigrams"}
RAW_SIDE = 32  # pixels: larger images are averaged down to this before they are compared as they are


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def samples(dataset: LabelledDataset, batch_size: int = 256, workers: int | None = 0) -> Iterator[Tensor]:
    """All samples in order, as float32 batches [b, ...] without augmentation."""
    from dmlcore.data import OrderedBatches, batches

    ordered = batches(dataset, OrderedBatches(len(dataset), batch_size), workers=workers)
    for inputs, _ in progress.track(ordered, "embedding samples", len(dataset), batch_size):
        yield inputs


def embed(model: nn.Module, dataset: LabelledDataset, *, batch_size: int = 256, workers: int | None = 0) -> Tensor:
    """Embeddings of a data set, in its order.

    Args:
        model: gives [b, D] for a batch; run in evaluation mode, on the device it is on.
        dataset: N samples.
        batch_size: samples at a time.
        workers: processes that decode image files. None: as `dmlcore.data.loading.default_workers` says.

    Returns:
        [N, D] float32, on the model's device.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    serve = getattr(model, "serve", model)  # of an EmbeddingModel, whose own call gives what losses train on
    with _evaluating(model):
        parts = [serve(inputs.to(device)).float() for inputs in samples(dataset, batch_size, workers)]
    embeddings = torch.cat(parts)
    if embeddings.ndim != 2 or len(embeddings) != len(dataset):
        raise PluginError(
            f"the model gave embeddings of shape {tuple(embeddings.shape)} for {len(dataset)} samples;"
            f" expected ({len(dataset)}, D)"
        )
    return embeddings


def embed_named(
    model: EmbeddingModel, dataset: LabelledDataset, *, batch_size: int = 256, workers: int | None = 0, only: str | None = None
) -> dict[str, Tensor]:
    """Everything a model could serve, by name (`whole`, `head NAME`, `compressed`, `student`): `[N, d]` float32 each.

    Args:
        model: run in evaluation mode, on the device it is on.
        dataset: N samples.
        batch_size: samples at a time.
        workers: processes that decode image files. None: as `dmlcore.data.loading.default_workers` says.
        only: one name.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    parts: dict[str, list[Tensor]] = {}
    with _evaluating(model):
        for inputs in samples(dataset, batch_size, workers):
            outputs = model(inputs.to(device))
            embeddings = {"whole": model.whole(outputs)} if only == "whole" else model.embeddings(outputs)
            for name, rows in embeddings.items():
                if only in (None, name):
                    parts.setdefault(name, []).append(rows.float())
    return {name: torch.cat(rows) for name, rows in parts.items()}


def evaluate_named(
    model: EmbeddingModel, dataset: LabelledDataset, *, workers: int | None = 0, metrics: Sequence[Metric] = ()
) -> dict[str, dict[str, Any]]:
    """Retrieval metrics of everything a model could serve, by name; `embedding_dim` is the length of each."""
    return {
        name: {"embedding_dim": rows.shape[1], **evaluate(rows, dataset, metrics)}
        for name, rows in embed_named(model, dataset, workers=workers).items()
    }


def raw_features(dataset: LabelledDataset, *, workers: int | None = 0) -> Tensor:
    """The samples as they are: features, pixels with larger images averaged down to 32 x 32, or counts of the trigrams of
    texts; [N, F] float32."""
    from dmlcore.data import count_trigrams

    parts = []
    for inputs in samples(dataset, workers=workers):
        if inputs.ndim == 4 and max(inputs.shape[2:]) > RAW_SIDE:
            inputs = functional.adaptive_avg_pool2d(inputs, RAW_SIDE)  # [b, C, 32, 32]
        if inputs.dtype == torch.uint8:
            inputs = count_trigrams(inputs)
        parts.append(inputs.flatten(1))
    return torch.cat(parts)


def why_not_ranked(dataset: LabelledDataset) -> str:
    """Why the measures of retrieval cannot be computed on a data set; empty: they can."""
    if not len(dataset):
        return "no samples are left, so nothing can be measured"
    if not dataset.has_answer().any():
        if dataset.roles is not None:
            return "no query has a sample of its class in the gallery, so no measure of retrieval can be computed"
        return "every class has a single sample, so no query has anything to find, and no measure of retrieval can be computed"
    if dataset.num_classes == 1:
        return "there is one class, so whatever a query finds is right, and no measure of retrieval says anything"
    return ""


def evaluate(embeddings: Tensor, dataset: LabelledDataset, metrics: Sequence[Metric] = ()) -> dict[str, Any]:
    """Retrieval metrics of embeddings of a data set, and further measures. Every sample is a query against all others, or
    where the data have queries and a gallery, each query against the gallery.

    Args:
        embeddings: [N, D].
        dataset: N labels.
        metrics: measures beside those of retrieval, by `METRIC.name` in what is returned. They see all samples, and take those
            with the same labels for a class.

    Returns:
        Measures by name, without those of retrieval where these cannot be computed.
    """
    labels = torch.from_numpy(dataset.labels).to(embeddings.device)
    relevant = labels if dataset.sets is None else dataset.judged_sets()
    with progress.task(f"ranking {len(labels):,} samples"):
        ranked = {} if why_not_ranked(dataset) else _ranked(embeddings, relevant, dataset)
    levels = torch.from_numpy(dataset.labels_by_level()).to(labels.device) if dataset.levels else None
    return {**ranked, **further(metrics, embeddings, labels, levels)}


def evaluate_levels(
    embeddings: Tensor, part: str, dataset: LabelledDataset, metrics: Sequence[Metric] = ()
) -> dict[str, dict[str, Any]]:
    """`evaluate` by the name of the part, and measures of retrieval by `PART (LEVEL)` for each level of coarser labels."""
    levels = {f"{part} ({level})": evaluate(embeddings, dataset.at_level(level)) for level in dataset.levels}
    return {part: evaluate(embeddings, dataset, metrics), **levels}


def _ranked(embeddings: Tensor, labels: Labels, dataset: LabelledDataset) -> dict[str, float]:
    if dataset.roles is None:
        return retrieval_metrics(embeddings, labels)
    queries, references = dataset.queries, dataset.references
    is_both = np.isin(queries, references)
    return retrieval_metrics(
        embeddings[torch.from_numpy(queries)],
        select(labels, queries),
        embeddings[torch.from_numpy(references)],
        select(labels, references),
        own=np.where(is_both, np.searchsorted(references, queries), -1) if is_both.any() else None,
    )


def rerank(embeddings: Tensor, dataset: LabelledDataset, method: str) -> dict[str, Any]:
    """Retrieval metrics after re-ranking, every sample a query against all others; empty where nothing can be ranked.

    Raises:
        ConfigError: an unknown method, too many samples for it, data with queries and a gallery, or with several labels.
    """
    if why_not_ranked(dataset):
        return {}
    if dataset.roles is not None:
        raise ConfigError("re-ranking is measured with every sample as a query, but these data have queries and a gallery")
    if dataset.sets is not None:
        raise ConfigError("re-ranking is measured with one label per sample, but these have several")
    return reranked_metrics(embeddings, torch.from_numpy(dataset.labels), method)


def evaluate_model(
    model: nn.Module, dataset: LabelledDataset, *, workers: int | None = 0, metrics: Sequence[Metric] = ()
) -> dict[str, Any]:
    """Retrieval metrics of a model on a data set, and further measures."""
    return evaluate(embed(model, dataset, workers=workers), dataset, metrics)


def compare(
    model: nn.Module,
    untrained: nn.Module | None,
    parts: dict[str, LabelledDataset],
    *,
    kind: str,
    name: str = "untrained network",
    workers: int | None = 0,
    metrics: Sequence[Metric] = (),
    kept: dict[str, Tensor] | None = None,
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, dict[str, Any]]]]:
    """A model beside its two baselines.

    Args:
        model: the trained one.
        untrained: the same with its first weights, or None where these are not known.
        parts: data sets by name.
        kind: `images`, `features` or `texts`.
        name: of the untrained model among the baselines.
        workers: processes that decode image files. None: as `dmlcore.data.loading.default_workers` says.
        metrics: measures beside those of retrieval.
        kept: receives the embeddings of the trained model by part, [N, D], for what else is done with them.

    Returns:
        Metrics by part (and `PART (LEVEL)`), and metrics by baseline and part.
    """
    raw = _RAW[kind]
    results: dict[str, dict[str, Any]] = {}
    for part, dataset in parts.items():
        embeddings = embed(model, dataset, workers=workers)
        results |= evaluate_levels(embeddings, part, dataset, metrics)
        if kept is not None:
            kept[part] = embeddings
    without = {raw: lambda dataset: raw_features(dataset, workers=workers)}
    if untrained is not None:
        without[name] = lambda dataset: embed(untrained, dataset, workers=workers)
    baselines: dict[str, dict[str, dict[str, Any]]] = {}
    for baseline, embedded in without.items():
        baselines[baseline] = {}
        for part, dataset in parts.items():
            baselines[baseline] |= evaluate_levels(embedded(dataset), part, dataset, metrics)
    return results, baselines


def table_rows(
    metrics: dict[str, dict[str, Any]], baselines: dict[str, dict[str, dict[str, Any]]]
) -> list[tuple[str, list[float | None]]]:
    """Rows of the table of results: a label, and a number per entry of `COLUMNS`.

    Args:
        metrics: by part (`validation`, `test`).
        baselines: by name, then by part.
    """
    rows = []
    for part, values in metrics.items():
        rows.append((part, [values.get(key) for key in COLUMNS.values()]))
        for name, parts in baselines.items():
            if part in parts:
                rows.append((f"  {name}", [parts[part].get(key) for key in COLUMNS.values()]))
    return rows
