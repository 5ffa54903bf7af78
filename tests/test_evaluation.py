"""Retrieval metrics: kernel = plain PyTorch = nested loops, ties included, and = PML where there are none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmlcore.errors import ConfigError
from dmlcore.evaluation import plain, retrieval_metrics
from dmlcore.evaluation.centring import centred
from dmlcore.kernels import extension, neighbours

KS = (1, 2, 4, 8)
built = pytest.mark.skipif(extension.cpu() is None, reason="the CPU extension is not built")
LEVELS = extension.cpu().levels() if extension.cpu() else []  # type: ignore[union-attr]


@pytest.fixture(autouse=True)
def _restore():
    module, threads = extension.cpu(), torch.get_num_threads()
    level = module.level() if module else ""
    yield
    torch.set_num_threads(threads)
    if module:
        module.use_level(level)
        extension.use_default_blas()


def naive(x, y, references=None, reference_labels=None, ks=KS, metric="cosine") -> dict[str, float]:
    """The definition in loops over queries and references, in float64."""
    own = references is None
    r, ry = (x, y) if own else (references, reference_labels)
    x, r = np.asarray(x, np.float64), np.asarray(r, np.float64)
    sums: dict[str, float] = {}
    queries = 0
    for i in range(len(x)):
        neighbours_of_query = []
        for j in range(len(r)):
            if own and i == j:
                continue
            s = float(x[i] @ r[j])
            if metric == "cosine":
                norms = np.sqrt(x[i] @ x[i]) * np.sqrt(r[j] @ r[j])
                s = float(np.float32(s / norms)) if norms > 0 else 0.0  # ties of a float32 calculation
            if metric == "euclidean":
                s = -float((x[i] - r[j]) @ (x[i] - r[j]))
            neighbours_of_query.append((-s, int(y[i]) == int(ry[j])))
        neighbours_of_query.sort()  # False before True: a negative as similar as a positive comes first
        hits = [rank for rank, (_, positive) in enumerate(neighbours_of_query, 1) if positive]
        if not hits:
            continue
        queries += 1
        n = len(hits)
        precisions = [(k + 1) / rank for k, rank in enumerate(hits)]
        row = {f"recall@{k}": float(hits[0] <= k) for k in ks}
        row |= {f"precision@{k}": sum(rank <= k for rank in hits) / k for k in ks}
        row["r_precision"] = sum(rank <= n for rank in hits) / n
        row["map@r"] = sum(p for p, rank in zip(precisions, hits, strict=True) if rank <= n) / n
        row["map"], row["mrr"] = sum(precisions) / n, 1 / hits[0]
        sums = {key: sums.get(key, 0.0) + value for key, value in row.items()}
    means = {key: value / queries for key, value in sums.items()}
    return means | {"queries": float(queries), "excluded": float(len(x) - queries)}


def naive_in_double(x, y, references=None, reference_labels=None, metric="cosine") -> dict[str, float]:
    """`naive` on float64 vectors; for cosines of unit vectors, by their distances, which are not rounded to float32."""
    sides = [None if side is None else np.asarray(side, np.float64) for side in (x, references)]
    if metric == "cosine":
        sides = [None if side is None else side / np.linalg.norm(side, axis=1, keepdims=True) for side in sides]
    return naive(sides[0], y, sides[1], reference_labels, metric="euclidean")


def unfused(monkeypatch, *args, **options) -> dict[str, float]:
    with monkeypatch.context() as patch:
        patch.setenv("DML_FUSED", "0")
        return retrieval_metrics(*args, **options)


def check(monkeypatch, x, y, references=None, reference_labels=None, *, metric="cosine", ks=KS) -> None:
    expected = naive(x, y, references, reference_labels, ks, metric)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        got = retrieval_metrics(x, y, references, reference_labels, ks, metric=metric)
        assert got == pytest.approx(expected, abs=1e-12)
        assert list(got) == list(expected)
    assert unfused(monkeypatch, x, y, references, reference_labels, ks, metric=metric) == pytest.approx(expected, abs=1e-12)


def random_set(n: int, d: int, classes: int, seed: int = 0, dtype=np.float32) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.standard_normal((n, d)).astype(dtype), generator.integers(0, classes, n)


def whole_numbers(n: int, d: int, classes: int, seed: int = 0, dtype=np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Vectors whose products are exact, with many ties."""
    generator = np.random.default_rng(seed)
    return generator.integers(-3, 4, (n, d)).astype(dtype), generator.integers(0, classes, n)


