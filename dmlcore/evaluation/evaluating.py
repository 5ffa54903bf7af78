"""Evaluating a model on a data set: embedding it in batches, and the baselines. The metrics themselves are in `metrics`, the
table of results in `result_table`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dmlcore import progress
from dmlcore.errors import ConfigError, PluginError
from dmlcore.evaluation.metric import Embedded, Metric, curves_of, further
from dmlcore.evaluation.metrics import RECALL_AT
from dmlcore.evaluation.queries import QueryScores, rank_queries
from dmlcore.evaluation.reranking import reranked_metrics
from dmlcore.ranks.dividing import DividedRows, dividing, rows_of_ranks, told_by_first

if TYPE_CHECKING:
    from dmlcore.data import LabelledDataset
    from dmlcore.models import EmbeddingModel


_RAW = {"images": "raw pixels", "features": "raw features", "texts": "raw trigrams"}
BATCH = 128  # samples at a time. Of 256 small images the first activations are fresh pages each time, a third slower
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


def samples(dataset: LabelledDataset, batch_size: int = BATCH, workers: int | None = 0) -> Iterator[Tensor]:
    """All samples in order, as float32 batches [b, ...] without augmentation."""
    from dmlcore.data import OrderedBatches, batches

    ordered = batches(dataset, OrderedBatches(len(dataset), batch_size), workers=workers)
    for inputs, _ in progress.track(ordered, "embedding samples", len(dataset), batch_size):
        yield inputs


def embed(model: nn.Module, dataset: LabelledDataset, *, batch_size: int = BATCH, workers: int | None = 0) -> Tensor:
    """Embeddings of a data set, in its order.

    Args:
        model: gives [b, D] for a batch; run in evaluation mode, on the device it is on.
        dataset: N samples.
        batch_size: samples at a time.
        workers: processes that decode image files. None: as `dmlcore.data.loading.default_workers` says.

    Returns:
        [N, D] float32, on the model's device.
    """
    return whole_rows(embed_rows(model, dataset, batch_size=batch_size, workers=workers))


def embed_rows(
    model: nn.Module, dataset: LabelledDataset, *, batch_size: int = BATCH, workers: int | None = 0
) -> Tensor | DividedRows:
    """The same, where ranks divide the work with their rows left to each. Arguments as of `embed`."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    serve = getattr(model, "serve", model)  # of an EmbeddingModel, whose own call gives what losses train on
    with _evaluating(model):
        embeddings = _of_all_batches(dataset, lambda inputs: serve(inputs.to(device)).float(), batch_size, workers)
    _check_is_of(embeddings, dataset)
    return embeddings


def _check_is_of(embeddings: Tensor | DividedRows, dataset: LabelledDataset) -> None:
    own = embeddings.own if isinstance(embeddings, DividedRows) else embeddings
    if own.ndim != 2 or len(embeddings) != len(dataset):
        raise PluginError(
            f"the model gave embeddings of shape {tuple(own.shape)} for {len(dataset)} samples; expected ({len(dataset)}, D)"
        )


def whole_rows(rows: Tensor | DividedRows) -> Tensor:
    """All rows [N, D], on every rank."""
    return rows.whole() if isinstance(rows, DividedRows) else rows


