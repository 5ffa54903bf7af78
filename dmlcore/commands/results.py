"""Tables of measures, which `train` and `eval` share."""

from __future__ import annotations

from typing import Any

from dmlcore import console


def show_metrics(metrics: dict[str, Any], baselines: dict[str, Any], title: str = "") -> None:
    """The table of results: the model and what it is compared with, a row for each part of the data."""
    from dmlcore.evaluation.evaluating import COLUMNS, table_rows

    rows = [(label, *map(_three_digits, values)) for label, values in table_rows(metrics, baselines)]
    console.show_table([title, *COLUMNS], rows, numbers=True)


def show_embeddings(embeddings: dict[str, Any]) -> None:
    """Everything the model could serve as its embedding: the whole, each head, the compressed, the student's."""
    from dmlcore.evaluation.evaluating import COLUMNS

    for part in next(iter(embeddings.values()), {}):
        rows = [
            (name, str(parts[part]["embedding_dim"]), *(_three_digits(parts[part].get(key)) for key in COLUMNS.values()))
            for name, parts in embeddings.items()
        ]
        console.show_table([f"{part}, by embedding", "length", *COLUMNS], rows, numbers=True)


def _three_digits(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
