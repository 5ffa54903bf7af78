"""`dmlcore search`: the entries of an index that are nearest to pictures, rows, texts or a folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import App

from dmlcore import console
from dmlcore.commands.line import CommandLine
from dmlcore.commands.trained import LOADING, data_options
from dmlcore.commands.words import OVERWRITE, data_flags, list_flag, loading, words_flag
from dmlcore.errors import ConfigError
from dmlcore.flags import COMMON, command, flag
from dmlcore.hookspecs import hookimpl

if TYPE_CHECKING:
    from dmlcore.serving.entries import Entries
    from dmlcore.serving.index import Index
    from dmlcore.serving.search import Answer

IN_FULL = 12  # queries that get a table each; of more, each gets a line


@hookimpl
def dmlcore_commands(app: App, line: CommandLine) -> None:
    flags = [
        words_flag("INDEX QUERY...: the folder of an index; then pictures, folders, tables, files of embeddings, or texts."),
        flag("k", int, "Neighbours of a query.", 10),
        list_flag("where", "Condition that neighbours meet, such as `label=cup,bowl`, `label!=cup` or `price<10`."),
        flag("rows", str | None, "Rows of the queries, such as `0,4,10-19` (default: all)."),
        flag(
            "threshold",
            str | None,
            "Similarity below which nothing is a match: a number, or `none` (default: what `dmlcore verify` kept).",
        ),
        flag("others", bool, "Leave out the entry that is the query itself, by its path.", False),
        flag("rerank", str | None, "`query-expansion`, `augmentation` or `k-reciprocal`."),
        flag("html", Path | None, "A page with pictures to write."),
        flag("model", str | None, "The model that embeds the queries (default: the one that the index was built with)."),
        *data_flags(line, "search", 1),
        OVERWRITE,
        *LOADING,
        *COMMON,
    ]
    app.command(command(_search, flags, "Find the entries of an index that are nearest to some samples."), name="search")


def _search(
    *words: str,
    k: int,
    where: list[str] | None,
    rows: str | None,
    threshold: str | None,
    others: bool,
    rerank: str | None,
    html: Path | None,
    model: str | None,
    overwrite: bool,
    json: bool,
    debug: bool,
    **values: Any,
) -> int:
    from dmlcore.files import check_new, make_folder, write_atomically
    from dmlcore.serving.search import answers, find, rows_of, without_own
    from dmlcore.serving.search_page import search_page
    from dmlcore.serving.thresholds import chosen_threshold

    if len(words) < 2:
        raise ConfigError("`dmlcore search` needs INDEX and at least one QUERY. See `dmlcore search --help`.")
    if html is not None:
        check_new(html, [".html"], "html", overwrite=overwrite)
    index, queries, path = open_queries(words, model, loading(values), data_options(values))
    queries = rows_of(queries, rows)
    limit, origin = chosen_threshold(threshold, path, queries.model)
    hits = find(index, queries.vectors, k + others, where=where or (), rerank=rerank)
    if others:
        hits = without_own(index, queries, hits)
    result = answers(index, queries, hits, limit)
    for note in queries.notes:
        console.say(note)
    about = f"{len(result):,} queries in {words[0]}"
    if limit is not None:
        about += f"; matches reach {limit:.3f}" + (f", {origin}" if origin else "")
    if html is not None:
        make_folder(html.parent)
        write_atomically(html, search_page(result, about))
    if json:
        console.show_json(
            {
                "index": words[0],
                "threshold": limit,
                "rerank": rerank,
                "queries": [dataclasses.asdict(answer) for answer in result],
                **({} if html is None else {"html": str(html)}),
            }
        )
        return 0
    if limit is None and origin:
        console.say(origin)
    show_answers(result)
    if limit is not None:
        console.show_sentences(f"Matches reach {limit:.3f}" + (f", {origin}." if origin else "."))
    if html is not None:
        console.show(f"Look at it: {html}")
    return 0


def open_queries(
    words: tuple[str, ...], model: str | None, how: dict[str, Any], options: dict[str, Any]
) -> tuple[Index, Entries, str | None]:
    """The index of the first word, the queries of the others, and what embedded them or None."""
    from dmlcore.files import expanded
    from dmlcore.serving import Index, load
    from dmlcore.serving.entries import is_embeddings
    from dmlcore.serving.faiss_package import gpu_of
    from dmlcore.serving.search import model_of, queries_of

    # Copying an index to a GPU takes longer than a few queries, so it is not done unasked.
    index = Index(words[0], gpu=gpu_of(how["device"]) if how["device"] != "auto" else None)
    needs_model = any(not is_embeddings(expanded(word)) for word in words[1:])
    path = model_of(index, model, is_needed=needs_model)
    loaded = load(path, **how) if path is not None and needs_model else None
    queries = queries_of(words[1:], loaded, options)
    index.check_model(queries.model)
    return index, queries, path


def show_answers(answers: list[Answer]) -> None:
    """A table for each query, or of many queries a line for each."""
    from dmlcore.serving.search_page import name_of, none_of_these

    if len(answers) <= IN_FULL:
        for answer in answers:
            label = answer.query.get("label")
            console.show(name_of(answer.query) + (f" ({label})" if label else ""))
            if not answer.neighbours:
                console.show(f"  {none_of_these(answer)}")
                continue
            _show_neighbours(answer.neighbours)
        return
    rows = []
    for answer in answers:
        best = answer.neighbours[0] if answer.neighbours else None
        found = none_of_these(answer) if best is None else best.get("label") or name_of(best)
        score = answer.nearest if best is None else best["score"]
        rows.append(
            [
                _short(name_of(answer.query), False),
                _text(answer.query.get("label")),
                found,
                "-" if score is None else f"{score:.3f}",
            ]
        )
    console.show_table(["query", "its label", "nearest", "score"], rows)


def _show_neighbours(neighbours: list[dict[str, Any]]) -> None:
    """A table that fits: paths are shortened first, then further columns are left out."""
    from dmlcore.serving.search_page import name_of

    further = [name for name in neighbours[0] if name not in ("path", "row", "score", "label")]
    label = ["label"] if "label" in neighbours[0] else []
    for columns, is_short in (([*label, *further], False), ([*label, *further], True), (label, True)):
        names = [_short(name_of(entry), is_short) for entry in neighbours]
        cells = [[_text(entry[column]) for column in columns] for entry in neighbours]
        rows = [[f"{entry['score']:.3f}", *row, name] for entry, row, name in zip(neighbours, cells, names, strict=True)]
        if console.fits_table(["score", *columns, "entry"], rows):
            break
    console.show_table(["score", *columns, "entry"], rows)


def _short(name: str, is_short: bool) -> str:
    """A path as seen from here, or its last part alone."""
    here = f"{Path.cwd()}/"
    return f"…/{Path(name).name}" if is_short and "/" in name else name.removeprefix(here)


def _text(value: Any) -> str:
    return "-" if value in (None, "") else f"{value:.4g}" if isinstance(value, float) else str(value)
