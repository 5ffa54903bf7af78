"""Indexes: what they find is what exact search finds, changes keep the rest, and damage is told before anything is read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmlcore import cli
from dmlcore.errors import ConfigError, DataError, TrainingError
from dmlcore.training import train

faiss: Any = pytest.importorskip("faiss", reason="an index needs faiss-cpu")
pytest.importorskip("pyarrow", reason="an index needs pyarrow")

from dmlcore.serving import index_kinds  # noqa: E402
from dmlcore.serving.entries import Entries, is_embeddings, of_arrays, read_embeddings, unit  # noqa: E402
from dmlcore.serving.index import Index, build_index  # noqa: E402
from dmlcore.serving.index_changes import add_entries, remove_entries  # noqa: E402
from dmlcore.serving.search import without_own  # noqa: E402
from dmlcore.serving.thresholds import chosen_threshold, write_threshold  # noqa: E402

COUNT, DIM, CLASSES = 2_000, 16, 50


def vectors(seed: int = 0, count: int = COUNT) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(CLASSES, DIM))
    generator = np.random.default_rng((seed, 1))
    labels = generator.integers(CLASSES, size=count)
    return (centres[labels] + generator.normal(size=(count, DIM))).astype(np.float32), labels


def entries(seed: int = 0, count: int = COUNT, **columns: Any) -> Entries:
    x, labels = vectors(seed, count)
    paths = [f"{seed}/{number}.jpg" for number in range(count)]
    return of_arrays(x, [f"class {label}" for label in labels], paths, columns=columns)


def by_hand(x: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    exact = faiss.IndexFlatIP(x.shape[1])
    exact.add(unit(x))
    return exact.search(unit(queries), k)


@pytest.mark.parametrize("kind", index_kinds.KINDS)
def test_every_kind_finds_what_faiss_finds_by_hand(kind: str, tmp_path: Path) -> None:
    gallery, queries = entries(), vectors(1, 40)[0]
    index = build_index(gallery, tmp_path / "index", kind=kind)
    scores, positions = by_hand(gallery.vectors, queries, 10)
    hits = index.search(queries, 10)
    np.testing.assert_allclose(hits.scores[:, 0], scores[:, 0], atol=1e-6)
    overlap = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(hits.positions, positions, strict=True)])
    assert overlap == 1 if kind == "flat" else overlap > 0.95
    exact = index.search(queries, 10, is_exact=True)
    np.testing.assert_array_equal(exact.positions, positions)
    assert index.about["measures"]["recall@10"] > 0.95
    found = index.entries(hits.positions[0])
    assert [entry["path"] for entry in found] == [f"0/{position}.jpg" for position in hits.positions[0]]
    reopened = Index(tmp_path / "index", memory_mapped=False).search(queries, 10)
    np.testing.assert_array_equal(reopened.positions, hits.positions)


def test_searches_beside_libraries_that_change_faiss(tmp_path: Path) -> None:
    """pytorch-metric-learning imports `faiss.contrib.torch_utils`, which puts other functions in place of faiss's own."""
    code = """
import sys
import faiss.contrib.torch_utils
import numpy as np
from dmlcore.serving.entries import Entries
from dmlcore.serving.index import build_index
x = np.random.default_rng(0).normal(size=(3000, 16)).astype(np.float32)
for kind in ("flat", "hnsw", "ivf-flat", "ivf-pq"):
    index = build_index(Entries(x, None, np.arange(3000), None, {}, []), f"{sys.argv[1]}/{kind}", kind=kind)
    assert (index.search(x[:50], 3).positions[:, 0] == np.arange(50)).mean() > 0.9, kind
    assert index.search(x[:1], 3, where=["row=5,6"]).positions.tolist()[0][2] == -1
"""
    ran = subprocess.run([sys.executable, "-P", "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_the_kind_follows_size_and_memory() -> None:
    def kind(count: int, memory: float = 2.0, dim: int = 128) -> str:
        chosen, reason = index_kinds.choose(count, dim, memory)
        assert reason.startswith(f"{chosen.name}: ")
        return chosen.name

    assert [kind(1_000), kind(250_000), kind(1_000_000), kind(10_000_000)] == ["flat", "hnsw", "ivf-flat", "ivf-pq"]
    assert kind(1_000_000, 0.3) == "ivf-pq"
    assert index_kinds.choose(100, 8, 2, "ivf-pq")[0].name == "flat"
    with pytest.raises(ConfigError, match="Did you mean 'hnsw'"):
        index_kinds.choose(10, 10, 2, "hnws")
    with pytest.raises(ConfigError, match="memory"):
        index_kinds.choose(10, 10, 0)


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf-flat"])
def test_conditions_leave_only_what_meets_them(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_kinds, "EXACT", 0)  # so that the structure itself has to filter
    gallery = entries(price=np.arange(COUNT) % 100)
    index = build_index(gallery, tmp_path / "index", kind=kind)
    queries = vectors(1, 20)[0]
    assert gallery.label is not None
    allowed = np.flatnonzero(np.isin(gallery.label, ["class 3", "class 4"]) & (gallery.columns["price"] < 50))
    hits = index.search(queries, 5, where=["label=class 3,class 4", "price<50"])
    scores, places = by_hand(gallery.vectors[allowed], queries, 5)
    assert np.isin(hits.positions, allowed).all()
    assert (hits.positions == allowed[places]).mean() > (0.99 if kind == "flat" else 0.8)
    monkeypatch.undo()  # few entries are compared one by one whatever the structure is
    exact = index.search(queries, 5, where=["label=class 3,class 4", "price<50"])
    np.testing.assert_array_equal(exact.positions, allowed[places])
    np.testing.assert_allclose(exact.scores, scores, atol=1e-6)
    assert (index.search(queries, 5, where=["label=nothing"]).positions == -1).all()
    few = index.search(queries, 500, where=["label!=class 3", "price=7"])
    count = int(((np.array(gallery.label) != "class 3") & (gallery.columns["price"] == 7)).sum())
    assert ((few.positions >= 0).sum(1) == count).all()
    for wrong, words in (("price~3", "no condition"), ("prise=3", "Did you mean 'price'"), ("label<3", "holds text")):
        with pytest.raises(ConfigError, match=words):
            index.search(queries, 5, where=[wrong])


@pytest.mark.parametrize("kind", index_kinds.KINDS)
def test_entries_are_added_replaced_and_removed(kind: str, tmp_path: Path) -> None:
    folder, queries = tmp_path / "index", vectors(5, 30)[0]
    build_index(entries(), folder, kind=kind)
    first = entries(1, 300)
    assert add_entries(folder, first)["added"] == 300
    moved = of_arrays(
        first.vectors[:20] * -1, ["moved"] * 20, first.path[:20] if first.path else None, columns={"by": [1] * 20}
    )
    result = add_entries(folder, moved)
    assert (result["added"], result["replaced"], len(result["index"])) == (0, 20, COUNT + 300)
    found = result["index"].search(moved.vectors[:1], 1)
    assert result["index"].entries(found.positions[0])[0] | {"row": 0} == {
        "path": "1/0.jpg",
        "row": 0,
        "label": "moved",
        "by": 1,
    }
    assert remove_entries(folder, ["label=moved"])["removed"] == 20
    rest = remove_entries(folder, ["row<1000"])  # of both halves, which is enough to leave them out for good
    assert len(rest["index"]) == 1_000 == rest["index"].about["count"]
    np.testing.assert_allclose(
        rest["index"].search(queries, 5).scores, by_hand(entries().vectors[1000:], queries, 5)[0], atol=0.2
    )
    exact = rest["index"].search(queries, 5, is_exact=True)
    np.testing.assert_array_equal(exact.positions, by_hand(entries().vectors[1000:], queries, 5)[1])
    names = sorted(os.listdir(folder))
    assert len(names) == 4 + (kind != "flat"), names
    with pytest.raises(ConfigError, match="no entry"):
        remove_entries(folder, ["label=moved"])
    with pytest.raises(ConfigError, match="remove the folder"):
        remove_entries(folder, ["row>=0"])
    with pytest.raises(ConfigError, match="another model"):
        add_entries(folder, of_arrays(np.ones((3, DIM + 1))))


def test_repeated_paths_are_told_apart_by_their_rows(tmp_path: Path) -> None:
    x = vectors()[0][:6]
    build_index(of_arrays(x, paths=["film.npz"] * 6), tmp_path / "index")
    result = add_entries(tmp_path / "index", of_arrays(x[:2], paths=["film.npz"] * 2, rows=[4, 9]))
    assert (result["added"], result["replaced"]) == (1, 1)


@pytest.mark.parametrize("role", ["vectors-1.npy", "entries-1.arrow", "search-1.faiss", "index.json"])
def test_damage_is_told_before_a_file_is_read(role: str, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    build_index(entries(count=300), folder, kind="hnsw")
    content = bytearray((folder / role).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / role).write_bytes(content)
    with pytest.raises((TrainingError, ConfigError), match="damaged|Build the index again"):
        Index(folder)
    (folder / role).unlink()
    with pytest.raises((TrainingError, ConfigError), match="cannot read|there is no index"):
        Index(folder)


def test_a_named_file_outside_the_folder_is_never_opened(tmp_path: Path) -> None:
    from dmlcore.seals import seal, unseal

    folder = tmp_path / "index"
    build_index(entries(count=300), folder)
    about, _ = unseal(json.loads((folder / "index.json").read_text()))
    about["files"]["vectors"]["name"] = "../secret.npy"
    (folder / "index.json").write_text(json.dumps(seal(about)))
    with pytest.raises(TrainingError, match="strange file"):
        Index(folder)


def test_an_index_that_lacks_something_is_refused(tmp_path: Path) -> None:
    from dmlcore.seals import seal, unseal

    folder = tmp_path / "index"
    build_index(entries(count=300), folder, kind="hnsw")
    whole, _ = unseal(json.loads((folder / "index.json").read_text()))
    for key in ("files", "count", "dim", "kind", "effort", "removed", "model", "measures"):
        for value in ("absent", None, -1, [], "../x"):
            about = {name: entry for name, entry in whole.items() if name != key}
            about |= {} if value == "absent" else {key: value}
            (folder / "index.json").write_text(json.dumps(seal(about)))
            if key in about and key in ("model", "measures"):
                continue  # shown, and not relied upon
            with pytest.raises((TrainingError, ConfigError)):
                Index(folder)


def test_an_index_is_never_written_over(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    folder.mkdir()
    (folder / "vectors-1.npy").write_bytes(b"left by a build that was killed")
    build_index(entries(count=300), folder)
    with pytest.raises(ConfigError, match="holds an index already"):
        build_index(entries(count=300), folder)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match=r"thesis\.txt"):
        build_index(entries(count=300), tmp_path / "other")


def test_files_of_embeddings_are_read_and_never_run(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    x, labels = vectors(count=30)
    np.savez(tmp_path / "a.npz", x=x, row=np.arange(30)[::-1], class_name=labels.astype(str), price=np.arange(30), y=labels)
    read = read_embeddings(tmp_path / "a.npz")
    assert read.label == labels.astype(str).tolist() and read.row[0] == 29 and list(read.columns) == ["price"]
    np.save(tmp_path / "a.npy", x)
    np.testing.assert_array_equal(read_embeddings(tmp_path / "a.npy").vectors, x)
    table = pyarrow.table({"embedding": x.tolist(), "path": [f"{n}.jpg" for n in range(30)], "label": ["", None] * 15})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    read = read_embeddings(tmp_path / "a.parquet")
    assert read.path is not None and read.path[3] == "3.jpg" and read.label == [""] * 30
    np.testing.assert_allclose(read.vectors, x)
    np.savez(tmp_path / "pickle.npz", x=np.array([print, print], dtype=object))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:500])
    np.savez(tmp_path / "nan.npz", x=np.array([[1.0, np.nan]]))
    np.savez(tmp_path / "flat.npz", x=np.ones(3))
    for name, words in (("pickle", "Python objects"), ("cut", "cannot be read"), ("nan", "NaN"), ("flat", r"numbers \[N, D\]")):
        with pytest.raises(DataError, match=words):
            read_embeddings(tmp_path / f"{name}.npz")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Features and a run on them."""
    folder = tmp_path_factory.mktemp("trained")
    x, labels = vectors(count=400)
    np.savez(folder / "features.npz", x=x, y=labels)
    settings = {"plugins": "ms", "steps": 4, "eval_every": 2, "classes_per_batch": 8, "embedding_dim": 8, "report": False}
    train(data=str(folder / "features.npz"), out=folder / "run", **settings)
    return folder / "features.npz", folder / "run"


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = cli.main([str(word) for word in argv])
        out, err = capsys.readouterr()
        return status, out, err

    return call


def test_the_command(trained: tuple[Path, Path], here: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    data, run = trained
    status, out, err = here("index", run, data, "--out", tmp_path / "index", "--json")
    about = json.loads(out)
    assert status == 0 and about["entries"] == 400 and about["dim"] == 8 and about["model"] == str(run), err
    status, out, _ = here("index", tmp_path / "index")
    assert status == 0 and "400 entries of 8" in out and "recall@10 1.000" in out
    status, out, _ = here("index", tmp_path / "index", "--remove", "row<100", "--add", data)
    assert status == 0 and "400 added, 0 replaced, 100 removed" in out, out
    for suffix in (".npy", ".arrow", ".parquet", ".npz"):
        embeddings = tmp_path / f"embeddings{suffix}"
        assert here("embed", run, data, "--out", embeddings)[0] == 0
        assert is_embeddings(embeddings)
        read = read_embeddings(embeddings)
        assert read.label is not None and len(set(read.label)) == 50 and read.row.tolist() == list(range(400))
    assert not is_embeddings(data)
    status, out, err = here("index", run, embeddings, "--out", tmp_path / "third")
    assert status == 0 and "taken as they are" in err
    assert here("index", embeddings, "--out", tmp_path / "second")[0] == 0
    whole, second = Index(tmp_path / "index"), Index(tmp_path / "second")
    assert len(whole) == 700 and len(second) == 400 and second.about["model"] is None
    for words in (
        ("index", run),
        ("index", run, data),
        ("index", data, data, data, "--out", tmp_path / "x"),
        ("index", "nothing.npz", "--out", tmp_path / "x"),
        ("index", run, "nothing", "--out", tmp_path / "x"),
        ("index", embeddings, "--out", tmp_path / "second"),
        ("index", tmp_path / "second", "--add", data, "--model", tmp_path),
    ):
        status, out, err = here(*words)
        assert status == 2 and err.splitlines()[-1].startswith("error: ") and not out, words


def test_vectors_of_another_model_are_refused(
    trained: tuple[Path, Path], here: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    data, run = trained
    other, index = tmp_path / "other", tmp_path / "index"
    settings = {"plugins": "ms", "steps": 2, "classes_per_batch": 8, "embedding_dim": 8, "report": False}
    train(data=str(data), out=other, seed=1, **settings)  # embeddings of the same length
    assert here("index", run, data, "--out", index)[0] == 0
    for suffix in (".npz", ".arrow", ".parquet"):
        mine, theirs = tmp_path / f"mine{suffix}", tmp_path / f"theirs{suffix}"
        for model, out in ((run, mine), (other, theirs)):
            assert here("embed", model, data, "--out", out)[0] == 0
        for words in (
            ("search", index, theirs, "--rows", "0"),
            ("classify", index, theirs),
            ("index", index, "--add", theirs),
            ("index", run, theirs, "--out", tmp_path / "mixed"),
            ("search", index, mine, theirs),
        ):
            status, out, err = here(*words)
            assert status == 2 and "model" in err and not out, (words, err)
        assert here("search", index, mine, "--rows", "0")[0] == 0
    assert here("search", index, data, "--model", other, "--rows", "0")[0] == 2
    assert here("export", run, "--out", tmp_path / "exported")[0] == 0
    assert here("search", index, data, "--model", tmp_path / "exported", "--rows", "0")[0] == 0, "the same weights elsewhere"
    assert here("index", tmp_path / "mine.npz", "--out", tmp_path / "of-file")[0] == 0
    assert here("search", tmp_path / "of-file", tmp_path / "theirs.npz")[0] == 2
    Index(index).check_model("")  # nothing says what made a query


def test_a_model_that_was_trained_on_or_moved(
    trained: tuple[Path, Path], here: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    data, source = trained
    run, index = tmp_path / "run", tmp_path / "index"
    shutil.copytree(source, run)
    assert here("index", run, data, "--out", index)[0] == 0
    assert here("verify", run, "--far", "0.1")[0] == 0
    status, out, err = here("search", index, data, "--rows", "0")
    assert status == 0 and "Matches reach" in out, err
    shutil.rmtree(run)
    settings = {"plugins": "ms", "steps": 2, "classes_per_batch": 8, "embedding_dim": 8, "report": False}
    train(data=str(data), out=run, seed=1, **settings)
    status, out, err = here("search", index, data, "--rows", "0")
    assert status == 2 and "Build it again" in err, "other weights in the same folder"
    run.rename(tmp_path / "moved")
    for words in (("search", index, data), ("classify", index, data), ("index", index, "--add", data)):
        status, out, err = here(*words)
        assert status == 2 and "--model" in err.splitlines()[-1] and str(run) in err, err


def test_a_threshold_of_other_weights_is_not_used(tmp_path: Path) -> None:
    write_threshold(tmp_path, {"threshold": 0.5, "wanted_far": 0.01, "fingerprint": "a"})
    assert chosen_threshold(None, tmp_path, "a")[0] == chosen_threshold(None, tmp_path)[0] == 0.5
    value, words = chosen_threshold(None, tmp_path, "b")
    assert value is None and "dmlcore verify" in words


def test_more_neighbours_than_entries_without_the_own(tmp_path: Path) -> None:
    x, labels = vectors(count=12)
    paths = [str(tmp_path / f"{row}.jpg") for row in range(12)]
    index = build_index(of_arrays(x, labels, paths), tmp_path / "index")
    queries = of_arrays(x[:1], paths=paths[:1])
    hits = without_own(index, queries, index.search(x[:1], 31))
    assert sorted(hits.positions[0].tolist()) == [-1] * 19 + list(range(1, 12))


def test_queries_that_are_entries_are_told(here: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    x, labels = np.random.default_rng(0).normal(size=(40, 6)), np.arange(40) % 20
    paths = np.array([str(tmp_path / f"{row}.jpg") for row in range(40)])
    np.savez(tmp_path / "e.npz", x=x, row=np.arange(40), class_name=labels.astype(str), path=paths)
    assert here("index", tmp_path / "e.npz", "--out", tmp_path / "index")[0] == 0
    status, out, _ = here("classify", tmp_path / "index", tmp_path / "e.npz", "--k", 1)
    assert status == 0 and "1.000 are right" in " ".join(out.split()) and "40 of the queries are entries" in out
    status, out, _ = here("classify", tmp_path / "index", tmp_path / "e.npz", "--k", 1, "--others", "--json")
    answer = json.loads(out)
    s = x / np.linalg.norm(x, axis=1, keepdims=True)
    s = s @ s.T
    np.fill_diagonal(s, -2)
    assert answer["own"] == 0 and answer["accuracy"] == pytest.approx(np.mean(labels[s.argmax(1)] == labels))
    assert here("classify", tmp_path / "index", tmp_path / "e.npz", "--by", "means", "--others")[0] == 2
    status, out, _ = here(
        "search", tmp_path / "index", tmp_path / "e.npz", "--where", "label=99", "--threshold", 0.1, "--rows", 0
    )
    assert status == 0 and "no entry meets the conditions" in out and "none of these" not in out
