"""`dmlcore classify`: classes for samples by the labelled entries of an index, or none of these."""

from __future__ import annotations

import csv
import dataclasses
import io
from pathlib import Path
from typing import Any

from cyclopts import App

from dmlcore import console
from dmlcore.commands.line import CommandLine
from dmlcore.commands.search import open_queries
from dmlcore.commands.trained import LOADING, data_options
from dmlcore.commands.words import OVERWRITE, data_flags, loading, words_flag
from dmlcore.errors import ConfigError
from dmlcore.flags import COMMON, command, flag
from dmlcore.hookspecs import hookimpl

SHOWN = 40  # rows of the table


@hookimpl
def dmlcore_commands(app: App, line: CommandLine) -> None:
    flags = [
        words_flag("INDEX QUERY...: the folder of an index; then pictures, folders, tables, files of embeddings, or texts."),
        flag("by", str, "`neighbours`, `means` of classes, or `probe`, a linear one.", "neighbours"),
        flag("k", int, "Neighbours that vote.", 10),
        flag("others", bool, "Leave out the entry that is the query itself, by its path; for `neighbours`.", False),
        flag("rows", str | None, "Rows of the queries, such as `0,4,10-19` (default: all)."),
        flag(
            "threshold",
            str | None,
            "Similarity to the nearest entry below which a query is of no class: a number, or `none` (default: what `dmlcore"
            " verify` kept of the model).",
        ),
        flag("out", Path | None, "A .csv to write, with a row for each query."),
        flag("model", str | None, "The model that embeds the queries (default: the one that the index was built with)."),
        *data_flags(line, "classify", 1),
        OVERWRITE,
        *LOADING,
        *COMMON,
    ]
    app.command(command(_classify, flags, "Say of which class samples are, by the entries of an index."), name="classify")


def _classify(
    *words: str,
    by: str,
    k: int,
    others: bool,
    rows: str | None,
    threshold: str | None,
    out: Path | None,
    model: str | None,
    overwrite: bool,
    json: bool,
    debug: bool,
    **values: Any,
) -> int:
    from dmlcore.files import check_new, make_folder, writable_text, write_atomically
    from dmlcore.serving.classify import accuracy, classify
    from dmlcore.serving.search import rows_of
    from dmlcore.serving.search_page import name_of
    from dmlcore.serving.thresholds import chosen_threshold

    if len(words) < 2:
        raise ConfigError("`dmlcore classify` needs INDEX and at least one QUERY. See `dmlcore classify --help`.")
    if out is not None:
        check_new(out, [".csv"], "out", overwrite=overwrite)
    index, queries, path = open_queries(words, model, loading(values), data_options(values))
    queries = rows_of(queries, rows)
    limit, origin = chosen_threshold(threshold, path, queries.model)
    verdicts = classify(index, queries, by=by, k=k, threshold=limit, others=others)
    about = accuracy(verdicts, set(index.values("label")[index.positions()]))
    table = [
        [name_of(v.query), v.query.get("label") or "", v.label or "", f"{v.share:.3f}", v.guess, f"{v.nearest:.3f}"]
        for v in verdicts
    ]
    if out is not None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["query", "label", "class", "share", "guess", "nearest"])
        writer.writerows([[writable_text(cell) for cell in row] for row in table])
        make_folder(out.parent)
        write_atomically(out, text.getvalue().encode())
    if json:
        console.show_json({"by": by, "threshold": limit, **about, "queries": [dataclasses.asdict(v) for v in verdicts]})
        return 0
    for note in queries.notes:
        console.say(note)
    if limit is None and origin:
        console.say(origin)
    shown = [[row[0], row[2] or "none of these", row[3], row[5]] for row in table[:SHOWN]]
    console.show_table(["query", "class", "share", "nearest"], shown)
    if len(table) > SHOWN:
        console.show(f"{len(table) - SHOWN:,} more are not shown; --out and --json have them.")
    _show_accuracy(about, limit, origin)
    if out is not None:
        console.show(f"Written: {out}")
    return 0


def _show_accuracy(about: dict[str, Any], limit: float | None, origin: str) -> None:
    if limit is not None:
        console.show_sentences(f"Below {limit:.3f} a query is of none of these classes" + (f", {origin}." if origin else "."))
    if "accuracy" in about:
        rejected = about["accuracy_without_rejection"]
        console.show_sentences(
            f"Of {about['known']:,} queries whose class the index has, {about['accuracy']:.3f} are right"
            + (f" ({rejected:.3f} without rejection)." if limit is not None else ".")
        )
    if about["own"] and "accuracy" in about:
        console.show_sentences(
            f"{about['own']:,} of the queries are entries of the index, or equal to one, which makes them easy."
            " With --others no query finds its own entry."
        )
    if "strange_rejected" in about:
        console.show_sentences(
            f"Of {about['strange']:,} queries of other classes {about['strange_rejected']:.3f} are rejected."
        )
