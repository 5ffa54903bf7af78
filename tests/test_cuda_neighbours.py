"""The ranking for CUDA devices: executed by the emulator against the definition and the CPU's kernel; on a device as well."""

from __future__ import annotations

from types import ModuleType

import cuda_emulation
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from dmlcore.errors import ConfigError
from dmlcore.evaluation import metrics, plain, retrieval_metrics
from dmlcore.kernels import cuda_neighbours, extension, neighbours

KS = (1, 2, 4, 8)
WHY_NOT = extension.why_not("cuda") or ("" if torch.cuda.is_available() else "torch sees no CUDA device")
emulator = pytest.mark.skipif(bool(cuda_emulation.missing()), reason=cuda_emulation.missing())
device = [pytest.mark.gpu, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]


@pytest.fixture(params=[pytest.param("emulator", marks=emulator), pytest.param("device", marks=device)])
def rank(request: pytest.FixtureRequest):
    """Ranks by the CUDA kernels, of CPU tensors: through the emulator, or there and back."""
    if request.param == "emulator":
        module = request.getfixturevalue("emulated")
        return lambda *arguments, **options: cuda_neighbours.rank_positives(*arguments, **options, module=module)
    moved = lambda argument: argument.cuda() if isinstance(argument, Tensor) else argument  # noqa: E731
    return lambda *arguments, **options: cuda_neighbours.rank_positives(*map(moved, arguments), **options).cpu()


