"""Queries and a gallery as parts of a split: in every source, in training's own evaluation and in `eval`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_files import save_image

from dmlcore import cli
from dmlcore.data import LabelledDataset, RecordedSplit, open_data
from dmlcore.errors import ConfigError, DataError
from dmlcore.evaluation import evaluating, retrieval_metrics
from dmlcore.evaluation.inspection import inspect
from dmlcore.training import train

WORDS = ["train"] * 4 + ["query", "gallery", "gallery", "Probe"]
SHORT: dict[str, Any] = {"plugins": "ms", "steps": 2, "embedding_dim": 4, "compress": 0}


def arrays(classes: int = 8, words: list[str] = WORDS) -> dict[str, Any]:
    y = np.repeat(np.arange(classes), len(words))
    generator = np.random.default_rng(0)
    x = generator.normal(size=(classes, 6))[y] + generator.normal(size=(len(y), 6))
    return {"x": x.astype(np.float32), "y": y, "split": np.array(words * classes)}


def by_hand(x: np.ndarray, y: np.ndarray, roles: list[str]) -> dict[str, float]:
    """Recall at 1 and MAP@R by loops, in float64: queries and `test` ask, the gallery and `test` answer."""
    x = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    recalls, precisions = [], []
    for query in range(len(x)):
        if roles[query] == "gallery":
            continue
        others = [row for row in range(len(x)) if roles[row] != "query" and row != query]
        ranked = sorted(others, key=lambda row: -float(x[query] @ x[row]))
        right = [y[row] == y[query] for row in ranked]
        if not any(right):
            continue
        recalls.append(right[0])
        r = sum(right)
        precisions.append(sum(sum(right[: rank + 1]) / (rank + 1) for rank in range(r) if right[rank]) / r)
    return {"recall@1": float(np.mean(recalls)), "map@r": float(np.mean(precisions)), "queries": len(recalls)}


def measured(embeddings: np.ndarray, dataset: LabelledDataset) -> dict[str, float]:
    values = evaluating.evaluate(torch.from_numpy(embeddings), dataset)
    return {name: values[name] for name in ("recall@1", "map@r", "queries")}


@pytest.mark.parametrize("words", [WORDS, ["train", "train", "query", "gallery", "test", "test"]])
def test_queries_are_ranked_against_the_gallery(words: list[str]) -> None:
    data = arrays(words=words)
    splits = open_data(data)
    rows, roles = splits.test.rows, splits.test.roles
    assert roles is not None
    expected = by_hand(data["x"][rows], data["y"][rows], roles.tolist())
    assert measured(data["x"][rows], splits.test) == pytest.approx(expected, abs=1e-12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DML_FUSED", "0")
        assert measured(data["x"][rows], splits.test) == pytest.approx(expected, abs=1e-12)
    looked = inspect(
        torch.from_numpy(data["x"][rows]),
        splits.test.labels,
        queries=splits.test.queries,
        references=splits.test.references,
    )
    assert np.nanmean(looked.recall) == pytest.approx(expected["recall@1"])
    assert np.nanmean(looked.map_at_r) == pytest.approx(expected["map@r"])
    assert not set(looked.neighbours.flat) - set(splits.test.references.tolist())
    assert (looked.neighbours != looked.queries[:, None]).all()
    assert any("queries are ranked against a gallery of" in note for note in splits.notes)


def test_a_query_in_the_gallery_is_no_answer_to_itself() -> None:
    data = arrays()
    for label in range(3):  # the same samples a second time, as of the gallery
        row = 8 * label + 4
        for name in data:
            data[name] = np.append(data[name], "gallery" if name == "split" else data[name][row : row + 1])
            if name == "x":
                data[name] = data[name].reshape(-1, 6)
    splits = open_data(data)
    assert "3 queries are in the gallery too: no query finds itself" in splits.notes
    assert splits.test.roles is not None and (splits.test.roles == "test").sum() == 3
    rows = splits.test.rows
    expected = by_hand(data["x"][rows], data["y"][rows], splits.test.roles.tolist())
    assert measured(data["x"][rows], splits.test) == pytest.approx(expected, abs=1e-12)


def test_csv_files_and_folders(tmp_path: Path) -> None:
    lines = ["path,label,split"]
    for label in range(8):
        for sample, word in enumerate(["train", "train", "validation", "validation", "q", "reference", "gallery"]):
            save_image(tmp_path / "pictures" / f"{label}-{sample}.png", seed=10 * label + sample)
            lines.append(f"pictures/{label}-{sample}.png,c{label},{word}")
        save_image(tmp_path / "folders" / "train" / f"c{label}" / "0.png", seed=label)
        save_image(tmp_path / "folders" / "train" / f"c{label}" / "1.png", seed=10 + label)
        save_image(tmp_path / "folders" / "query" / f"c{label}" / "2.png", seed=20 + label)
        save_image(tmp_path / "folders" / "gallery" / f"c{label}" / "3.png", seed=30 + label)
    lines.append("pictures/0-4.png,c0,gallery")  # a query a second time
    (tmp_path / "list.csv").write_text("\n".join(lines))
    test = open_data(str(tmp_path / "list.csv")).test
    assert (len(test), len(test.queries), len(test.references)) == (24, 8, 17)
    test = open_data(str(tmp_path / "folders")).test
    assert (len(test), len(test.queries), len(test.references)) == (16, 8, 8)


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="tables need pyarrow")
    pytest.importorskip("pyarrow.parquet", reason="tables need pyarrow")
    data = arrays()
    table = pyarrow.table({"x": list(data["x"]), "label": data["y"], "split": data["split"]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    test = open_data(str(tmp_path / "t.parquet")).test
    assert (len(test.queries), len(test.references)) == (16, 16)


def test_run_eval_and_embed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "data.npz", **arrays())
    result = train(out=tmp_path / "run", data=str(tmp_path / "data.npz"), recall_at=[1, 10], metrics="knn", **SHORT)
    assert result["data"]["parts"]["test"] == {"classes": 8, "samples": 32, "queries": 16, "gallery": 16}
    assert result["metrics"]["test"]["queries"] == 16 and (tmp_path / "run" / "report.html").exists()
    recorded = RecordedSplit.read(tmp_path / "run" / "split.json")
    assert {part: len(entries.labels) for part, entries in recorded.parts.items() if "e" in part} == {
        "test": 0,
        "left out": 0,
        "query": 16,
        "gallery": 16,
    }
    tables = [*result["metrics"].values(), result["baselines"]["raw features"]["test"]]
    assert all({"recall@1", "recall@10"} == {name for name in values if name.startswith("recall")} for values in tables)
    assert ">R@10<" in (tmp_path / "run" / "report.html").read_text()
    train(out=tmp_path / "second", data=str(tmp_path / "data.npz"), recall_at=[1, 5], metrics="knn", **SHORT)
    assert cli.main(["report", str(tmp_path / "run"), str(tmp_path / "second"), "--out", str(tmp_path / "both.html")]) == 0
    page = (tmp_path / "both.html").read_text()
    assert ">R@10<" in page and ">R@5<" in page and ">R@2<" not in page
    capsys.readouterr()
    assert cli.main(["eval", str(tmp_path / "run"), "--json"]) == 0  # the values of k are the run's own
    assert json.loads(capsys.readouterr().out)["metrics"]["test"] == pytest.approx(result["metrics"]["test"])
    np.savez(tmp_path / "other.npz", **arrays(5, ["train", "query", "gallery", "gallery"]))
    assert cli.main(["eval", str(tmp_path / "run"), "--data", str(tmp_path / "other.npz"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["metrics"]["test"]["queries"] == 5
    assert "5 queries are ranked against a gallery of 10" in shown["notes"]
    out = tmp_path / "e.npz"
    assert cli.main(["embed", str(tmp_path / "run"), "--data", str(tmp_path / "data.npz"), "--out", str(out)]) == 0
    with np.load(out) as file:
        written = {name: file[name] for name in file.files}
    is_query, is_gallery = (written["split"] == role for role in ("query", "gallery"))
    sides = [written[name][rows] for rows in (is_query, is_gallery) for name in ("x", "y")]
    expected = retrieval_metrics(*sides, recall_at=[1, 10])
    assert {name: result["metrics"]["test"][name] for name in expected} == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("words", [["train", "train", "query", "query"], ["train", "train", "gallery", "gallery"]])
def test_one_role_alone_is_refused(words: list[str]) -> None:
    with pytest.raises(DataError, match=rf"samples of '{words[-1]}', but none of '(query|gallery)', so nothing can be ranked"):
        open_data(arrays(words=words))


def test_queries_without_answers() -> None:
    data = arrays()
    data["split"][data["y"] == 0] = "train"
    data["split"][(data["y"] == 1) & (data["split"] == "gallery")] = "train"
    assert "2 of 14 test samples have none of its class in the gallery" in open_data(data).notes
    data["split"] = np.where(data["split"] == "gallery", "train", data["split"])
    data["split"][data["y"] == 0] = "gallery"
    with pytest.raises(DataError, match="no sample of the test part has one of its class in the gallery"):
        open_data(data)


def test_mistakes_about_own() -> None:
    x, y = np.eye(4, dtype=np.float32), np.array([0, 0, 1, 1])
    with pytest.raises(ConfigError, match="it needs references"):
        retrieval_metrics(x, y, own=[0, 1, 2, 3])
    with pytest.raises(ConfigError, match="own must hold -1 or numbers of the 4 references"):
        retrieval_metrics(x, y, x, y, own=[0, 1, 2, 4])
    alone, beside = retrieval_metrics(x, y), retrieval_metrics(x, y, x, y, own=[0, 1, 2, 3])
    assert alone == beside
