"""Faults that are put into data are found there, and what is right is left alone; groups agree with those that were drawn."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from dmlcore import cli
from dmlcore.data import open_data
from dmlcore.errors import ConfigError, DataError
from dmlcore.evaluation import data_faults
from dmlcore.serving import clean
from dmlcore.serving.clean import Subject, find_faults, subject_of
from dmlcore.serving.cluster import cluster
from dmlcore.serving.entries import Entries, normalised, of_arrays


def drawn(classes: int = 20, each: int = 15, noise: float = 0.35, dim: int = 24) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), each)
    return (generator.normal(size=(classes, dim))[labels] + noise * generator.normal(size=(len(labels), dim))).astype(
        "f4"
    ), labels


def entries_of(x: np.ndarray, labels: np.ndarray, **columns: list[str]) -> Entries:
    return normalised(of_arrays(x, labels=labels, columns=columns))


def test_swapped_labels_are_found() -> None:
    x, labels = drawn()
    generator = np.random.default_rng(1)
    wrong = generator.choice(len(labels), 30, replace=False)  # of 300
    given = labels.copy()
    given[wrong] = (given[wrong] + generator.integers(1, 20, size=30)) % 20
    faults = find_faults(Subject(entries_of(x, given)), kinds=("label",)).faults
    found = {fault.position for fault in faults}
    assert len(found & set(wrong)) / 30 >= 0.9, "recall"
    assert len(found & set(wrong)) / len(found) >= 0.9, "precision"
    says = {fault.position: fault.note for fault in faults}
    right = [says[row] == f"neighbours say {labels[row]}" for row in found & set(wrong)]
    assert np.mean(right) > 0.95
    assert find_faults(Subject(entries_of(x, labels)), kinds=("label",)).faults == []


def test_duplicates_outliers_and_overlaps_are_found() -> None:
    x, labels = drawn()
    x[7], x[290] = x[201], x[100] * 1.001 + 1e-4  # a copy with another label, and one in another part
    x[40] = -x[40] * np.resize([1, -1], x.shape[1])  # like nothing else
    centre = x[30:45].mean(0)
    x[60:75] = centre + 0.35 * np.random.default_rng(2).normal(size=(15, 24))  # class 4 is where class 2 is
    splits = ["train"] * 150 + ["test"] * 150
    faults = find_faults(Subject(entries_of(x, labels, split=splits)))
    by_kind = {kind: [fault for fault in faults.faults if fault.kind == kind] for kind in clean.KINDS}
    pairs = {(fault.position, fault.other): fault.note for fault in by_kind["duplicate"]}
    assert pairs == {(7, 201): "different labels, in train and test", (100, 290): "different labels, in train and test"}
    assert by_kind["outlier"][0].position == 40
    assert by_kind["overlap"][0].note == "2 and 4" and len(by_kind["overlap"]) == 1
    assert faults.counts()["duplicate"] == 2 and faults.samples == 300


def test_shares_by_loops() -> None:
    x, labels = drawn(5, 6)
    near = clean.neighbours(entries_of(x, labels).vectors, 4)
    shares = data_faults.class_shares(near, labels, 5).toarray()
    for row in range(30):
        expected = np.zeros(5)
        for position, score in zip(near.positions[row], near.scores[row], strict=True):
            expected[labels[position]] += np.exp(score / data_faults.TEMPERATURE)
        np.testing.assert_allclose(shares[row], expected / expected.sum(), rtol=1e-5)
    assert (near.positions != np.arange(30)[:, None]).all()


def test_neighbours_of_many_samples_are_those_of_few(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss", reason="of many samples neighbours are found by faiss")
    vectors = entries_of(*drawn()).vectors
    exact = clean.neighbours(vectors, 5)
    monkeypatch.setattr(clean, "EXACT", 100)
    np.testing.assert_array_equal(clean.neighbours(vectors, 5).positions, exact.positions)
    monkeypatch.setattr("dmlcore.serving.index_kinds.EXACT", 100)
    assert (clean.neighbours(vectors, 5).positions == exact.positions).mean() > 0.99


@pytest.fixture(scope="module")
def dirty(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[frozenset[str]]]:
    """Real pictures, glyphs, of which some are there twice, changed; and the pairs."""
    folder = tmp_path_factory.mktemp("dirty") / "photos"
    splits = open_data("glyphs")
    generator = np.random.default_rng(0)
    pairs = set()
    changes = (
        lambda picture: picture,
        lambda picture: picture.resize((48, 48)),
        lambda picture: ImageEnhance.Brightness(picture).enhance(0.7),
        ImageOps.mirror,
    )
    rows = generator.choice(len(splits.train), 160, replace=False)
    for number, row in enumerate(rows):
        pixels = splits.train[int(row)][0].mul(255).byte().numpy()[0]
        picture = Image.fromarray(pixels).resize((64, 64))
        target = folder / f"class {number % 8}" / f"{number}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        picture.save(target, quality=90)
        if number % 8 == 0:
            copy = folder / f"class {(number // 8) % 8}" / f"copy {number}.jpg"
            copy.parent.mkdir(parents=True, exist_ok=True)
            changes[number // 8 % 4](picture).save(copy, quality=60)
            pairs.add(frozenset((str(target), str(copy))))
    return folder, pairs


def test_copies_of_pictures_are_found(dirty: tuple[Path, set[frozenset[str]]]) -> None:
    folder, pairs = dirty
    subject = subject_of(str(folder))
    paths = subject.entries.path
    assert paths is not None
    faults = find_faults(subject, kinds=("duplicate",)).faults
    found = {frozenset((paths[fault.position], paths[fault.other or 0])) for fault in faults}
    assert len(found & pairs) / len(pairs) >= 0.9, "recall"
    assert len(found & pairs) / len(found) >= 0.8, "precision: glyphs of different classes may look alike"


def test_the_commands(dirty: tuple[Path, set[frozenset[str]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def here(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = cli.main([str(word) for word in argv])
        out, err = capsys.readouterr()
        return status, out, err

    folder, pairs = dirty
    status, out, err = here("clean", folder, "--out", tmp_path / "f.csv", "--html", tmp_path / "f.html")
    assert status == 0 and "Near duplicates: " in out and "name a better --model" in err.lower(), err
    with open(tmp_path / "f.csv", newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    copies = [frozenset((row["path"], row["other_path"])) for row in rows if row["kind"] == "duplicate"]
    assert set(copies) & pairs and tuple(rows[0]) == clean.COLUMNS
    page = (tmp_path / "f.html").read_text(encoding="utf-8")
    assert page.count("data:image/") >= 2 * len(set(copies)) - 5 and "Near duplicates" in page
    x, labels = drawn()
    names = np.array(["<script>alert(1)</script>", "\x1b[31mred", *map(str, range(18))])[labels]
    np.savez(tmp_path / "features.npz", x=x, y=names)
    status, out, _ = here("clean", tmp_path / "features.npz", "--html", tmp_path / "g.html", "--json")
    assert status == 0 and json.loads(out)["samples"] == 300
    assert "<script>alert" not in (tmp_path / "g.html").read_text(encoding="utf-8")
    np.savez(tmp_path / "embeddings.npz", x=x, row=np.arange(300), label=names)
    for by in ("kmeans", "agglomerative", "hdbscan"):
        pytest.importorskip("sklearn", reason="clusters need scikit-learn")
        status, out, err = here("cluster", tmp_path / "embeddings.npz", "--by", by, "--out", tmp_path / f"{by}.csv")
        assert status == 0 and "NMI" in out and "\x1b[31m" not in out, err
        assert (tmp_path / f"{by}.csv").read_text().count("\n") == 301
    for words in (
        ("clean", "nothing"),
        ("clean", folder, "--find", "mistakes"),
        ("clean", folder, "--out", "f.txt"),
        ("clean", folder, "--html", tmp_path / "f.html"),  # it is there already
        ("clean", folder, "--alike", "2"),
        ("cluster", folder),
        ("cluster", tmp_path / "embeddings.npz", "--by", "magic"),
        ("cluster", tmp_path / "embeddings.npz", "--count", "1"),
    ):
        status, out, err = here(*words)
        assert status == 2 and err.splitlines()[-1].startswith("error: ") and not out, words


def test_groups_are_those_that_were_drawn() -> None:
    pytest.importorskip("sklearn", reason="clusters need scikit-learn")
    x, labels = drawn()
    for by in ("kmeans", "agglomerative", "hdbscan"):
        clusters = cluster(of_arrays(x, labels=labels), by=by)
        assert clusters.measures["nmi"] > 0.95, by
        sizes = np.bincount(clusters.numbers[clusters.numbers >= 0])
        assert (np.diff(sizes) <= 0).all() and len(sizes) == clusters.count
    unlabelled = cluster(of_arrays(x))
    assert 15 <= unlabelled.count <= 30 and "silhouette" in unlabelled.reason and not unlabelled.measures
    with pytest.raises(ConfigError, match="finds the number"):
        cluster(of_arrays(x), by="hdbscan", count=3)
    with pytest.raises(DataError, match="too few"):
        cluster(of_arrays(x[:2]))


def test_only_what_is_looked_for_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, labels = drawn()
    np.savez(tmp_path / "data.npz", x=x, y=labels)
    page = tmp_path / "faults.html"
    assert cli.main(["clean", str(tmp_path / "data.npz"), "--find", "duplicate,label", "--html", str(page)]) == 0
    out = capsys.readouterr().out
    assert "Near duplicates" in out and "Outliers" not in out and "Classes that overlap" not in out
    assert "Outliers" not in page.read_text()
    assert cli.main(["clean", str(tmp_path / "data.npz"), "--find", "outlier", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["found"]) == ["outlier"]
    unlabelled = find_faults(Subject(normalised(of_arrays(x))))
    assert list(unlabelled.counts()) == ["duplicate", "outlier"] and "only duplicates" in unlabelled.notes[-1]