def test_hand_computed() -> None:
    angles = torch.tensor([0.0, 0.1, 0.25, 0.45, 3.0])
    x = torch.stack((angles.cos(), angles.sin()), 1)
    y = torch.tensor([0, 1, 0, 1, 2])
    got = retrieval_metrics(x, y, recall_at=(1, 2))
    # hits at ranks: sample 0 at 2, sample 1 at 3, sample 2 at 3 (after 1 and 3), sample 3 at 2; sample 4 has no positive
    assert got == pytest.approx(
        {
            "recall@1": 0.0,
            "recall@2": 0.5,
            "precision@1": 0.0,
            "precision@2": 0.25,
            "r_precision": 0.0,
            "map@r": 0.0,
            "map": (1 / 2 + 1 / 3 + 1 / 3 + 1 / 2) / 4,
            "mrr": (1 / 2 + 1 / 3 + 1 / 3 + 1 / 2) / 4,
            "queries": 4.0,
            "excluded": 1.0,
        }
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "d", "classes"), [(2, 1, 1), (33, 5, 8), (75, 3, 1), (90, 17, 40), (131, 8, 3)])
def test_agrees_with_loops(monkeypatch, n, d, classes, dtype) -> None:
    check(monkeypatch, *random_set(n, d, classes, dtype=dtype))
    for metric in ("dot", "euclidean"):
        check(monkeypatch, *random_set(n, d, classes, dtype=dtype), metric=metric)
        check(monkeypatch, *whole_numbers(n, d, classes, dtype=dtype), metric=metric)


def test_queries_and_references(monkeypatch) -> None:
    for make in (random_set, whole_numbers):
        metric = "dot" if make is whole_numbers else "cosine"
        check(monkeypatch, *make(41, 6, 12), *make(67, 6, 20, seed=1), metric=metric)
        check(monkeypatch, *make(1, 6, 1), *make(67, 6, 2, seed=1), metric=metric)
        check(monkeypatch, *make(30, 6, 2), *make(1, 6, 1, seed=1), metric=metric)


def test_references_equal_to_queries_find_themselves() -> None:
    x, _ = random_set(20, 4, 20)
    assert retrieval_metrics(x, np.arange(20), x, np.arange(20))["map"] == 1.0


