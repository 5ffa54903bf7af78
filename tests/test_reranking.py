"""Re-ranking against slow statements of the publications, and its measures against those of plain ranking."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dmlcore.errors import ConfigError
from dmlcore.evaluation import reranking, retrieval_metrics
from dmlcore.evaluation.reranking import RerankOptions


def samples(count: int = 120, classes: int = 15, dim: int = 8, noise: float = 0.7) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), count // classes)
    x = generator.normal(size=(classes, dim))[labels] + noise * generator.normal(size=(count, dim))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), labels


def slow_k_reciprocal(x: np.ndarray, k1: int, k2: int, weight: float) -> np.ndarray:
    """Zhong et al. 2017 in loops and sets, as sections 3.2 to 3.4 describe it."""
    count = len(x)
    d = np.array([[((a - b) ** 2).sum() for b in x] for a in x.astype(np.float64)])
    d = d / d.max(1, keepdims=True)
    rank = [sorted(range(count), key=lambda j, i=i: (d[i, j], j)) for i in range(count)]

    def reciprocal(i: int, k: int) -> set[int]:
        return {j for j in rank[i][: k + 1] if i in rank[j][: k + 1]}

    encodings = np.zeros((count, count))
    for i in range(count):
        members = reciprocal(i, k1)
        grown = set(members)
        for j in members:
            half = reciprocal(j, round(k1 / 2))
            if len(half & members) > 2 / 3 * len(half):
                grown |= half
        total = sum(np.exp(-d[i, j]) for j in grown)
        for j in grown:
            encodings[i, j] = np.exp(-d[i, j]) / total
    averaged = np.array([encodings[rank[i][:k2]].mean(0) for i in range(count)])
    final = np.empty_like(d)
    for i in range(count):
        for j in range(count):
            low = np.minimum(averaged[i], averaged[j]).sum()
            high = np.maximum(averaged[i], averaged[j]).sum()
            final[i, j] = (1 - weight) * (1 - low / high) + weight * d[i, j]
    return final


@pytest.mark.parametrize(("k1", "k2", "weight"), [(20, 6, 0.3), (5, 1, 0.0), (7, 3, 1.0)])
def test_k_reciprocal_is_what_the_paper_says(k1: int, k2: int, weight: float) -> None:
    x, _ = samples(60, 10)
    final = reranking.k_reciprocal(reranking.squared_distances(x), 60, k1, k2, weight)
    np.testing.assert_allclose(final, slow_k_reciprocal(x, k1, k2, weight), atol=2e-5)
    some = reranking.k_reciprocal(reranking.squared_distances(x), 7, k1, k2, weight)
    np.testing.assert_array_equal(some, final[:7])


def test_expansion_by_hand() -> None:
    query = np.array([[1.0, 0.0]], dtype=np.float32)
    found = np.array([[[0.6, 0.8], [0.0, 1.0], [-1.0, 0.0]]], dtype=np.float32)
    scores = np.array([[0.6, 0.0, -1.0]], dtype=np.float32)
    expected = np.array([1 + 0.6**3 * 0.6, 0.6**3 * 0.8])
    np.testing.assert_allclose(reranking.expand(query, found, scores, 3.0)[0], expected / np.linalg.norm(expected), rtol=1e-6)
    np.testing.assert_array_equal(reranking.expand(query, found, np.full((1, 3), -np.inf), 3.0), query)


def test_augmentation_by_loops() -> None:
    x, _ = samples()
    augmented = reranking.augment(x, 4, 2.0)
    for i in (0, 57, 119):
        s = x @ x[i]
        s[i] = -2
        near = np.argsort(-s)[:4]
        expected = x[i] + sum(max(s[j], 0) ** 2 * x[j] for j in near)
        np.testing.assert_allclose(augmented[i], expected / np.linalg.norm(expected), atol=1e-6)


def test_measures_without_a_change_are_those_of_plain_ranking() -> None:
    x, labels = samples()
    tensors = torch.from_numpy(x), torch.from_numpy(labels)
    plain = retrieval_metrics(*tensors)
    kept = reranking.reranked_metrics(*tensors, "k-reciprocal", RerankOptions(weight=1.0))  # the distance alone
    assert kept == pytest.approx(plain)
    for method in reranking.METHODS:
        better = reranking.reranked_metrics(*tensors, method)
        assert better.keys() == plain.keys() and better["map@r"] > plain["map@r"], method


def test_a_wrong_name_and_too_many_samples_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = (torch.from_numpy(values) for values in samples())
    with pytest.raises(ConfigError, match="Did you mean 'k-reciprocal'"):
        reranking.reranked_metrics(x, labels, "k-reciprokal")
    monkeypatch.setattr(reranking, "MOST", 100)
    with pytest.raises(ConfigError, match="more than 100"):
        reranking.reranked_metrics(x, labels, "k-reciprocal")
    with pytest.raises(ConfigError, match="weight"):
        RerankOptions(weight=2)


def test_an_index_ranks_as_the_whole_set_does(tmp_path: Path) -> None:
    pytest.importorskip("faiss", reason="an index needs faiss-cpu")
    pytest.importorskip("pyarrow", reason="an index needs pyarrow")
    from dmlcore.serving.entries import of_arrays
    from dmlcore.serving.index import build_index
    from dmlcore.serving.search import find

    x, _ = samples(96, 12)
    index = build_index(of_arrays(x[1:]), tmp_path / "index")
    final = reranking.k_reciprocal(reranking.squared_distances(x), 1)[0, 1:]
    hits = find(index, x[:1], 10, rerank="k-reciprocal")  # fewer entries than candidates: all are compared
    np.testing.assert_allclose(final[hits.positions[0]], np.sort(final)[:10], atol=1e-6)
    np.testing.assert_allclose(hits.scores[0], x[1:][hits.positions[0]] @ x[0], atol=1e-6)
    assert not np.array_equal(hits.positions, index.search(x[:1], 10).positions)
    near = index.search(x[:1], 3)
    moved = reranking.expand(x[:1], x[1:][near.positions], near.scores, 3.0)
    hits = find(index, x[:1], 10, rerank="query-expansion")
    np.testing.assert_array_equal(hits.positions, index.search(moved, 10).positions)
    assert (find(index, x[:1], 10, rerank="augmentation").positions >= 0).all()
