"""The comparison on photographs with queries and a gallery: who is in which part, differences, tables."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1]))  # last: an installed package stays what is compared

from benchmarks import retrieval
from benchmarks.retrieval import ENSEMBLE, SINGLES, Photographs, System
from dmlcore.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A list of 44 classes, in no order of their names, with one photograph for each official part and two for training."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    names = [f"{(7 * number) % 44:02d}" for number in range(44)]
    lines = [(f"{name}-{n}.jpg", name, part) for name in names for n, part in enumerate(("train", "val", "test", "train"))]
    with (folder / "manifest.csv").open("w", newline="") as out:
        csv.writer(out).writerows([("path", "label", "official_split"), *lines])
    return folder


def test_unseen_classes_are_queries_and_gallery(folder: Path) -> None:
    listed = retrieval.parts(folder, 0)
    by_class: dict[str, list[str]] = {}
    for _, label, part in listed:
        by_class.setdefault(label, []).append(part)
    classes = list(by_class)
    assert all(by_class[label] == ["gallery", "gallery", "query", "gallery"] for label in classes[40:])
    seen = [set(by_class[label]) for label in classes[:40]]
    assert seen.count({"validation"}) == retrieval.HELD_OUT and seen.count({"train"}) == 40 - retrieval.HELD_OUT
    assert Path(listed[0][0]).is_absolute() and retrieval.parts(folder, 0) == listed != retrieval.parts(folder, 1)
    with pytest.raises(DataError, match="manifest.csv"):
        retrieval.parts(folder / "none", 0)


def test_systems_are_measured_on_features(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    listed = retrieval.parts(folder, 0)
    centres = {label: generator.normal(size=96) for _, label, _ in listed}
    features = {path: (centres[label] + generator.normal(size=96)).astype(np.float32) for path, label, _ in listed}
    monkeypatch.setattr(Photographs, "_features", lambda self: features)
    settings = {**retrieval.TRAINED["frozen"], "embedding_dim": 32, "steps": 2, "classes_per_batch": 4}
    monkeypatch.setitem(retrieval.TRAINED, "frozen", settings)
    data = Photographs(folder, tmp_path / "weights.pth", tmp_path / "work")
    raw, pca = (retrieval.figures(System(kind), 0, data) for kind in ("raw", "PCA 64"))
    x, y = (np.array(values) for values in ([features[path] for path, *_ in listed], [label for _, label, _ in listed]))
    roles, unit = np.array([part for *_, part in listed]), x / np.linalg.norm(x, axis=1, keepdims=True)
    nearest = (unit[roles == "query"] @ unit[roles == "gallery"].T).argmax(1)
    expected = 100 * (y[roles == "gallery"][nearest] == y[roles == "query"]).mean()
    assert raw["test"]["R@1"] == pytest.approx(expected) and 0 < pca["test"]["MAP@R"] <= 100
    row = retrieval.figures(System("frozen", ENSEMBLE), 0, data)
    assert len(row["losses"]) == 3 and 0 < row["test"]["MAP@R"] <= 100


def test_the_rule_and_the_tables() -> None:
    results: retrieval.Results = {}
    for system in retrieval.SYSTEMS:
        lead = 0.0 if not system.loss else 1.0 if system.loss in SINGLES else 3.0 if system.kind == "frozen" else 0.5
        for seed in retrieval.SEEDS[system.kind]:
            value = 50 + lead + 0.1 * seed * (system.loss == "triplet") + 0.01 * seed * len(system.loss)
            point = {"R@1": value, "MAP@R": value - 20}
            results[system.name, seed] = {"test": point, "validation": point, "cpu_seconds": 9.0}
    del results["tuned, ms", 1], results["tuned, ms", 2]
    compared = {(ensemble.kind, single.loss): p for ensemble, single, p in retrieval.comparisons(results)}
    assert ("tuned", "ms") not in compared and len(compared) == 7
    assert compared["frozen", "triplet"] < 1e-4
    text = retrieval.comparisons_table(results)
    assert "| frozen, ensemble - triplet | +1.8 ± 0.2 | +1.8 ± 0.2 | 0.00 | ensemble |" in text
    assert "| tuned, ensemble - triplet | -0.6 ± 0.2 | -0.6 ± 0.2 | 0.01 | triplet |" in text
    table = retrieval.systems_table(results)
    assert "| raw | 1280 | 1 | 50.0 | 30.0 |  |  |  |" in table
    assert "| frozen, ms | 512 | 5 | 51.0 | 31.0 | +1.0 ± 0.0 | +1.0 ± 0.0 | 9 |" in table
