"""Evaluation of a model on data, or of embeddings in a file: measures with intervals, baselines, and what each query finds. The
measures are in `evaluation`, the comparison of several models in `compare_models.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmlcore.config import check_range
from dmlcore.data import LabelledDataset
from dmlcore.errors import ConfigError, DataError
from dmlcore.evaluation import Metric, evaluating, reranking, resampling
from dmlcore.evaluation.metrics import RECALL_AT, checked_ks
from dmlcore.evaluation.queries import QueryScores
from dmlcore.evaluation.resampling import ClassSums
from dmlcore.ranks.dividing import DividedRows, agreeing, dividing, rows_of_ranks
from dmlcore.serving.embedded_parts import MEASURED_PARTS, parts_of_entries
from dmlcore.serving.entries import read_embeddings
from dmlcore.serving.inputs import Parts
from dmlcore.serving.model import BATCH, Model
from dmlcore.serving.samples import dataset_batches, default_threads
from dmlcore.training.result import named_metrics

MOST_REPLICATES = 1_000_000


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """What is measured.

    Raises:
        ConfigError: a value is out of range, or there is no such re-ranking.
    """

    recall_at: Sequence[int] | None = None
    """Values of k of `recall@k` and `precision@k`. None: those that the model was trained with, or 1, 2, 4, 8."""
    bootstrap: int = resampling.REPLICATES
    """Replicates behind the intervals. 0: no intervals."""
    seed: int = 0
    """Of what is drawn for them."""
    rerank: str | None = None
    """Also measure re-ranking by this method, one of `reranking.METHODS`."""
    metrics: Sequence[Metric] | None = None
    """Further measures. None: those that the model was trained with."""

    def __post_init__(self) -> None:
        if self.recall_at is not None and not checked_ks(self.recall_at):
            raise ConfigError("recall_at is empty, but must hold a whole number of at least 1")
        check_range("bootstrap", self.bootstrap, least=0, most=MOST_REPLICATES)
        check_range("seed", self.seed, least=0)
        if self.rerank is not None:
            reranking.check_method(self.rerank)

    def with_recall_of(self, model: Model | str | Path) -> EvaluationOptions:
        """The same, with the values of k of a model, or of none for a file of embeddings, where none are said."""
        if self.recall_at is not None:
            return self
        return replace(self, recall_at=tuple(model.recall_at) if isinstance(model, Model) else RECALL_AT)

    @property
    def ks(self) -> Sequence[int]:
        """The values of k, once they are known."""
        assert self.recall_at is not None, "see with_recall_of"
        return self.recall_at


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        result: for a file or `--json`: where the embeddings are from, `data`, `metrics` and `intervals` by part, `notes`.
        source: names and files of the samples.
        parts: the parts that were measured, and `PART (LEVEL)` for each level of coarser labels.
        embeddings: [N, D] by part; where several processes have divided the work, the rows of each.
        scores: what each query finds, by part and level. Those are missing in which nothing can be ranked.
    """

    result: dict[str, Any]
    source: Parts
    parts: dict[str, LabelledDataset]
    embeddings: dict[str, Tensor | DividedRows]
    scores: dict[str, QueryScores] = field(default_factory=dict)

    def on_first(self) -> Evaluation:
        """The same with all embeddings on the first of several processes, and none on the others."""
        rows = {name: part.on_first() if isinstance(part, DividedRows) else part for name, part in self.embeddings.items()}
        return replace(self, embeddings={name: part for name, part in rows.items() if part is not None})

    def classes(self, name: str) -> list[dict[str, Any]]:
        """The measures of each class of a part, the lowest MAP@R first. Of samples with several labels, those of each label."""
        return _class_rows(self.scores[name], self.parts[name])


def evaluate(
    model: Model | str | Path,
    data: Any = None,
    options: dict[str, Any] | None = None,
    how: EvaluationOptions | None = None,
    *,
    is_compared: bool = False,
) -> Evaluation:
    """Measure a model on data, or embeddings in a file as they are.

    Args:
        model: one that was loaded, or the file of embeddings, as `dmlcore embed` writes it.
        data: a name, a path, or the data themselves, as `Model.parts` takes them. None: the classes that a run held out. A file
            of embeddings takes none.
        options: of the data.
        how: what is measured; None: the defaults.
        is_compared: without baselines and embeddings beside the one that is served. All samples of `data` are measured, even of
            a run whose own data these are.

    Raises:
        ConfigError: there are no data, or too many.
        DataError: the data cannot be used, or have no labels.
    """
    how = (how or EvaluationOptions()).with_recall_of(model)
    if isinstance(model, Model):
        return _evaluate_model(model, data, options, how, is_compared)
    if data is not None:
        raise ConfigError(f"'{model}' holds embeddings, which are measured themselves: leave --data out, or name a model")
    with agreeing(dividing()):
        source = parts_of_entries(read_embeddings(model), str(model))
        evaluating.check_names(how.metrics or (), source.parts)
    embeddings = {name: rows_of_ranks(len(part), _fetch(part)) for name, part in source.parts.items()}
    return _measured({"embeddings_file": str(model)}, source, embeddings, how, how.metrics or ())


