"""Indexes that a GPU helps to build and to search: here with structures of the processor in the place of a GPU's, and on a
device where there is one."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmlcore import cli
from dmlcore.errors import ConfigError

faiss: Any = pytest.importorskip("faiss", reason="an index needs faiss-cpu")
pytest.importorskip("pyarrow", reason="an index needs pyarrow")

from dmlcore.serving import faiss_package, index_kinds  # noqa: E402
from dmlcore.serving.entries import of_arrays  # noqa: E402
from dmlcore.serving.faiss_package import Gpu, gpu_of  # noqa: E402
from dmlcore.serving.index import Index, build_index  # noqa: E402
from dmlcore.serving.index_changes import add_entries  # noqa: E402

COUNT, DIM, CLASSES = 2_000, 16, 50
KNN = inspect.signature(faiss.knn_gpu)  # a function of Python, in packages without GPU support too


def vectors(seed: int, count: int = COUNT) -> np.ndarray:
    centres = np.random.default_rng(0).normal(size=(CLASSES, DIM))
    generator = np.random.default_rng((seed, 1))
    return (centres[generator.integers(CLASSES, size=count)] + generator.normal(size=(count, DIM))).astype(np.float32)


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Two GPUs whose structures are copies on the processor; collects what was copied or compared."""
    work: list[Any] = []

    def copy(resources: Any, number: int, index: Any) -> Any:
        assert (resources, number) == ("resources", 1)
        work.append(type(faiss.downcast_index(index)).__name__)
        return faiss.clone_index(index)

    def nearest(*arguments: Any, **options: Any) -> Any:
        bound = KNN.bind(*arguments, **options).arguments
        assert (bound["res"], bound["device"]) == ("resources", 1)
        work.append(len(bound["xb"]))
        return faiss.knn(bound["xq"], np.array(bound["xb"]), bound["k"], metric=bound["metric"])

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2)
    monkeypatch.setattr(faiss, "StandardGpuResources", lambda: "resources", raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", copy, raising=False)
    monkeypatch.setattr(faiss, "knn_gpu", nearest)
    monkeypatch.delattr(faiss, "knn_gpu_numpy", raising=False)
    return work


@pytest.mark.parametrize("kind", index_kinds.KINDS)
def test_the_files_are_those_of_the_processor(kind: str, copied: list[Any], tmp_path: Path) -> None:
    gallery, more = of_arrays(vectors(0)), of_arrays(vectors(1, 300))
    plain = build_index(gallery, tmp_path / "cpu", kind=kind)
    helped = build_index(gallery, tmp_path / "gpu", kind=kind, gpu=gpu_of("cuda:1"))
    is_lists = kind.startswith("ivf")
    assert copied == (["IndexFlatIP"] * 2 if is_lists else []) + ([COUNT] if kind != "flat" else [])  # trained, added, measured
    assert helped.about["files"] == plain.about["files"]
    assert helped.about["effort"] == plain.about["effort"]
    for folder, gpu in ((tmp_path / "cpu", None), (tmp_path / "gpu", gpu_of("auto", rank=3))):
        add_entries(folder, more, gpu)
    assert Index(tmp_path / "gpu").about["files"] == Index(tmp_path / "cpu").about["files"]


@pytest.mark.parametrize("kind", index_kinds.KINDS)
def test_searches_find_the_same(kind: str, copied: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss_package, "MOST", 50)
    monkeypatch.setattr(index_kinds, "MOST", 50)
    monkeypatch.setattr(index_kinds, "AT_ONCE", 700 * 4 * DIM)
    build_index(of_arrays(vectors(0)), tmp_path / "index", kind=kind)
    plain, helped = Index(tmp_path / "index"), Index(tmp_path / "index", gpu=gpu_of("cuda:1"))
    queries = vectors(2, 30)
    for options in ({}, {"is_exact": True}, {"where": ["row>5"]}, {"k": 60}):
        copied.clear()
        ours, theirs = helped.search(queries, **options), plain.search(queries, **options)
        np.testing.assert_array_equal(ours.positions, theirs.positions)
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-6)
        if "k" in options:
            assert copied == []  # more than a GPU finds
        elif "is_exact" in options:
            assert copied == [700, 700, 600]
        elif not options and kind == "ivf-flat":
            assert copied == ["IndexIVFFlat"]


def test_a_device_that_faiss_lacks(copied: list[Any]) -> None:
    assert gpu_of("cpu") is None
    for wrong, words in (("cuda:2", "faiss sees 2 GPUs: cuda:0 to cuda:1"), ("gpu", "device is 'gpu'")):
        with pytest.raises(ConfigError, match=words):
            gpu_of(wrong)


@pytest.mark.skipif(faiss.get_num_gpus() > 0, reason="faiss sees a GPU")
@pytest.mark.parametrize("command", ["index", "add", "search"])
def test_without_a_gpu_it_is_one_line(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_of("auto") is None
    np.save(tmp_path / "x.npy", vectors(0, 40))
    file, folder = str(tmp_path / "x.npy"), str(tmp_path / "index")
    if command != "index":
        assert cli.main(["index", file, "--out", folder]) == 0
    capsys.readouterr()
    words = {
        "index": ["index", file, "--out", folder],
        "add": ["index", folder, "--add", file],
        "search": ["search", folder, file],
    }
    assert cli.main([*words[command], "--device", "cuda"]) == 2
    told = capsys.readouterr().err
    assert "device is 'cuda', but faiss sees no GPU" in told and "Traceback" not in told
    assert command != "index" or not (tmp_path / "index" / "index.json").exists()


@pytest.mark.gpu
@pytest.mark.skipif(faiss.get_num_gpus() == 0, reason="faiss sees no GPU")
@pytest.mark.parametrize("kind", index_kinds.KINDS)
def test_on_a_device(kind: str, tmp_path: Path) -> None:
    gpu = Gpu(0)
    gallery, queries = of_arrays(vectors(0)), vectors(2, 100)
    build_index(gallery, tmp_path / "index", kind=kind, gpu=gpu)
    plain, helped = Index(tmp_path / "index"), Index(tmp_path / "index", gpu=gpu)
    assert plain.about["measures"]["recall@10"] > 0.95
    exact = plain.search(queries, is_exact=True)
    np.testing.assert_allclose(helped.search(queries, is_exact=True).scores, exact.scores, atol=1e-4)
    for index in (plain, helped):
        hits = index.search(queries)
        overlap = [len(set(a) & set(b)) / 10 for a, b in zip(hits.positions, exact.positions, strict=True)]
        assert np.mean(overlap) > 0.95
