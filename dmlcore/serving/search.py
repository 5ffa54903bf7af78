"""Searching an index: queries out of what the user names, neighbours re-ranked where asked for, and `none of these`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dmlcore.errors import ConfigError, DataError
from dmlcore.evaluation import reranking
from dmlcore.evaluation.reranking import RerankOptions
from dmlcore.files import expanded
from dmlcore.serving.entries import SUFFIXES, Entries, is_embeddings, of_arrays, select
from dmlcore.serving.gathering import gather
from dmlcore.serving.hub import SCHEME
from dmlcore.serving.index import Hits, Index
from dmlcore.serving.model import Model

CANDIDATES = 100  # entries that are re-ranked, at least


@dataclass(frozen=True)
class Answer:
    """What a query finds.

    Attributes:
        query: what identifies it: `path`, `row`, `label`, as far as known.
        neighbours: of each what identifies it and its `score`, a cosine; the best first.
        is_known: whether any neighbour reaches the threshold; None without a threshold.
        nearest: score of the nearest of all, also below the threshold; None where nothing could be found.
    """

    query: dict[str, Any]
    neighbours: list[dict[str, Any]]
    is_known: bool | None
    nearest: float | None


def queries_of(words: Sequence[str], model: Model | None, options: dict[str, Any] | None = None) -> Entries:
    """Queries out of words: pictures, folders, tables, files of embeddings, or texts of a model of texts.

    Args:
        words: at least one.
        model: None where all words name files of embeddings.
        options: of the data.

    Raises:
        ConfigError: a word needs a model, or names nothing.
        DataError: data that cannot be read.
    """
    parts = []
    for word in words:
        path = expanded(word)
        if model is not None and model.kind == "texts" and not path.exists():
            parts.append(replace(of_arrays(model.encode([word]), paths=[word]), model=model.fingerprint()))
            continue
        is_file = is_embeddings(path) or (model is None and path.suffix in SUFFIXES)
        parts.append(gather(word, None if is_file else _needed(model, word), options))
    known = sorted({part.model for part in parts if part.model})
    if len(known) > 1:
        raise ConfigError("the queries were embedded by different models, and no index can compare all of them")
    vectors = np.concatenate([part.vectors for part in parts]) if len(parts) > 1 else parts[0].vectors
    return Entries(
        vectors,
        _joined([part.path for part in parts], [len(part) for part in parts], words),
        np.concatenate([part.row for part in parts]),
        _joined([part.label for part in parts], [len(part) for part in parts], [""] * len(parts))
        if any(part.label is not None for part in parts)
        else None,
        notes=[note for part in parts for note in part.notes],
        model=known[0] if known else "",
    )


def _needed(model: Model | None, word: str) -> Model:
    if model is None:
        raise ConfigError(
            f"'{word}' is no file of embeddings, and the index does not say what made its embeddings; name that by --model"
        )
    return model


def _joined(columns: Sequence[list[str] | None], sizes: Sequence[int], instead: Sequence[str]) -> list[str]:
    texts: list[str] = []
    for column, size, word in zip(columns, sizes, instead, strict=True):
        texts += column if column is not None else [word] * size
    return texts


def find(
    index: Index,
    queries: Any,
    k: int = 10,
    *,
    where: Sequence[str] = (),
    rerank: str | None = None,
    options: RerankOptions | None = None,
) -> Hits:
    """The k nearest entries of each query, re-ranked where asked for. Scores stay cosines, whatever the order.

    Args:
        index: that is searched.
        queries: [Q, D] numbers.
        k: how many.
        where: conditions, as of `Index.search`.
        rerank: one of `reranking.METHODS`; None: none. `query-expansion` searches again, the others order the nearest
            `CANDIDATES` anew.
        options: of the method.

    Raises:
        ConfigError: as `Index.search`, or an unknown method.
    """
    if rerank is None:
        return index.search(queries, k, where=where)
    reranking.check_method(rerank)
    options = options or RerankOptions()
    x = index.checked(queries)
    hits = index.search(x, max(options.neighbours, 1), where=where)
    expanded_x = reranking.expand(x, index.vectors[np.maximum(hits.positions, 0)], hits.scores, options.alpha)
    if rerank == "query-expansion":
        return _with_cosines(index, x, index.search(expanded_x, k, where=where).positions)
    hits = index.search(x, max(CANDIDATES, 2 * k), where=where)
    order = np.empty_like(hits.positions)
    for number, places in enumerate(hits.positions):
        places = places[places >= 0]
        vectors = np.asarray(index.vectors[places])
        if rerank == "augmentation":
            near = index.search(vectors, options.neighbours + 1, where=where)
            weights = np.where(near.positions == places[:, None], 0, near.scores)
            moved = reranking.expand(vectors, index.vectors[np.maximum(near.positions, 0)], weights, options.alpha)
            scores = moved @ expanded_x[number]
        else:
            distances = reranking.squared_distances(np.concatenate([x[number : number + 1], vectors]))
            scores = -reranking.k_reciprocal(distances, 1, options.k1, options.k2, options.weight)[0, 1:]
        order[number] = -1
        order[number, : len(places)] = places[np.argsort(-scores, kind="stable")]
    return _with_cosines(index, x, order[:, :k])


def _with_cosines(index: Index, x: np.ndarray, positions: np.ndarray) -> Hits:
    scores = np.einsum("qd,qkd->qk", x, index.vectors[np.maximum(positions, 0)])
    return Hits(positions, np.where(positions < 0, -np.inf, scores).astype(np.float32))


def without_own(index: Index, queries: Entries, hits: Hits) -> Hits:
    """Hits without the entry that is the query itself, one fewer for each. Paths tell, and rows where those repeat."""
    if queries.path is None or "path" not in index.columns:
        raise ConfigError("entries and queries are told apart by their paths, but they have none")
    own = [str(Path(path).absolute()) for path in queries.path]
    has_rows = len(set(own)) < len(own)
    positions, scores = hits.positions[:, :-1].copy(), hits.scores[:, :-1].copy()
    for number, places in enumerate(hits.positions):
        entries = index.entries(np.maximum(places, 0))
        is_own = [
            place >= 0 and entry["path"] == own[number] and (not has_rows or entry["row"] == queries.row[number])
            for place, entry in zip(places, entries, strict=True)
        ]
        keep = np.flatnonzero(~np.array(is_own))[: len(places) - 1]
        positions[number], scores[number] = places[keep], hits.scores[number, keep]
    return Hits(positions, scores)


def answers(index: Index, queries: Entries, hits: Hits, threshold: float | None = None) -> list[Answer]:
    """What is told of hits. With a threshold, neighbours below it are left out."""
    list_of_answers = []
    known = queries.all_columns()
    for number, (positions, scores) in enumerate(zip(hits.positions, hits.scores, strict=True)):
        is_there = positions >= 0
        nearest = float(scores[is_there].max()) if is_there.any() else None
        if threshold is not None:
            is_there &= scores >= threshold
        neighbours = [
            {**entry, "score": float(score)}
            for entry, score in zip(index.entries(positions[is_there]), scores[is_there], strict=True)
        ]
        query = {name: values[number] for name, values in known.items()}
        list_of_answers.append(Answer(query, neighbours, None if threshold is None else bool(neighbours), nearest))
    return list_of_answers


def rows_of(entries: Entries, text: str | None) -> Entries:
    """Some of the entries.

    Args:
        entries: queries.
        text: such as `0,4,10-19`, counted from 0; None: all.

    Raises:
        DataError: it is no such text, or there are fewer entries.
    """
    if text is None:
        return entries
    rows: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.strip().isdigit() or (dash and not last.strip().isdigit()):
            raise DataError(f"rows are '{text}', but must be like 0,4,10-19")
        rows += range(int(first), int(last if dash else first) + 1)
        if rows and max(rows) >= len(entries):
            raise DataError(f"row {max(rows)} is asked for, but there are {len(entries):,}: 0 to {len(entries) - 1}")
    if not rows:
        raise DataError(f"rows are '{text}', which names none")
    return select(entries, rows)


def model_of(index: Index, asked: str | None, *, is_needed: bool = True) -> str | None:
    """What embeds queries, as a path or an address: what was asked for, else what built the index.

    Args:
        index: that is searched.
        asked: a path or an address, or None.
        is_needed: something will be embedded.

    Raises:
        ConfigError: the model is needed, and is no longer where it was.
    """
    path = asked if asked is not None else index.about["model"]
    if path is None or str(path).startswith(SCHEME):
        return path
    if asked is None and is_needed and not expanded(path).exists():
        raise ConfigError(
            f"the index in {index.folder.path} was built with the model in {path}, which is not there;"
            " say by --model where it is now"
        )
    return path