def _evaluate_model(
    model: Model, data: Any, options: dict[str, Any] | None, how: EvaluationOptions, is_compared: bool
) -> Evaluation:
    if data is None and not model.has_data:
        raise ConfigError(f"{model.name} has no data of its own: name some by --data")
    with agreeing(dividing()):
        opened = Model.parts(model, data, options) if is_compared and data is not None else model.parts(data, options)
        if not opened.has_labels:
            raise DataError(
                f"'{opened.name}' has no labels, so nothing can be measured on it. `dmlcore embed` writes its embeddings"
            )
        parts = {name: part for name, part in opened.parts.items() if name in (*MEASURED_PARTS, "all")}
        evaluating.check_names(how.metrics or (), parts)  # a run's own measures may be of other data
    source = Parts(opened.name, parts, opened.notes, True, opened.sample_names, opened.paths)
    threads = default_threads()
    embeddings = {
        name: rows_of_ranks(len(part), _embed(model, part, threads), BATCH) for name, part in parts.items() if len(part)
    }
    metrics = model.measures() if how.metrics is None else how.metrics
    evaluation = _measured(model.identity, source, embeddings, how, metrics)
    if is_compared:
        return evaluation
    name, untrained = model.baseline(opened.parts.get("train"))
    named = {part: dataset for part, dataset in parts.items() if len(dataset)}
    evaluation.result["baselines"] = evaluating.baselines_of(
        untrained, named, kind=model.kind, name=name, workers=model.workers, metrics=metrics, recall_at=how.ks
    )
    evaluation.result.update(named_metrics(model.model, named, model.workers, metrics, how.ks))
    return evaluation


def _embed(model: Model, part: LabelledDataset, threads: int) -> Callable[[int, int], Tensor]:
    """A function that embeds some samples of a part."""

    def embed(start: int, stop: int) -> Tensor:
        batches = dataset_batches(part.between(start, stop), BATCH, threads) if stop > start else ()
        rows = list(model.embed_batches(batches))
        return torch.cat(rows) if rows else torch.empty(0, model.embedding_dim, device=model.device)

    return embed


def _fetch(part: LabelledDataset) -> Callable[[int, int], Tensor]:
    """A function that gives some samples of a part, which are embeddings already."""
    return lambda start, stop: part.samples.fetch(part.rows[start:stop])


def _measured(
    identity: dict[str, Any],
    source: Parts,
    embeddings: dict[str, Tensor | DividedRows],
    how: EvaluationOptions,
    metrics: Sequence[Metric],
) -> Evaluation:
    whys = {name: evaluating.why_not_ranked(part) for name, part in source.parts.items()}
    notes = [*source.notes, *(f"{name}: {why}" for name, why in whys.items() if why)]
    measured: dict[str, dict[str, Any]] = {}
    parts: dict[str, LabelledDataset] = {}
    scores: dict[str, QueryScores] = {}
    for name, rows in embeddings.items():
        parts |= evaluating.by_level(name, source.parts[name])
        measured |= evaluating.evaluate_levels(rows, name, source.parts[name], metrics, how.ks, scores)
    result: dict[str, Any] = {**identity, "data": source.name, "metrics": measured, "baselines": {}, "notes": notes}
    group = dividing()
    if how.bootstrap and (group is None or group.rank == 0):
        result["bootstrap"] = {"replicates": how.bootstrap, "seed": how.seed, "over": "classes", "level": resampling.LEVEL}
        result["intervals"] = {
            name: resampling.intervals(_class_sums(of_part, parts[name]), how.bootstrap, how.seed)
            for name, of_part in scores.items()
        }
    if how.rerank is not None:
        result["rerank"] = how.rerank
        result["reranked"] = {
            name: evaluating.rerank(rows, source.parts[name], how.rerank, how.ks) for name, rows in embeddings.items()
        }
    return Evaluation(result, source, parts, embeddings, scores)


def _class_sums(scores: QueryScores, dataset: LabelledDataset) -> ClassSums:
    """What intervals draw. Of samples with several labels, those with the same ones make a class."""
    return ClassSums.of(scores.values, dataset.dense_labels[scores.queries])


def _class_rows(scores: QueryScores, dataset: LabelledDataset) -> list[dict[str, Any]]:
    if dataset.sets is None:
        values, classes, names = scores.values, dataset.dense_labels[scores.queries], dataset.class_names
    else:  # a query counts for each of its labels
        sets = dataset.judged_sets().select(scores.queries)
        of_query = np.repeat(np.arange(len(sets)), sets.sizes)
        values = {name: rows[of_query] for name, rows in scores.values.items()}
        classes, names = sets.index, dataset.label_names
    sums = ClassSums.of(values, classes)
    means = sums.means()
    order = np.argsort(means[:, sums.measures.index("map@r")], kind="stable")
    return [
        {
            "class": names[int(sums.classes[at])],
            "queries": int(sums.counts[at]),
            **dict(zip(sums.measures, means[at].tolist(), strict=True)),
        }
        for at in order
    ]
