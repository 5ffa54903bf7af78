"""Several models on the same queries, compared in pairs: differences with intervals and tests."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from dmlcore.data import LabelledDataset
from dmlcore.errors import ConfigError, DataError
from dmlcore.evaluation import resampling
from dmlcore.evaluation.resampling import ClassSums
from dmlcore.evaluation.result_table import columns_of
from dmlcore.serving.evaluation import Evaluation, EvaluationOptions
from dmlcore.serving.inputs import Parts

_TESTS = ("p_bootstrap", "p_flips")


def compare_evaluations(evaluations: Sequence[Evaluation], how: EvaluationOptions) -> dict[str, Any]:
    """Compare what was measured of several models.

    Args:
        evaluations: of at least two, on the same queries with the same references.
        how: as they were measured.

    Returns:
        `letters` and `models`, the name in tables and the result of each; `queries` and `classes`, their numbers by part;
        `comparison`: by part a dict for each pair and measure, with `first` and `second` (numbers of the models), `measure`,
        `difference` (second less first), `interval`, `p_bootstrap`, `p_flips`, and of more than two models these two by Holm's
        correction over the pairs, as `..._holm`; `notes`.

    Raises:
        ConfigError: fewer than two models.
        DataError: they were not measured on the same queries.
    """
    if len(evaluations) < 2:
        raise ConfigError("a comparison needs two models")
    for number, other in enumerate(evaluations[1:], 1):
        why = _why_not_paired(evaluations[0], other)
        if why:
            raise DataError(
                f"models {letter(0)} and {letter(number)} cannot be compared query by query: {why}. Name the same data for all"
                f" by --data"
            )
    measures = tuple(columns_of(evaluations[0].result["metrics"]).values())
    first = evaluations[0]
    names = [name for name in first.scores if all(name in other.scores for other in evaluations)]
    sums = {name: [_sums(evaluation, first, name, measures) for evaluation in evaluations] for name in names}
    notes: dict[str, None] = {}
    for number, evaluation in enumerate(evaluations):
        for note in evaluation.result["notes"]:
            is_shared = all(note in other.result["notes"] for other in evaluations)
            notes[note if is_shared else f"model {letter(number)}: {note}"] = None
    return {
        "data": first.result["data"],
        "letters": [letter(number) for number in range(len(evaluations))],
        "models": [
            {key: value for key, value in evaluation.result.items() if key != "baselines"} for evaluation in evaluations
        ],
        "queries": {name: int(of[0].counts.sum()) for name, of in sums.items()},
        "classes": {name: len(of[0].classes) for name, of in sums.items()},
        "comparison": {name: _pairs(of, how) for name, of in sums.items()},
        "notes": list(notes),
    }


def letter(number: int) -> str:
    """What a model is called in tables: A, B, ..., Z, then its number."""
    return chr(ord("A") + number) if number < 26 else str(number + 1)


def _sums(evaluation: Evaluation, first: Evaluation, name: str, measures: tuple[str, ...]) -> ClassSums:
    """Sums over the classes as the first model's data number them: a file of embeddings may have them in another order."""
    classes = first.parts[name].dense_labels[first.scores[name].queries]
    values = evaluation.scores[name].values
    return ClassSums.of({measure: values[measure] for measure in measures}, classes)


def _pairs(sums: Sequence[ClassSums], how: EvaluationOptions) -> list[dict[str, Any]]:
    rows = []
    for first, second in itertools.combinations(range(len(sums)), 2):
        for measure, found in resampling.differences(sums[first], sums[second], how.bootstrap, how.seed).items():
            rows.append(
                {
                    "first": first,
                    "second": second,
                    "measure": measure,
                    "difference": found.value,
                    "interval": None if found.low is None else [found.low, found.high],
                    "p_bootstrap": found.p_bootstrap,
                    "p_flips": found.p_flips,
                }
            )
    if len(sums) > 2:
        for measure, test in itertools.product(sums[0].measures, _TESTS):
            family = [row for row in rows if row["measure"] == measure and row[test] is not None]
            corrected = resampling.holm(np.array([row[test] for row in family]))
            for row, value in zip(family, corrected.tolist(), strict=True):
                row[f"{test}_holm"] = value
    return rows


def _why_not_paired(first: Evaluation, second: Evaluation) -> str:
    """Why queries cannot be paired; empty: they can."""
    if list(first.embeddings) != list(second.embeddings):
        return f"their parts are {', '.join(first.embeddings)} and {', '.join(second.embeddings)}"
    for name in first.embeddings:
        one, other = first.parts[name], second.parts[name]
        left, right = _identity(first.source, one), _identity(second.source, other)
        if left == right:
            continue
        if set(one.class_names) != set(other.class_names):
            differing = sorted(set(one.class_names) ^ set(other.class_names))
            return f"{len(differing):,} classes, such as '{differing[0]}', are in '{name}' of only one of them"
        return f"the samples of '{name}' differ, or their order, labels or roles do"
    for name in first.scores.keys() & second.scores.keys():
        if not np.array_equal(first.scores[name].positives, second.scores[name].positives):  # other labels count, say
            return f"other answers are right in '{name}'"
    return ""


def _identity(source: Parts, dataset: LabelledDataset) -> tuple[list[str], list[str], list[str]]:
    """What must be equal: name, label and role of every sample."""
    names = dataset.class_names
    return (
        [str(source.paths[row] if source.paths is not None else source.sample_names[row]) for row in dataset.rows.tolist()],
        [names[label] for label in dataset.dense_labels.tolist()],
        [] if dataset.roles is None else dataset.roles.tolist(),
    )
