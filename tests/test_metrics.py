"""Measures that are plugins, against loops in float64 and scikit-learn, with queries and a gallery too."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from dmlcore import plugins
from dmlcore.data import FeatureStore, LabelledDataset
from dmlcore.evaluation import evaluating


def samples(count: int = 90, classes: int = 12) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    y = generator.integers(0, classes, count)
    return (generator.normal(size=(classes, 6))[y] + generator.normal(size=(count, 6))).astype(np.float32), y


def parts(roles: list[str] | None, count: int) -> tuple[list[int], list[int]]:
    words = roles or ["test"] * count
    return [at for at in range(count) if words[at] != "gallery"], [at for at in range(count) if words[at] != "query"]


def measured(
    name: str, x: np.ndarray, y: np.ndarray, roles: list[str] | None, levels: Any = None, **options: Any
) -> dict[str, Any]:
    dataset = LabelledDataset(
        FeatureStore(x),
        np.arange(len(x)),
        y,
        [str(label) for label in range(int(y.max()) + 1)],
        (x.shape[1],),
        roles=None if roles is None else np.array(roles),
        levels=levels,
    )
    values = evaluating.evaluate(torch.from_numpy(x), dataset, [plugins.find("metric", name).component(**options)])
    return {key.partition(".")[2]: value for key, value in values.items() if key.startswith(f"{name}.")}


def ranking(x: np.ndarray, query: int, references: list[int]) -> list[int]:
    x = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    return sorted((row for row in references if row != query), key=lambda row: -float(x[query] @ x[row]))


ROLES = [None, ["query", "gallery", "gallery"] * 30, ["query", "gallery", "test"] * 30]


@pytest.mark.parametrize("roles", ROLES)
@pytest.mark.parametrize("cells", [1 << 22, 100])
def test_knn_by_loops(roles: list[str] | None, cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import dmlcore_plugins.metrics.knn

    monkeypatch.setattr(dmlcore_plugins.metrics.knn, "SIMILARITIES", cells)
    x, y = samples()
    queries, references = parts(roles, len(x))
    right, precisions = [], []
    for query in queries:
        ranked = ranking(x, query, references)
        hits = [y[row] == y[query] for row in ranked]
        if not any(hits):
            continue
        votes = Counter(int(y[row]) for row in ranked[:5])
        winner = next(int(y[row]) for row in ranked if votes[int(y[row])] == max(votes.values()))
        right.append(winner == y[query])
        found = sum(sum(hits[: rank + 1]) / (rank + 1) for rank in range(7) if hits[rank])
        precisions.append(found / min(7, sum(hits)))
    expected = {"accuracy": np.mean(right), "map@7": np.mean(precisions)}
    assert measured("knn", x, y, roles, depth=7) == pytest.approx(expected, abs=1e-12)


def test_knn_at_any_depth_are_the_average_precision() -> None:
    x, y = samples()
    values = evaluating.evaluate(
        torch.from_numpy(x), LabelledDataset(FeatureStore(x), np.arange(90), y, list("abcdefghijkl"), (6,))
    )
    found = measured("knn", x, y, None, k=1)
    assert found["map@1000"] == pytest.approx(values["map"]) and found["accuracy"] == pytest.approx(values["recall@1"])


@pytest.mark.parametrize("roles", ROLES)
def test_graded_relevance_by_loops_and_scikit_learn(roles: list[str] | None) -> None:
    ndcg_score = pytest.importorskip("sklearn.metrics", reason="an oracle of NDCG").ndcg_score
    x, y = samples()
    coarse = y // 4
    queries, references = parts(roles, len(x))
    unit = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    gains, precisions = [], []
    for query in queries:
        ranked = ranking(x, query, references)
        agreed = [int(y[row] == y[query]) + int(coarse[row] == coarse[query]) for row in ranked]
        if not any(agreed):
            continue
        gains.append(ndcg_score([[2.0**level - 1 for level in agreed]], [[float(unit[query] @ unit[row]) for row in ranked]]))
        share = {level: level / 2 / agreed.count(level) for level in set(agreed)}
        relevance = [share[level] for level in agreed]
        total = 0.0
        for at in range(len(ranked)):
            if agreed[at]:
                total += sum(min(relevance[at], relevance[before]) for before in range(at + 1)) / (at + 1)
        precisions.append(total / sum(relevance))
    found = measured("hierarchical", x, y, roles, {"group": [str(label // 4) for label in range(12)]})
    assert found == pytest.approx({"ndcg": np.mean(gains), "h_ap": np.mean(precisions)}, abs=1e-6)


def test_clusters_agree_with_scikit_learn_and_loops() -> None:
    sklearn = pytest.importorskip("sklearn.metrics", reason="clusters need scikit-learn")
    from dmlcore_plugins.metrics.clustering import pair_f1

    generator = np.random.default_rng(0)
    classes, clusters = generator.integers(0, 4, 40), generator.integers(0, 5, 40)
    pairs = [(one, other) for one in range(40) for other in range(one)]
    same = [(classes[one] == classes[other], clusters[one] == clusters[other]) for one, other in pairs]
    assert pair_f1(classes, clusters) == pytest.approx(sklearn.f1_score(*zip(*same, strict=True)))
    assert pair_f1(classes, classes) == 1 and math.isnan(pair_f1(np.arange(3), np.arange(3)))
    x, y = np.eye(3, 8, dtype=np.float32)[np.arange(30) % 3], np.arange(30) % 3
    assert measured("clustering", x, y, None) == pytest.approx({"nmi": 1, "ami": 1, "f1": 1})
    x, y = samples(300, 6)
    found, shuffle = measured("clustering", x, y, None), generator.permutation(300)
    assert found == pytest.approx(measured("clustering", x[shuffle], y[shuffle], None))
    assert 0 < found["ami"] < found["nmi"] < 1 and 0 < found["f1"] < 1
    unrelated = measured("clustering", generator.normal(size=(300, 6)).astype(np.float32), y, None)
    assert abs(unrelated["ami"]) < 0.05
