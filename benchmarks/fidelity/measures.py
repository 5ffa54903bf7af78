"""What the publications measure, by loops over rankings, clusters and pairs in float64."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans

from benchmarks.fidelity.rows import Row, batch, equal
from dmlcore import plugins
from dmlcore.data import FeatureStore, LabelledDataset
from dmlcore.evaluation import evaluating
from dmlcore.losses import unit

KS = (1, 10, 20, 30)
CLASSES = 6


def rows() -> list[Row]:
    """A row for each measure."""
    x, y = (tensor.numpy() for tensor in batch(5, samples=96, classes=CLASSES))
    return [_recall(x, y), *_neighbours(x, y), *_clusters(x, y), _pairs(x, y)]


def _measured(x: np.ndarray, y: np.ndarray, name: str = "", roles: np.ndarray | None = None, **options: Any) -> dict[str, Any]:
    names = [str(label) for label in range(CLASSES)]
    dataset = LabelledDataset(FeatureStore(x.astype(np.float32)), np.arange(len(x)), y, names, (x.shape[1],), roles=roles)
    metrics = [plugins.find("metric", name).component(**options)] if name else []
    return evaluating.measure(torch.from_numpy(x), dataset, metrics, KS)[0]


def _cosines(x: np.ndarray) -> np.ndarray:
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return x @ x.T


def _ranked(x: np.ndarray, query: int, references: list[int]) -> list[int]:
    cosines = _cosines(x)[query]
    return sorted((row for row in references if row != query), key=lambda row: -cosines[row])


def _error(published: dict[str, float], ours: dict[str, Any]) -> float:
    return max(abs(ours[name] - value) / max(abs(value), 1e-300) for name, value in published.items())


def _recall(x: np.ndarray, y: np.ndarray) -> Row:
    words = np.array(["query", "gallery", "gallery", "query"] * (len(x) // 4))
    queries, gallery = (np.flatnonzero(words == word).tolist() for word in ("query", "gallery"))
    hits = [[y[row] == y[query] for row in _ranked(x, query, gallery)] for query in queries]
    published = {f"recall@{k}": float(np.mean([any(ranked[:k]) for ranked in hits])) for k in KS}
    error = _error(published, _measured(x, y, roles=words))
    return equal("R@1, 10, 20, 30 of queries in a gallery", "In-Shop", "`--recall-at 1,10,20,30`", error, "all four")


def _neighbours(x: np.ndarray, y: np.ndarray) -> list[Row]:
    depth, votes, precision = 10, [], []
    for query in range(len(x)):
        ranked = _ranked(x, query, list(range(len(x))))
        votes.append(Counter(y[ranked[:3]].tolist()).most_common(1)[0][0] == y[query])
        right = [y[row] == y[query] for row in ranked]
        at = [sum(right[: rank + 1]) / (rank + 1) for rank in range(depth) if right[rank]]
        precision.append(sum(at) / min(depth, sum(right)))
    ours = _measured(x, y, "knn", k=3, depth=depth)
    accuracy = _error({"knn.accuracy": float(np.mean(votes))}, ours)
    cut = _error({f"knn.map@{depth}": float(np.mean(precision))}, ours)
    return [
        equal("accuracy of 3 nearest neighbours", "WEDL", "`--metrics knn --knn.k 3`", accuracy, "accuracy"),
        equal("mAP at a depth, as mAP@1000", "ooDML", "`--metrics knn --knn.depth 1000`", cut, "at depth 10"),
    ]


def _clusters(x: np.ndarray, y: np.ndarray) -> list[Row]:
    vectors = unit(torch.from_numpy(x)).numpy()
    order = np.argsort((vectors * np.random.default_rng(0).normal(size=x.shape[1])).sum(1), kind="stable")
    clusters, labels = KMeans(CLASSES, n_init=1, random_state=0).fit_predict(vectors[order]), y[order]
    count, both = len(y), Counter(zip(labels.tolist(), clusters.tolist(), strict=True))
    of_class, of_cluster = Counter(labels.tolist()), Counter(clusters.tolist())
    shared = sum(n / count * math.log(n * count / (of_class[a] * of_cluster[b])) for (a, b), n in both.items())
    entropies = [-sum(n / count * math.log(n / count) for n in sizes.values()) for sizes in (of_class, of_cluster)]
    pairs = [(i, j) for i in range(count) for j in range(i)]
    right = sum(labels[i] == labels[j] and clusters[i] == clusters[j] for i, j in pairs)
    precision = right / sum(clusters[i] == clusters[j] for i, j in pairs)
    recall = right / sum(labels[i] == labels[j] for i, j in pairs)
    ours = _measured(x, y, "clustering")
    nmi = _error({"clustering.nmi": 2 * shared / sum(entropies)}, ours)
    f1 = _error({"clustering.f1": 2 * precision * recall / (precision + recall)}, ours)
    sources = "SEC, WEDL, ooDML"
    return [
        equal("NMI of clusters by k-means", sources, "`--metrics clustering`", nmi, "on the same clusters"),
        equal("F1 of pairs in clusters by k-means", "SEC, ooDML", "`--metrics clustering`", f1, "on the same clusters"),
    ]


def _pairs(x: np.ndarray, y: np.ndarray) -> Row:
    cosines = _cosines(x)
    same = np.array([cosines[i, j] for i in range(len(x)) for j in range(i) if y[i] == y[j]])
    different = np.array([cosines[i, j] for i in range(len(x)) for j in range(i) if y[i] != y[j]])
    published = {}
    for far in (1e-1, 1e-2, 1e-3):
        thresholds = [t for t in (*same, *different) if np.mean(different >= t) <= far]
        published[f"verification.tar@{far:g}"] = max((float(np.mean(same >= t)) for t in thresholds), default=0.0)
    error = _error(published, _measured(x, y, "verification", fars=(1e-1, 1e-2, 1e-3)))
    what = "true accepts at rates of false accepts, all pairs"
    return equal(what, "SEC", "`--metrics verification`", error, "at 0.1 to 0.001")