@built
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernel_is_exact_on_whole_numbers(level, dtype) -> None:
    extension.cpu().use_level(level)  # type: ignore[union-attr]
    for n, d, classes in ((1, 3, 1), (37, 5, 9), (200, 7, 30), (301, 16, 3), (150, 4, 1), (400, 3, 150)):
        x, y = map(torch.from_numpy, whole_numbers(n, d, classes, seed=n))
        r, ry = map(torch.from_numpy, whole_numbers(n // 2 + 3, d, classes, seed=n + 1))
        x, r = x.to(dtype), r.to(dtype)
        for metric in ("dot", "euclidean"):
            expected = plain.rank_positives(x, y, None, None, KS, metric)
            expected_references = plain.rank_positives(x, y, r, ry, KS, metric)
            for threads in (1, 2):
                torch.set_num_threads(threads)
                for memory in (0, 4000):  # queries in chunks
                    for few in (0, 1, 5, 1000):  # compared, or searched in trees of one to several levels
                        got = neighbours.rank_positives(x, y, None, None, KS, metric, memory=memory, few=few)
                        torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)
                        got = neighbours.rank_positives(x, y, r, ry, KS, metric, memory=memory, few=few)
                        torch.testing.assert_close(got, expected_references, rtol=0, atol=1e-13)


@built
@pytest.mark.parametrize("level", LEVELS)
def test_large_classes(level) -> None:
    extension.cpu().use_level(level)  # type: ignore[union-attr]
    x, y = map(torch.from_numpy, whole_numbers(1500, 6, 3))
    y[:7] = 9  # a class of few beside classes of hundreds
    expected = plain.rank_positives(x, y, None, None, KS, "dot")
    whole = neighbours.rank_positives(x, y, None, None, KS, "dot")
    torch.testing.assert_close(whole, expected, rtol=0, atol=1e-13)
    assert torch.equal(whole, neighbours.rank_positives(x, y, None, None, KS, "dot", memory=1 << 18))


@built
@pytest.mark.parametrize("level", LEVELS)
def test_one_similarity_far_from_all_others(level) -> None:
    """Positives that crowd in a cell or two of their range, and some that are all equal."""
    extension.cpu().use_level(level)  # type: ignore[union-attr]
    x, y = map(torch.from_numpy, whole_numbers(900, 1, 2))
    x[:2] *= 32768  # exact in float32 all the same
    x[2:200], y[2:200] = 1.0, 2
    expected = plain.rank_positives(x, y, None, None, KS, "dot")
    torch.testing.assert_close(neighbours.rank_positives(x, y, None, None, KS, "dot"), expected, rtol=0, atol=1e-13)


@built
def test_repeats_bit_by_bit_whatever_threads_and_blas() -> None:
    x, y = map(torch.from_numpy, random_set(700, 24, 60))
    torch.set_num_threads(1)
    expected = neighbours.rank_positives(x, y, None, None, KS, "cosine")
    torch.set_num_threads(2)
    assert torch.equal(neighbours.rank_positives(x, y, None, None, KS, "cosine"), expected)
    extension.use_blas("own")
    assert torch.equal(neighbours.rank_positives(x, y, None, None, KS, "cosine"), expected)


@pytest.mark.parametrize("d", [3, 64, 129])
@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_duplicates_are_exactly_equal(monkeypatch, d, metric) -> None:
    """Every vector three times, wherever it lies in a tile: once with another label, which comes first."""
    base, _ = random_set(50, d, 1)
    x = np.concatenate((base, base, base))
    y = np.concatenate((np.arange(50), np.arange(50), np.arange(50) + 50))
    order = np.random.default_rng(1).permutation(150)
    for got in (retrieval_metrics(x[order], y[order], metric=metric), unfused(monkeypatch, x[order], y[order], metric=metric)):
        if metric != "dot":  # by dot, a longer vector may be nearer than the copy
            assert got["recall@1"] == 0.0 and got["recall@2"] == 1.0 and got["mrr"] == 0.5
        assert got["queries"] == 100.0 and got["excluded"] == 50.0
    check(monkeypatch, x[order], y[order], metric=metric)


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_collapsed_embeddings_score_lowest(monkeypatch, metric) -> None:
    x = np.tile(random_set(1, 77, 1)[0], (120, 1))
    y = np.arange(120) // 4
    for got in (retrieval_metrics(x, y, metric=metric), unfused(monkeypatch, x, y, metric=metric)):
        assert got["recall@8"] == 0.0 and got["map@r"] == 0.0 and got["mrr"] == pytest.approx(1 / 117)


def test_zero_vectors_stay_zero(monkeypatch) -> None:
    x, y = random_set(40, 5, 8)
    x[::3] = 0
    check(monkeypatch, x, y)


def test_scale_invariance_from_tiny_to_huge() -> None:
    x, y = random_set(60, 9, 10)
    expected = retrieval_metrics(x, y)
    for scale in (1e-30, 2.0**-100, 1e30, 2.0**100):
        assert retrieval_metrics(x * np.float32(scale), y) == expected
    x64 = x.astype(np.float64)
    assert retrieval_metrics(x64 * 2.0**800, y) == retrieval_metrics(x64 * 2.0**-800, y) == retrieval_metrics(x64, y)


def test_huge_and_negative_labels(monkeypatch) -> None:
    x, y = random_set(60, 5, 12)
    expected = retrieval_metrics(x, y)
    for base in (2**24, 2**53, 2**62, -(2**63)):
        assert retrieval_metrics(x, y + base) == expected
        assert unfused(monkeypatch, x, y + base) == pytest.approx(expected, abs=1e-12)
    assert retrieval_metrics(x, 6 - y) == pytest.approx(expected, abs=1e-12)
    assert retrieval_metrics(x, y.astype(np.int16)) == retrieval_metrics(x, y.astype(np.uint8)) == expected


def test_input_types_and_layouts() -> None:
    x, y = random_set(80, 8, 10)
    expected = retrieval_metrics(x, y)
    tensor = torch.from_numpy(x)
    assert retrieval_metrics(tensor, torch.from_numpy(y)) == expected
    assert retrieval_metrics(tensor.requires_grad_(), y.tolist()) == expected
    assert retrieval_metrics(np.asfortranarray(x), y) == expected
    assert retrieval_metrics(torch.from_numpy(np.repeat(x, 2, 1))[:, ::2], torch.from_numpy(np.repeat(y, 2))[::2]) == expected
    assert retrieval_metrics(np.repeat(x, 2, 1)[:, ::2], np.repeat(y, 2)[::2]) == expected
    for dtype in (torch.float16, torch.bfloat16):
        low = torch.from_numpy(x).to(dtype)
        assert retrieval_metrics(low, y) == retrieval_metrics(low.float(), y)
    assert retrieval_metrics(x.astype(np.float16), y) == retrieval_metrics(x.astype(np.float16).astype(np.float32), y)
    assert retrieval_metrics(x.round().astype(np.int64), y) == retrieval_metrics(x.round(), y)
    mixed = retrieval_metrics(x, y, x.astype(np.float64), y)
    assert mixed == retrieval_metrics(x.astype(np.float64), y, x.astype(np.float64), y)


def test_permutation_invariance() -> None:
    for x, y in (random_set(150, 12, 30), whole_numbers(150, 4, 12)):
        expected = retrieval_metrics(x, y, metric="dot")
        for seed in range(3):
            order = np.random.default_rng(seed).permutation(len(x))
            assert retrieval_metrics(x[order], y[order], metric="dot") == pytest.approx(expected, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 60),
    st.integers(1, 6),
    st.integers(1, 12),
    st.integers(0, 2**31),
    st.sampled_from(["dot", "euclidean"]),
    st.integers(0, 40),
)
def test_any_small_set(n, d, classes, seed, metric, references) -> None:
    x, y = whole_numbers(n, d, classes, seed)
    arguments = (x, y) if not references else (x, y, *whole_numbers(references, d, classes, seed + 1))
    try:
        got = retrieval_metrics(*arguments, recall_at=(1, 3), metric=metric)
    except ConfigError as error:
        assert "no query has a positive" in str(error)
        return
    assert got == pytest.approx(naive(*arguments, ks=(1, 3), metric=metric), abs=1e-12)