def _of_all_batches(
    dataset: LabelledDataset, call: Callable[[Tensor], Tensor], batch_size: int, workers: int | None
) -> Tensor | DividedRows:
    """What a function makes of all batches [N, D]. Where ranks divide the work, each computes whole batches, so that every
    number is that of one process to the last bit."""

    if (group := dividing()) is None:
        return torch.cat([call(inputs) for inputs in samples(dataset, batch_size, workers)])
    calls = -(-len(dataset) // (batch_size * group.size))

    def rows_between(start: int, stop: int) -> Tensor:
        part = samples(dataset.between(start, stop), batch_size, workers) if start < stop else ()
        rows = [call(inputs) for inputs in part]
        # all ranks call it equally often: where parameters are divided, each call gathers them
        while len(rows) < calls:
            rows.append(call(dataset.between(0, 1).batch([0]))[:0])
        return torch.cat(rows)

    return rows_of_ranks(len(dataset), rows_between, batch_size)


def embed_named(
    model: EmbeddingModel,
    dataset: LabelledDataset,
    *,
    batch_size: int = BATCH,
    workers: int | None = 0,
    only: str | None = None,
) -> dict[str, Tensor]:
    """Everything a model could serve, by name (`whole`, `head NAME`, `compressed`, `student`): `[N, d]` float32 each.

    Args:
        model: run in evaluation mode, on the device it is on.
        dataset: N samples.
        batch_size: samples at a time.
        workers: processes that decode image files. None: as `dmlcore.data.loading.default_workers` says.
        only: one name.
    """
    named = named_rows(model, dataset, batch_size, workers, only)
    return {name: whole_rows(rows) for name, rows in named.items()}


def named_rows(
    model: EmbeddingModel,
    dataset: LabelledDataset,
    batch_size: int = BATCH,
    workers: int | None = 0,
    only: str | None = None,
) -> dict[str, Tensor | DividedRows]:
    """`embed_named`, with the rows left to each rank where ranks divide the work."""
    if not len(dataset):
        return {}
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    widths: dict[str, int] = {}

    def call(inputs: Tensor) -> Tensor:
        outputs = model(inputs.to(device))
        embeddings = {"whole": model.whole(outputs)} if only == "whole" else model.embeddings(outputs)
        parts = {name: rows.float() for name, rows in embeddings.items() if only in (None, name)}
        widths.update({name: rows.shape[1] for name, rows in parts.items()})
        return torch.cat(list(parts.values()), 1)  # side by side

    with _evaluating(model):
        rows = _of_all_batches(dataset, call, batch_size, workers)
    _check_is_of(rows, dataset)
    own = rows.own if isinstance(rows, DividedRows) else rows
    parts = dict(zip(widths, (part.contiguous() for part in own.split(list(widths.values()), 1)), strict=True))
    return {name: DividedRows(part, rows.layout) if isinstance(rows, DividedRows) else part for name, part in parts.items()}


def evaluate_named(
    embeddings: dict[str, Tensor | DividedRows],
    dataset: LabelledDataset,
    metrics: Sequence[Metric] = (),
    measured: dict[str, dict[str, Any]] | None = None,
    recall_at: Sequence[int] = RECALL_AT,
) -> dict[str, dict[str, Any]]:
    """Retrieval metrics of everything a model could serve, by name; `embedding_dim` is the length of each.

    Args:
        embeddings: by name, of `named_rows`.
        dataset: that was embedded.
        metrics: measures beside those of retrieval.
        measured: by name what `evaluate` gave already.
        recall_at: the values of k.
    """
    named: dict[str, dict[str, Any]] = {}
    for name, rows in embeddings.items():
        values = measured[name] if measured and name in measured else measure(rows, dataset, metrics, recall_at)[0]
        named[name] = {"embedding_dim": (rows.own if isinstance(rows, DividedRows) else rows).shape[1], **values}
    return named


def raw_features(dataset: LabelledDataset, *, workers: int | None = 0) -> Tensor:
    """The samples as they are: features, pixels with larger images averaged down to 32 x 32, or counts of the trigrams of
    texts; [N, F] float32."""
    return whole_rows(_of_all_batches(dataset, _raw, BATCH, workers))


def _raw(inputs: Tensor) -> Tensor:
    from dmlcore.data import count_trigrams

    if inputs.ndim == 4 and max(inputs.shape[2:]) > RAW_SIDE:
        inputs = functional.adaptive_avg_pool2d(inputs, RAW_SIDE)  # [b, C, 32, 32]
    return (count_trigrams(inputs) if inputs.dtype == torch.uint8 else inputs).flatten(1)


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


def check_names(metrics: Sequence[Metric], parts: Mapping[str, LabelledDataset]) -> None:
    """Refuse data of which a measure that goes by names can say nothing.

    Args:
        metrics: further measures.
        parts: that will be measured.

    Raises:
        DataError: a measure finds nothing in any of them.
    """
    asked = [metric for metric in metrics if metric.takes_names]
    names = {name: part.own_names() for name, part in parts.items()} if asked else {}
    for metric in asked:
        metric.check_names(names)


def evaluate(embeddings: Tensor | DividedRows, dataset: LabelledDataset, metrics: Sequence[Metric] = ()) -> dict[str, Any]:
    """Retrieval metrics of embeddings of a data set, and further measures. Every sample is a query against all others, or
    where the data have queries and a gallery, each query against the gallery.

    Args:
        embeddings: [N, D]; where ranks have divided them, all ranks call this, and have the numbers of one process. What needs
            all embeddings at once, as further measures do, is computed by rank 0.
        dataset: N labels.
        metrics: measures beside those of retrieval, by `METRIC.name` in what is returned. Samples with the same labels are
            of one class to them.

    Returns:
        Measures by name, without those of retrieval where these cannot be computed.
    """
    return measure(embeddings, dataset, metrics)[0]


def measure(
    embeddings: Tensor | DividedRows,
    dataset: LabelledDataset,
    metrics: Sequence[Metric] = (),
    recall_at: Sequence[int] = RECALL_AT,
) -> tuple[dict[str, Any], QueryScores | None]:
    """`evaluate` with chosen values of k, and what each query finds, if anything can be ranked."""
    with progress.task(f"ranking {len(dataset):,} samples"):
        scores = None if why_not_ranked(dataset) else rank_queries(embeddings, dataset, recall_at)
    if not metrics:
        return {**(scores.means if scores else {})}, scores
    if isinstance(embeddings, DividedRows):
        whole = embeddings.on_first()
        values = told_by_first(embeddings.layout.group, lambda: further(metrics, _embedded(whole, dataset, metrics)))
    else:
        values = further(metrics, _embedded(embeddings, dataset, metrics))
    return {**(scores.means if scores else {}), **values}, scores


def curves(embeddings: Tensor, dataset: LabelledDataset, metrics: Sequence[Metric]) -> dict[str, dict[str, Sequence[float]]]:
    """The curves of further measures by `METRIC.name`, each with columns by name. Arguments as of `evaluate`."""
    return curves_of(metrics, _embedded(embeddings, dataset, metrics))


def _embedded(embeddings: Tensor | None, dataset: LabelledDataset, metrics: Sequence[Metric]) -> Embedded:
    """A part of the data, as further measures are given it."""
    assert embeddings is not None
    labels = torch.from_numpy(dataset.labels).to(embeddings.device)
    levels = torch.from_numpy(dataset.labels_by_level()).to(labels.device) if dataset.levels else None
    roles = (torch.from_numpy(dataset.queries), torch.from_numpy(dataset.references))
    names = dataset.own_names() if any(metric.takes_names for metric in metrics) else ()
    return Embedded(embeddings, labels, levels, roles, names)


def evaluate_levels(
    embeddings: Tensor | DividedRows,
    part: str,
    dataset: LabelledDataset,
    metrics: Sequence[Metric] = (),
    recall_at: Sequence[int] = RECALL_AT,
    kept: dict[str, QueryScores] | None = None,
) -> dict[str, dict[str, Any]]:
    """`evaluate` by the name of the part, and measures of retrieval by `PART (LEVEL)` for each level of coarser labels.

    Args:
        embeddings: [N, D].
        part: its name.
        dataset: N samples.
        metrics: further measures of the finest labels.
        recall_at: the values of k.
        kept: receives by the same names what each query finds.
    """
    results: dict[str, dict[str, Any]] = {}
    for name, labelled in by_level(part, dataset).items():
        results[name], scores = measure(embeddings, labelled, metrics if name == part else (), recall_at)
        if kept is not None and scores is not None:
            kept[name] = scores
    return results


def by_level(part: str, dataset: LabelledDataset) -> dict[str, LabelledDataset]:
    """A part by its name, and by `PART (LEVEL)` with each level of coarser labels."""
    return {part: dataset, **{f"{part} ({level})": dataset.at_level(level) for level in dataset.levels}}


def rerank(
    embeddings: Tensor | DividedRows, dataset: LabelledDataset, method: str, recall_at: Sequence[int] = RECALL_AT
) -> dict[str, Any]:
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
    labels = torch.from_numpy(dataset.labels)
    if isinstance(embeddings, DividedRows):  # every re-ranking needs the neighbours of neighbours
        whole = embeddings.on_first()
        act = lambda: reranked_metrics(whole, labels, method, recall_at=recall_at)  # type: ignore[arg-type]  # noqa: E731
        return told_by_first(embeddings.layout.group, act)
    return reranked_metrics(embeddings, labels, method, recall_at=recall_at)


def evaluate_model(
    model: nn.Module,
    dataset: LabelledDataset,
    *,
    workers: int | None = 0,
    metrics: Sequence[Metric] = (),
    recall_at: Sequence[int] = RECALL_AT,
) -> dict[str, Any]:
    """Retrieval metrics of a model on a data set, and further measures."""
    return measure(embed_rows(model, dataset, workers=workers), dataset, metrics, recall_at)[0]


def baselines_of(
    untrained: nn.Module | None,
    parts: dict[str, LabelledDataset],
    *,
    kind: str,
    name: str,
    workers: int | None = 0,
    metrics: Sequence[Metric] = (),
    recall_at: Sequence[int] = RECALL_AT,
    known: Mapping[str, Tensor | DividedRows] | None = None,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Metrics by baseline and part (and `PART (LEVEL)`): the samples as they are, and an untrained model if there is one.

    Args:
        untrained: the model with its first weights, or None where these are not known.
        parts: data sets by name.
        kind: `images`, `features` or `texts`.
        name: of the untrained model among the baselines.
        workers: processes that decode image files. None: as `dmlcore.data.loading.default_workers` says.
        metrics: measures beside those of retrieval.
        recall_at: the values of k.
        known: embeddings [N, D] that the untrained model has given already, by part.
    """
    given: dict[str, Mapping[str, Tensor | DividedRows]] = {_RAW[kind]: {}, name: known or {}}
    without = {_RAW[kind]: lambda dataset: _of_all_batches(dataset, _raw, BATCH, workers)}
    if untrained is not None:
        without[name] = lambda dataset: embed_rows(untrained, dataset, workers=workers)
    baselines: dict[str, dict[str, dict[str, Any]]] = {}
    for baseline, embedded in without.items():
        baselines[baseline] = {}
        for part, dataset in parts.items():
            rows = given[baseline][part] if part in given[baseline] else embedded(dataset)
            baselines[baseline] |= evaluate_levels(rows, part, dataset, metrics, recall_at)
    return baselines
