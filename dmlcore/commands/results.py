"""Tables of measures, which `train` and `eval` share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dmlcore import console

WORST = 20  # classes that are shown


def show_metrics(
    metrics: dict[str, Any],
    baselines: dict[str, Any],
    title: str = "",
    recall_at: Sequence[int] | None = None,
    intervals: dict[str, Any] | None = None,
) -> None:
    """The table of results: the model and what it is compared with, a row for each part of the data; and further measures.

    Args:
        metrics: by part.
        baselines: by name and part.
        title: of the table.
        recall_at: values of k; None: all that were measured.
        intervals: lowest and highest value of each measure, by part.
    """
    from dmlcore.evaluation.result_table import columns, columns_of, table_rows

    shown = columns_of(metrics) if recall_at is None else columns(recall_at)
    halves = {
        part: {name: (high - low) / 2 for name, (low, high) in of_part.items()} for part, of_part in (intervals or {}).items()
    }
    rows = [
        (label, *map(_three_digits, values)) for label, values in table_rows(metrics, baselines, halves, tuple(shown.values()))
    ]
    console.show_table([title, *shown], rows, numbers=True)


def show_further(metrics: dict[str, Any], baselines: dict[str, Any]) -> None:
    """Measures beside those of retrieval, a row each: the model, and what it is compared with."""
    for part, values in metrics.items():
        further = [name for name in values if "." in name]
        columns = {part: values, **{name: parts[part] for name, parts in baselines.items() if part in parts}}
        rows = [(name, *(_three_digits(column.get(name)) for column in columns.values())) for name in further]
        if rows:
            console.show_table(["", *columns], rows, numbers=True)


def show_embeddings(embeddings: dict[str, Any]) -> None:
    """Everything the model could serve as its embedding: the whole, each head, the compressed, the student's."""
    from dmlcore.evaluation.result_table import columns_of

    for part in next(iter(embeddings.values()), {}):
        shown = columns_of({name: parts[part] for name, parts in embeddings.items()})
        rows = [
            (name, str(parts[part]["embedding_dim"]), *(_three_digits(parts[part].get(key)) for key in shown.values()))
            for name, parts in embeddings.items()
        ]
        console.show_table([f"{part}, by embedding", "length", *shown], rows, numbers=True)


def show_worst_classes(classes: dict[str, list[dict[str, Any]]], recall_at: Sequence[int]) -> None:
    """The classes of each part that are found worst."""
    from dmlcore.evaluation.result_table import columns

    shown = columns(recall_at)
    for part, rows in classes.items():
        cells = [(row["class"], f"{row['queries']:,}", *(_three_digits(row[key]) for key in shown.values())) for row in rows]
        console.show_table([f"{part}, by class", "queries", *shown], cells[:WORST], numbers=True)
        if len(rows) > WORST:
            console.show(f"The worst {WORST} of {len(rows):,} classes; --json has all.")


def show_comparison(result: dict[str, Any], recall_at: Sequence[int]) -> None:
    """Notes on stderr; the models, their measures, and the differences of each pair."""
    from dmlcore.evaluation.result_table import HALF, columns

    for note in result["notes"]:
        console.say(note)
    letters = result["letters"]
    for letter, name in zip(letters, result["names"], strict=True):
        console.show(f"{letter}: {name}")
    shown = columns(recall_at)
    headings = {key: heading for heading, key in shown.items()}
    for part, rows in result["comparison"].items():
        about = f"{part}, {result['queries'][part]:,} queries of {result['classes'][part]:,} classes"
        table = []
        for letter, model in zip(letters, result["models"], strict=True):
            table.append((letter, *(_three_digits(model["metrics"][part].get(key)) for key in shown.values())))
            if "intervals" in model:
                ends = model["intervals"][part]
                table.append((f"  {HALF}", *(_three_digits((ends[key][1] - ends[key][0]) / 2) for key in shown.values())))
        console.show_table([about, *shown], table, numbers=True)
        suffix = "_holm" if len(letters) > 2 else ""
        cells = [
            (
                f"{letters[row['second']]} - {letters[row['first']]}",
                headings[row["measure"]],
                f"{row['difference']:+.3f}",
                "-" if row["interval"] is None else f"{row['interval'][0]:+.3f} to {row['interval'][1]:+.3f}",
                _p_value(row[f"p_bootstrap{suffix}"]) if row["p_bootstrap"] is not None else "-",
                _p_value(row[f"p_flips{suffix}"]),
            )
            for row in rows
        ]
        console.show_table(
            [part, "measure", "difference", "95 % interval", "p, bootstrap", "p, sign flips"], cells, numbers=True
        )
    if len(letters) > 2:
        console.show_sentences("p-values are corrected by Holm's method for the number of pairs, for each measure.")


def _p_value(value: float) -> str:
    return f"{value:.4f}" if value >= 0.0001 else "<0.0001"


def _three_digits(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