def test_chunks_of_plain_agree(monkeypatch) -> None:
    x, y = random_set(90, 6, 15)
    expected = unfused(monkeypatch, x, y)
    monkeypatch.setattr(plain, "CHUNK_CELLS", 700)
    assert unfused(monkeypatch, x, y) == expected


@pytest.mark.parametrize("with_references", [False, True])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_far_from_the_origin(monkeypatch, metric: str, with_references: bool) -> None:
    """An offset of 300, as activations without a bias have it, beside differences around 1: as in float64."""
    generator = np.random.default_rng(0)
    y = np.repeat(np.arange(25), 4)
    x = generator.normal(size=(25, 64))[y] + 1.2 * generator.normal(size=(100, 64)) + 300
    x = x.astype(np.float32)
    others = (x[::2], y[::2]) if with_references else (None, None)
    expected = naive_in_double(x, y, *others, metric=metric)
    assert 0.1 < expected["map@r"] < 0.95
    assert retrieval_metrics(x, y, *others, KS, metric=metric) == pytest.approx(expected, abs=1e-12)
    assert unfused(monkeypatch, x, y, *others, metric=metric) == pytest.approx(expected, abs=1e-12)


def test_positions_in_millions(monkeypatch) -> None:
    """Coordinates of a map, in pairs 0.5 apart: each one's nearest is its partner."""
    generator = np.random.default_rng(0)
    places = np.float64(4e6) + 32 * np.stack(np.meshgrid(np.arange(8), np.arange(8), np.arange(2)), -1).reshape(-1, 3)
    x = np.concatenate([places, places + np.array([0.5, 0, 0])]).astype(np.float32)
    y = np.tile(np.arange(len(places)), 2)
    order = generator.permutation(len(x))
    for metrics in (retrieval_metrics, lambda *a, **k: unfused(monkeypatch, *a, **k)):
        assert metrics(x[order], y[order], metric="euclidean")["recall@1"] == 1.0


