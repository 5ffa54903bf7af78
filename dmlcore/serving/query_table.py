"""A table with a row per query: what it is, how well it did, and the wrong answer nearest to it."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from dmlcore.evaluation.queries import QueryScores, nearest_wrong
from dmlcore.files import make_folder, replacing, writable_text
from dmlcore.serving.evaluation import Evaluation


def write_queries(evaluation: Evaluation, out: Path) -> int:
    """Write the queries of all measured parts.

    Args:
        evaluation: of one model.
        out: the .csv, which is replaced if it exists. Its columns are `part`, `row`, `path`, `label`, `positives`, the
            measures, and `wrong_row`, `wrong_path`, `wrong_label` and `wrong_score` of the nearest wrong answer. Measures of a
            query with nothing to find are empty.

    Returns:
        How many queries.

    Raises:
        TrainingError: the file cannot be written.
    """
    make_folder(out.parent)
    count = 0
    with replacing(out) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer: Any = None
        for part in evaluation.embeddings:
            if part not in evaluation.scores:
                continue
            for row in _rows(evaluation, part, evaluation.scores[part]):
                if writer is None:
                    writer = csv.DictWriter(file, list(row), lineterminator="\n")
                    writer.writeheader()
                writer.writerow(row)
                count += 1
    return count


def _rows(evaluation: Evaluation, part: str, scores: QueryScores) -> Iterator[dict[str, Any]]:
    dataset, source = evaluation.parts[part], evaluation.source
    embeddings = evaluation.embeddings[part]
    assert isinstance(embeddings, Tensor), "other processes have a part of the rows: see Evaluation.on_first"
    wrong, cosines = nearest_wrong(embeddings, dataset)
    places = source.places(dataset.rows)

    def named(prefix: str, position: int) -> dict[str, Any]:
        row = int(dataset.rows[position])
        label = dataset.class_names[int(dataset.dense_labels[position])]
        path = "" if source.paths is None else str(source.paths[row])
        return {
            f"{prefix}row": int(places[position]),
            f"{prefix}path": writable_text(path),
            f"{prefix}label": writable_text(label),
        }

    nothing: dict[str, Any] = dict.fromkeys(("wrong_row", "wrong_path", "wrong_label"), "")
    for at, query in enumerate(scores.queries.tolist()):
        has_answer = scores.positives[at] > 0
        measures = {name: f"{float(values[at]):.6g}" if has_answer else "" for name, values in scores.values.items()}
        nearest = int(wrong[at])
        yield {
            "part": part,
            **named("", query),
            "positives": int(scores.positives[at]),
            **measures,
            **(named("wrong_", nearest) if nearest >= 0 else nothing),
            "wrong_score": f"{float(cosines[at]):.6g}" if nearest >= 0 else "",
        }
