"""Groups of similar entries: k-means, agglomerative clustering and HDBSCAN, and how they agree with labels."""

from __future__ import annotations

import csv
import importlib
import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dmlcore import progress
from dmlcore.config import check_range
from dmlcore.errors import ConfigError, DataError, suggestion
from dmlcore.files import writable_text
from dmlcore.serving.entries import Entries, unit

WAYS = ("kmeans", "agglomerative", "hdbscan")
MOST = {"agglomerative": 20_000, "hdbscan": 100_000}  # samples: their time grows with the square of the number
BATCHED = 50_000  # samples from which k-means looks at a part of them in each step
TRIED = 2_000  # samples on which numbers of clusters are tried


@dataclass(frozen=True)
class Clusters:
    """Groups of N entries.

    Attributes:
        numbers: int64 [N], 0..C - 1 by falling size; -1 of entries in no group, which only HDBSCAN leaves.
        count: C.
        reason: how C came about, a sentence.
        measures: `nmi`, `ami` and `purity` where labels are known, over entries in groups.
        notes: what the user should know.
    """

    numbers: np.ndarray
    count: int
    reason: str
    measures: dict[str, float]
    notes: list[str] = field(default_factory=list)


def _sklearn(name: str) -> Any:
    try:
        return importlib.import_module(f"sklearn.{name}")
    except ImportError as error:
        raise ConfigError(f"clusters need scikit-learn ({error}). Run `pip install scikit-learn`") from None


def cluster(entries: Entries, *, by: str = "kmeans", count: int | None = None, least: int = 5, seed: int = 0) -> Clusters:
    """Groups of entries, by their cosines.

    Args:
        entries: N of them.
        by: `kmeans`, `agglomerative` (average linkage of cosines) or `hdbscan`, which finds the number itself.
        count: of clusters. None: the number of classes where all entries have labels, which is how clusters are compared with
            classes; else the number with the highest silhouette on a sample.
        least: entries of a group of HDBSCAN, at least.
        seed: of what is drawn.

    Raises:
        ConfigError: an unknown way, a number out of range, or a missing package.
        DataError: too few or too many entries.
    """
    if by not in WAYS:
        raise ConfigError(f"there is no way to cluster by '{by}'.{suggestion(by, WAYS)}")
    size = len(entries)
    if size < 3:
        raise DataError(f"there are {size} entries, too few for groups")
    if size > MOST.get(by, size):
        raise DataError(f"{by} compares all entries with all, and {size:,} are more than {MOST[by]:,}; take --by kmeans")
    check_range("count", count, least=2, most=size - 1)
    check_range("least", least, least=2)
    if by == "hdbscan" and count is not None:
        raise ConfigError("hdbscan finds the number of clusters itself; give --least, not --count")
    x = unit(entries.vectors)
    if by == "hdbscan":
        with progress.task(f"grouping {size:,} entries by hdbscan"):
            numbers = _sklearn("cluster").HDBSCAN(min_cluster_size=min(least, size), copy=True).fit_predict(x)
        reason = f"found by hdbscan, with at least {least} entries in each"
    else:
        count, reason = (count, "as asked for") if count is not None else _default_count(x, entries, by, seed)
        with progress.task(f"grouping {size:,} entries by {by}"):
            numbers = _grouped(x, by, count, seed)
    numbers = _by_size(numbers)
    found = int(numbers.max()) + 1
    outside = int((numbers < 0).sum())
    notes = [*entries.notes, *([f"{outside:,} entries are in no group"] if outside else [])]
    return Clusters(numbers, found, reason, _measures(numbers, entries), notes)


def _default_count(x: np.ndarray, entries: Entries, by: str, seed: int) -> tuple[int, str]:
    if entries.label is not None and "" not in entries.label:
        classes = len(set(entries.label))
        if 2 <= classes < len(x):
            return classes, "the number of classes"
    rows = np.unique(np.linspace(0, len(x) - 1, min(TRIED, len(x))).round().astype(int))
    part, best = x[rows], (-2.0, 2)
    tried = np.unique(np.geomspace(2, max(2, min(len(part) // 3, 300)), 12).round().astype(int))
    silhouette = _sklearn("metrics").silhouette_score
    for number in progress.track(tried.tolist(), "trying numbers of clusters", len(tried)):
        numbers = _grouped(part, by, number, seed)
        if 1 < len(np.unique(numbers)) < len(part):
            best = max(best, (float(silhouette(part, numbers, metric="cosine")), -number))
    return abs(best[1]), f"of {len(tried)} numbers that with the highest silhouette, {best[0]:.3f}, on {len(part):,} entries"


def _grouped(x: np.ndarray, by: str, count: int, seed: int) -> np.ndarray:
    ways = _sklearn("cluster")
    if by == "agglomerative":
        return ways.AgglomerativeClustering(count, metric="cosine", linkage="average").fit_predict(x.astype(np.float64))
    if len(x) > BATCHED:
        return ways.MiniBatchKMeans(count, random_state=seed, n_init=3, batch_size=8_192).fit_predict(x)
    return ways.KMeans(count, random_state=seed, n_init=5).fit_predict(x)


def _by_size(numbers: np.ndarray) -> np.ndarray:
    """The same groups, the largest first."""
    present, inverse, sizes = np.unique(numbers, return_inverse=True, return_counts=True)
    order = [place for place in np.argsort(-sizes, kind="stable") if present[place] >= 0]
    places = np.full(len(present), -1)
    places[order] = np.arange(len(order))
    return places[inverse].astype(np.int64)


def _measures(numbers: np.ndarray, entries: Entries) -> dict[str, float]:
    if entries.label is None or not any(entries.label):
        return {}
    rows = np.flatnonzero((numbers >= 0) & (np.array(entries.label) != ""))
    if not len(rows):
        return {}
    measures = _sklearn("metrics")
    names, labels = np.unique(np.array(entries.label)[rows], return_inverse=True)
    groups = numbers[rows]
    table = np.zeros((int(groups.max()) + 1, len(names)), dtype=np.int64)
    np.add.at(table, (groups, labels), 1)
    return {
        "nmi": float(measures.normalized_mutual_info_score(labels, groups)),
        "ami": float(measures.adjusted_mutual_info_score(labels, groups)),
        "purity": float(table.max(1).sum() / len(rows)),
    }


def clusters_csv(entries: Entries, clusters: Clusters) -> bytes:
    """A row for each entry: what identifies it, and the number of its group."""
    columns = {name: values for name, values in entries.all_columns().items() if name in ("path", "row", "label", "split")}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*columns, "cluster"])
    for row in zip(*columns.values(), clusters.numbers.tolist(), strict=True):
        writer.writerow([writable_text(str(value)) for value in row])
    return text.getvalue().encode()