def whole_numbers(n: int, d: int, classes: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Vectors whose products are exact, with many ties."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-3, 4, (n, d), generator=generator).to(dtype), torch.randint(classes, (n,), generator=generator)


def points(n: int, d: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    return torch.randn(n, d, generator=generator) + torch.randn(classes, d, generator=generator)[labels], labels


def equal(result: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("n", "d", "classes"), [(1, 3, 1), (37, 5, 9), (150, 4, 1), (200, 17, 200), (301, 16, 3), (290, 33, 90)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equals_the_definition_with_ties(rank, n: int, d: int, classes: int, dtype: torch.dtype) -> None:
    x, y = whole_numbers(n, d, classes, dtype, seed=n)
    r, ry = whole_numbers(n // 2 + 3, d, classes, dtype, seed=n + 1)
    for metric in ("dot", "euclidean"):
        equal(rank(x, y, None, None, KS, metric), plain.rank_positives(x, y, None, None, KS, metric))
        equal(rank(x, y, r, ry, KS, metric), plain.rank_positives(x, y, r, ry, KS, metric))


@pytest.mark.parametrize("few", [1, 5])
@pytest.mark.parametrize("memory", [1, 3000, 20_000])
def test_runs_and_searches_change_nothing(rank, memory: int, few: int) -> None:
    x, y = whole_numbers(90 if memory == 1 else 270, 6, 30)  # the first is a run per query
    y[:40] = 77  # a large class beside small ones, and a sample without positives
    y[41] = 78
    r, ry = whole_numbers(140, 6, 40, seed=1)
    equal(rank(x, y, None, None, KS, "dot", memory=memory, few=few), plain.rank_positives(x, y, None, None, KS, "dot"))
    equal(rank(x, y, r, ry, KS, "dot", memory=memory, few=few), plain.rank_positives(x, y, r, ry, KS, "dot"))


@pytest.mark.parametrize("d", [3, 64])
@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_duplicates_are_exactly_equal(rank, metric: str, d: int) -> None:
    """Every vector three times, wherever it lies in a tile: once with another label, which comes first."""
    base, _ = points(50, d, 1)
    x, y = base.repeat(3, 1), torch.cat((torch.arange(50), torch.arange(50), torch.arange(50) + 50))
    order = torch.randperm(150, generator=torch.Generator().manual_seed(1))
    values = rank(x[order], y[order], None, None, KS, metric)
    equal(values, plain.rank_positives(x[order], y[order], None, None, KS, metric))
    if metric != "dot":  # by dot, a longer vector may be nearer than the copy
        assert set(values[1, y[order] < 50].tolist()) == {2.0}


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_ranks_are_those_of_the_cpu(rank, metric: str) -> None:
    if extension.cpu() is None:
        pytest.skip("the CPU extension is not built")
    x, y = points(300, 19, 40)
    equal(rank(x, y, None, None, KS, metric), neighbours.rank_positives(x, y, None, None, KS, metric))
    equal(
        rank(x[:70], y[:70], x[70:], y[70:], KS, metric), neighbours.rank_positives(x[:70], y[:70], x[70:], y[70:], KS, metric)
    )


def test_scales_zeros_and_labels(rank) -> None:
    x, y = points(60, 9, 10)
    x[::7] = 0
    expected = rank(x, y, None, None, KS, "cosine")
    for scale in (1e-30, 1e30):
        assert torch.equal(rank(x * scale, y, None, None, KS, "cosine"), expected)
    for base in (2**53, 2**62, -(2**63)):
        assert torch.equal(rank(x, y + base, None, None, KS, "cosine"), expected)


def test_collapsed_embeddings_score_lowest(rank) -> None:
    x, y = points(1, 77, 1)[0].repeat(120, 1), torch.arange(120) // 4
    assert set(rank(x, y, None, None, KS, "cosine")[1].tolist()) == {117.0}


def test_nothing_to_find(rank) -> None:
    x, y = points(9, 4, 9)
    assert not rank(x, torch.arange(9), None, None, KS, "cosine").any()
    assert not rank(x, y, x, y + 100, KS, "cosine").any()
    assert rank(x[:0], y[:0], None, None, KS, "dot").shape == (9, 0)
    assert not rank(x, y, x[:0], y[:0], KS, "dot").any()
    assert rank(x, y, None, None, (), "dot").shape == (5, 9)
    many = tuple(range(1, 41))
    equal(rank(x, y % 3, None, None, many, "dot"), plain.rank_positives(x, y % 3, None, None, many, "dot"))


@emulator
def test_no_order_of_the_threads_matters(emulated: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for order in range(4):
        monkeypatch.setenv("CUEMU_ORDER", str(order))
        results.append([ranked(emulated) for ranked in cuda_emulation.rankings()])
    for result in results[1:]:
        assert all(torch.equal(values, first) for values, first in zip(result, results[0], strict=True))


@emulator
def test_the_public_measures_take_the_kernels(emulated: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = points(80, 8, 11)
    expected = retrieval_metrics(x, y), retrieval_metrics(x[:20], y[:20], x[20:], y[20:], metric="euclidean")
    taken = []

    def ranked(*arguments):
        taken.append(len(arguments[0]))
        return cuda_neighbours.rank_positives(*arguments, module=emulated)

    monkeypatch.setattr(metrics.neighbours, "rank_positives", ranked)
    results = retrieval_metrics(x, y), retrieval_metrics(x[:20], y[:20], x[20:], y[20:], metric="euclidean")
    assert taken == [80, 20]
    for measures, truth in zip(results, expected, strict=True):
        assert measures == pytest.approx(truth, abs=1e-12)


def test_cuda_tensors_go_to_the_cuda_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors that only claim to be on a device: what is asked is where they are sent."""
    taken = []
    monkeypatch.setattr(cuda_neighbours, "rank_positives", lambda *arguments, **options: taken.append(options))
    with FakeTensorMode():
        x, y = torch.empty(6, 3, device="cuda"), torch.empty(6, dtype=torch.int64, device="cuda")
        neighbours.rank_positives(x, y, None, None, KS, "cosine", memory=5, few=3)
        assert taken == [{"memory": 5, "few": 3}]
        assert neighbours.why_not(x) == extension.why_not("cuda")
        assert "meta" in neighbours.why_not(torch.empty(6, 3, device="meta"))
        monkeypatch.setenv("DML_FUSED", "0")
        assert "DML_FUSED" in neighbours.why_not(x)


def test_too_many_rows_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    if cuda_neighbours.extension.cuda() is None:
        pytest.skip("the CUDA extension is not built")
    monkeypatch.setattr(cuda_neighbours, "MOST_ROWS", 8)
    with pytest.raises(ConfigError, match="rows cannot be ranked"):
        cuda_neighbours.rank_positives(*points(9, 2, 3), None, None, KS, "dot")


@pytest.mark.gpu
@pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
def test_cuda_tensors_run_on_the_device() -> None:
    x, y = points(5000, 48, 900)
    expected = retrieval_metrics(x, y)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    assert retrieval_metrics(x.cuda(), y.cuda()) == pytest.approx(expected, abs=1e-6)
    assert torch.cuda.max_memory_allocated() - before < 60 << 20  # the similarities would take 100 MB
    large = y % 3  # more than 1600 positives each
    assert retrieval_metrics(x.cuda(), large.cuda()) == pytest.approx(retrieval_metrics(x, large), abs=1e-6)
