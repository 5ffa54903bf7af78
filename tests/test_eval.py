"""`dmlcore eval`: models and files of embeddings alike, classes, queries, comparisons; figures against loops in float64."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dmlcore
from dmlcore import cli
from dmlcore.errors import ConfigError, DataError
from dmlcore.evaluation.result_table import columns
from dmlcore.serving import EvaluationOptions, compare_evaluations, evaluate
from dmlcore.training import train

SHORT: dict[str, Any] = {"steps": 3, "embedding_dim": 6, "compress": 0}


def table(classes: int = 24, of_each: int = 7, seed: int = 0, noise: float = 1.2) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    y = np.repeat(np.arange(classes), of_each)
    x = np.random.default_rng(9).normal(size=(classes, 12))[y] + noise * generator.normal(size=(len(y), 12))
    return {"x": x.astype(np.float32), "y": y}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs on the same classes, a model folder of the first, other data, and embeddings of all of these."""
    home = tmp_path_factory.mktemp("eval")
    np.savez(home / "own.npz", **table())
    np.savez(home / "other.npz", **table(10, seed=5))
    for name, losses in (("a", "ms"), ("b", "contrastive")):
        train(plugins=losses, data=str(home / "own.npz"), out=home / name, **SHORT)
        for data in ("own", "other"):
            dmlcore.serving.write_embeddings(dmlcore.load(home / name), str(home / f"{data}.npz"), home / f"{name}_{data}.npz")
    dmlcore.serving.export_folder(dmlcore.load(home / "a"), home / "folder")
    return home


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    status = cli.main(["eval", *map(str, words)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def read(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    status, out, err = run(capsys, *words, "--json")
    assert status == 0, err
    return json.loads(out)


def by_loops(x: np.ndarray, labels: list[set[Any]], queries: list[int], references: list[int]) -> list[dict[str, Any]]:
    """What each query finds, in float64."""
    x = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    rows = []
    for query in queries:
        ranked = sorted((row for row in references if row != query), key=lambda row: -float(x[query] @ x[row]))
        right = [bool(labels[row] & labels[query]) for row in ranked]
        r = sum(right)
        precision = [sum(right[: rank + 1]) / (rank + 1) for rank in range(len(right))]
        wrong = next((row for row, is_right in zip(ranked, right, strict=True) if not is_right), -1)
        rows.append(
            {
                "query": query,
                "positives": r,
                "recall@1": float(right[0]),
                "map": sum(p for p, is_right in zip(precision, right, strict=True) if is_right) / r if r else np.nan,
                "map@r": sum(p for p, is_right in zip(precision[:r], right[:r], strict=True) if is_right) / r if r else np.nan,
                "r_precision": sum(right[:r]) / r if r else np.nan,
                "wrong": wrong,
                "score": float(x[query] @ x[wrong]),
            }
        )
    return rows


def test_a_run_a_folder_and_a_file_measure_alike(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_result = read(capsys, home / "a", "--data", home / "other.npz", "--recall-at", "1,5")
    folder = read(capsys, home / "folder", "--data", home / "other.npz", "--recall-at", "1,5")
    file = read(capsys, home / "a_other.npz", "--recall-at", "1,5")
    assert run_result["metrics"]["all"] == pytest.approx(folder["metrics"]["all"], abs=1e-6)
    assert run_result["metrics"]["all"] == pytest.approx(file["metrics"]["all"], abs=1e-6)
    assert {"recall@1", "recall@5"} <= set(file["metrics"]["all"]) and "recall@2" not in file["metrics"]["all"]
    assert set(run_result["baselines"]) == set(folder["baselines"]) == {"raw features"} and file["baselines"] == {}
    embeddings = np.load(home / "a_other.npz")
    rows = by_loops(embeddings["x"], [{label} for label in embeddings["y"].tolist()], list(range(70)), list(range(70)))
    for name in ("recall@1", "map", "map@r", "r_precision"):
        assert file["metrics"]["all"][name] == pytest.approx(np.mean([row[name] for row in rows]), abs=1e-9)
        low, high = file["intervals"]["all"][name]
        assert low < file["metrics"]["all"][name] < high


def test_a_file_of_the_runs_own_data_measures_what_was_held_out(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of_run, of_file = read(capsys, home / "a"), read(capsys, home / "a_own.npz")
    assert list(of_file["metrics"]) == ["validation", "test"]
    for part, values in of_run["metrics"].items():
        assert of_file["metrics"][part] == pytest.approx(values, abs=1e-6)
    assert dmlcore.load(home / "a").evaluate(bootstrap=0)["metrics"] == of_run["metrics"]  # type: ignore[attr-defined]


def test_classes_and_queries_against_loops(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "queries.csv"
    result = read(capsys, home / "a_other.npz", "--per-class", "--per-query", out)
    embeddings = np.load(home / "a_other.npz")
    labels = embeddings["y"].tolist()
    rows = by_loops(embeddings["x"], [{label} for label in labels], list(range(70)), list(range(70)))
    with open(out, newline="") as lines:
        written = list(csv.DictReader(lines))
    assert len(written) == 70 and result["per_query"] == {"file": str(out), "queries": 70}
    for line, row in zip(written, rows, strict=True):
        assert int(line["row"]) == row["query"] and int(line["label"]) == labels[row["query"]]
        assert int(line["positives"]) == row["positives"] and int(line["wrong_row"]) == row["wrong"]
        assert int(line["wrong_label"]) == labels[row["wrong"]]
        assert float(line["wrong_score"]) == pytest.approx(row["score"], abs=1e-5)
        for name in ("recall@1", "map", "map@r", "r_precision"):
            assert float(line[name]) == pytest.approx(row[name], abs=1e-5)
    classes = result["classes"]["all"]
    assert [entry["map@r"] for entry in classes] == sorted(entry["map@r"] for entry in classes) and len(classes) == 10
    for entry in classes:
        mine = [row["map@r"] for row in rows if str(labels[row["query"]]) == entry["class"]]
        assert entry["queries"] == len(mine) and entry["map@r"] == pytest.approx(np.mean(mine))
    status, _, err = run(capsys, home / "a_other.npz", "--per-query", out)
    assert status == 2 and "--overwrite" in err
    assert run(capsys, home / "a_other.npz", "--per-query", out, "--overwrite")[0] == 0


def test_queries_a_gallery_and_several_labels_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(2)
    x = generator.normal(size=(60, 5)).astype(np.float32)
    sets = [{"abc"[generator.integers(3)], "abcd"[generator.integers(4)]} for _ in range(60)]
    split = np.array(["query", "gallery", "gallery", "test", "train", ""] * 10)
    label = np.array(["; ".join(sorted(some)) for some in sets])
    np.savez(tmp_path / "e.npz", x=x, row=np.arange(60), label=label, split=split)
    result = read(capsys, tmp_path / "e.npz", "--per-class", "--per-query", tmp_path / "q.csv")
    queries = [row for row in range(60) if split[row] in ("query", "test")]
    references = [row for row in range(60) if split[row] in ("gallery", "test")]
    rows = by_loops(x, [set(some) for some in sets], queries, references)
    assert list(result["metrics"]) == ["test"] and result["metrics"]["test"]["queries"] == len(queries)
    for name in ("recall@1", "map", "map@r"):
        assert result["metrics"]["test"][name] == pytest.approx(np.mean([row[name] for row in rows]), abs=1e-9)
    by_class = {entry["class"]: entry for entry in result["classes"]["test"]}
    for name in "abcd":
        mine = [row["map@r"] for row in rows if name in sets[row["query"]]]
        assert by_class[name]["queries"] == len(mine) and by_class[name]["map@r"] == pytest.approx(np.mean(mine))
    with open(tmp_path / "q.csv", newline="") as lines:
        wrong = {int(line["row"]): int(line["wrong_row"] or -1) for line in csv.DictReader(lines)}
    assert wrong == {row["query"]: row["wrong"] for row in rows}
    assert any("several labels" in note for note in result["notes"])


def test_two_models_on_the_same_queries(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = read(capsys, home / "a", home / "b")
    assert list(result["comparison"]) == ["validation", "test"]
    for part, rows in result["comparison"].items():
        assert [row["measure"] for row in rows] == list(columns().values())
        for row in rows:
            one, other = (model["metrics"][part][row["measure"]] for model in result["models"])
            assert row["difference"] == pytest.approx(other - one, abs=1e-12)
            assert row["interval"][0] <= row["difference"] <= row["interval"][1]
            assert 0 < row["p_flips"] <= 1 and "p_flips_holm" not in row
    status, out, _ = run(capsys, home / "a", home / "b_own.npz")
    assert status == 0 and "B - A" in out and f"B: {home / 'b_own.npz'}" in out


def test_more_than_two_are_corrected_and_classes_that_were_trained_on_are_named(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = read(capsys, home / "a", home / "folder", home / "b", "--data", home / "own.npz")
    rows = [row for row in result["comparison"]["all"] if row["measure"] == "map@r"]
    assert [(row["first"], row["second"]) for row in rows] == [(0, 1), (0, 2), (1, 2)]
    assert rows[0]["difference"] == pytest.approx(0, abs=1e-9)
    assert all(row["p_flips_holm"] >= row["p_flips"] for row in rows)
    noted = [note for note in result["notes"] if "not held out" in note]
    assert [note[:9] for note in noted] == ["model A: ", "model C: "] and "('" in noted[0]


def test_what_cannot_be_compared_or_measured_is_told_in_a_line(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(plugins="ms", data=str(home / "own.npz"), out=tmp_path / "c", seed=7, **SHORT)
    np.savez(tmp_path / "bare.npz", x=np.eye(4, dtype=np.float32), row=np.arange(4))
    mistakes = {
        (home / "a", tmp_path / "c"): "cannot be compared query by query: .*classes, such as",
        (home / "a", home / "a_other.npz"): "cannot be compared query by query: their parts are validation, test and all",
        (home / "folder",): "has no data of its own",
        (tmp_path / "bare.npz",): "needs labels",
        (home / "a_other.npz", "--data", home / "other.npz"): "leave --data out",
        (home / "a", "--recall-at", "1,x"): "whole numbers",
        (home / "a", "--recall-at", "0"): "at least 1",
        (home / "a", "--bootstrap", "-1"): "bootstrap is -1",
        (home / "a", "--metrics", "nothing"): "there is no metric",
        (home / "a", home / "b", "--per-class"): "--per-class is for one model",
        (home / "a", "--per-query", tmp_path / "x.txt"): "must end in .csv",
        (): "no model is given",
    }
    import re

    for words, text in mistakes.items():
        status, out, err = run(capsys, *words)
        assert status == 2 and not out and re.search(text, err), (words, err)
        assert err.count("error:") == 1 and "Traceback" not in err
    one, other = evaluate(home / "a_own.npz"), evaluate(home / "a_own.npz")
    other.scores["test"].positives[0] += 1
    with pytest.raises(DataError, match="other answers are right in 'test'"):
        compare_evaluations([one, other], EvaluationOptions())
    with pytest.raises(ConfigError, match="needs two models"):
        compare_evaluations([evaluate(home / "a_own.npz")], EvaluationOptions())
    with pytest.raises(DataError, match="no file"):
        evaluate(tmp_path / "gone.npz")


def test_measures_from_the_command_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (home / "a_other.npz", "--metrics", "uniformity,hierarchical", "--bootstrap", "0")
    sharp, usual = read(capsys, *words, "--uniformity.t", "4"), read(capsys, *words)
    assert sharp["metrics"]["all"]["uniformity.uniformity"] < usual["metrics"]["all"]["uniformity.uniformity"]
    assert usual["metrics"]["all"]["hierarchical.h_ap"] == pytest.approx(usual["metrics"]["all"]["map"], abs=1e-6)
    assert "intervals" not in usual
    assert "hierarchical.h_ap" in run(capsys, *words)[1]


def test_terminals_get_no_orders_from_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = table(4, 5)
    names = np.array(["ok", "\x1b[31mred", "line\nbreak", "tab\t"])
    np.savez(tmp_path / "e.npz", x=data["x"], row=np.arange(20), label=names[data["y"]])
    status, out, err = run(capsys, tmp_path / "e.npz", "--per-class")
    assert status == 0 and "\x1b[31m" not in out + err