def test_whole_numbers_stay_whole_and_vectors_around_the_origin_as_they_are() -> None:
    x = torch.randint(0, 9, (50, 6), generator=torch.Generator().manual_seed(0)) + 1000.0
    moved = centred(x, None, "euclidean")[0]
    assert torch.equal(moved, moved.round()) and moved.abs().max() < 20
    near = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    for metric in ("euclidean", "cosine", "dot"):
        queries, references, same = centred(near, near[:9], metric)
        assert queries is near and references.data_ptr() == near.data_ptr() and same == metric
    assert centred(x, None, "dot")[0] is x
    with_zero = torch.cat([x, torch.zeros(1, 6)])
    assert centred(with_zero, None, "cosine") == (with_zero, None, "cosine")


def test_agrees_with_pytorch_metric_learning() -> None:
    calculator = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    names = {"precision_at_1": "recall@1", "r_precision": "r_precision"}
    names |= {"mean_average_precision_at_r": "map@r", "mean_average_precision": "map"}
    x, y = map(torch.from_numpy, random_set(300, 16, 40))
    x += 2 * torch.randn(40, 16, generator=torch.Generator().manual_seed(0))[y]
    x = torch.nn.functional.normalize(x)
    r, ry = x[150:], y[150:]
    for k, arguments in ((len(x) - 1, (x, y)), (len(r), (x[:150], y[:150], r, ry))):
        theirs = calculator.AccuracyCalculator(include=tuple(names), k=k).get_accuracy(*arguments)
        own = retrieval_metrics(*arguments)
        for name, key in names.items():
            assert own[key] == pytest.approx(theirs[name], abs=1e-6), name


X, Y = random_set(6, 3, 2)
MISTAKES = {
    "nan": (dict(embeddings=np.where(np.arange(18).reshape(6, 3) == 7, np.nan, X)), "1 of 6 rows, the first is row 2"),
    "inf": (dict(embeddings=torch.full((6, 3), torch.inf)), "6 of 6 rows"),
    "one-dimensional": (dict(embeddings=X[0]), r"shape \[N, D\]"),
    "empty": (dict(embeddings=X[:0], labels=Y[:0]), "empty"),
    "no width": (dict(embeddings=X[:, :0]), "empty"),
    "complex": (dict(embeddings=X.astype(np.complex64)), "real numbers"),
    "text": (dict(embeddings=np.array([["a"] * 3] * 6)), "numbers"),
    "too few labels": (dict(labels=Y[:5]), r"shape \[6\]"),
    "float labels": (dict(labels=Y.astype(np.float32)), "whole numbers"),
    "text labels": (dict(labels=list("aabbcc")), "whole numbers"),
    "k = 0": (dict(recall_at=(0,)), "at least 1"),
    "k = 1.5": (dict(recall_at=(1.5,)), "at least 1"),
    "k alone": (dict(recall_at=4), "list of whole numbers"),
    "unknown metric": (dict(metric="cosin"), "Did you mean 'cosine'"),
    "references alone": (dict(references=X), "reference_labels are missing"),
    "reference labels alone": (dict(reference_labels=Y), "references are missing"),
    "another width": (dict(references=X[:, :2], reference_labels=Y), "3 dimensions and references 2"),
    "no reference": (dict(references=X[:0], reference_labels=Y[:0]), "empty"),
    "references with nan": (dict(references=X * np.nan, reference_labels=Y), "references hold NaN"),
    "no positive": (dict(labels=np.arange(6)), "no query has a positive: every label occurs once"),
    "no common label": (dict(references=X, reference_labels=Y + 10), "references share no label with the queries"),
    "column of labels": (dict(labels=Y[:, None]), r"shape \[6\], one per row, got \[6, 1\]"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line(name) -> None:
    changes, expected = MISTAKES[name]
    with pytest.raises(ConfigError, match=expected) as caught:
        retrieval_metrics(**({"embeddings": X, "labels": Y} | changes))
    assert "\n" not in str(caught.value)


@built
def test_memory_stays_far_below_the_matrix() -> None:
    """6000 x 6000 similarities are 144 MB; the most the kernel may add is a few."""
    import subprocess
    import sys

    code = (
        "import re, torch; from dmlcore.evaluation import retrieval_metrics as r; torch.set_num_threads(1);"
        "x = torch.randn(6000, 32); y = torch.arange(6000) % 1500; r(x[:600], y[:600] % 150);"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]);"
        "a = peak(); r(x, y); print(peak() - a)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 16_000  # KiB
