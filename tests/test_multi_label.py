"""Samples with several labels: every form of data, batches, splits, training, measures and the page of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_files import save_image

from dmlcore import cli
from dmlcore.data import LabelledDataset, LabelSets, create_sampler, open_data
from dmlcore.data.multi_label import named_sets, parted_labels, split_by_label
from dmlcore.errors import ConfigError, DataError
from dmlcore.evaluation import evaluating, retrieval_metrics
from dmlcore.evaluation.inspection import class_scores, inspect
from dmlcore.training import train

KS = (1, 2, 4, 8)


def matrix_of(samples: int = 240, labels: int = 24, seed: int = 0) -> np.ndarray:
    """One to three labels of each sample; those of a sample come from one corner, so that some can be held out."""
    generator = np.random.default_rng(seed)
    matrix = np.zeros((samples, labels), dtype=bool)
    for row in range(samples):
        first = 3 * generator.integers(0, labels // 3)
        matrix[row, first + generator.permutation(3)[: generator.integers(1, 4)]] = True
    return matrix


def data_of(matrix: np.ndarray, seed: int = 1) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    x = matrix @ generator.normal(size=(matrix.shape[1], 8)) + generator.normal(size=(len(matrix), 8))
    return {"x": x.astype(np.float32), "y": matrix}


def names_of(matrix: np.ndarray) -> list[list[str]]:
    return [[f"l{label:02}" for label in np.flatnonzero(row)] for row in matrix]


def sets_of(dataset: LabelledDataset) -> list[list[str]]:
    assert dataset.sets is not None
    labels = dataset.sets.select(dataset.dense_labels)
    return [[dataset.label_names[int(label)] for label in labels.index[start:stop]] for start, stop in labels.bounds()]


def sharing(matrix: np.ndarray) -> np.ndarray:
    """bool [N, N], which samples share a label."""
    return np.array([[bool((a & b).any()) for b in matrix] for a in matrix])


def slow(x: np.ndarray, relevant: np.ndarray, queries: list[int], references: list[int]) -> dict[str, float]:
    """The measures by loops in float64, negatives first among equals."""
    x = x.astype(np.float64)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    rows = []
    for query in queries:
        others = [row for row in references if row != query]
        ranked = sorted(others, key=lambda row: (-float(x[query] @ x[row]), relevant[query, row]))
        right = [bool(relevant[query, row]) for row in ranked]
        r = sum(right)
        if not r:
            continue
        precision = [sum(right[: place + 1]) / (place + 1) for place in range(len(right))]
        values = {f"recall@{k}": float(any(right[:k])) for k in KS}
        values |= {
            "r_precision": sum(right[:r]) / r,
            "map@r": sum(p for p, h in zip(precision[:r], right, strict=False) if h) / r,
        }
        values["map"] = sum(p for p, h in zip(precision, right, strict=True) if h) / r
        rows.append(values)
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]} | {"queries": float(len(rows))}


def test_sets_of_labels() -> None:
    matrix = matrix_of(30, 9)
    sets = LabelSets.of_matrix(matrix)
    rows = np.array([4, 0, 4, 29])
    np.testing.assert_array_equal(sets.matrix(), matrix)
    np.testing.assert_array_equal(sets.select(rows).matrix(), matrix[rows])
    np.testing.assert_array_equal(sets.holders().matrix(), matrix.T)
    kept = np.arange(9) % 2 == 0
    np.testing.assert_array_equal(sets.only(kept).matrix(), matrix & kept)
    distinct, place = sets.distinct()
    np.testing.assert_array_equal(distinct.matrix()[place], matrix)
    assert len(distinct) == len(np.unique(matrix, axis=0))
    many = LabelSets.of_pairs(np.arange(10**6), np.arange(10**6) % 10**4, 10**6, 10**4)  # not 10 GB
    assert many.select(np.array([123_456])).matrix().sum() == 1 and many.holders().sizes.max() == 100


@pytest.mark.parametrize("form", ["matrix", "sets", "with references"])
def test_measures_agree_with_loops(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from dmlcore.evaluation import plain

    monkeypatch.setattr(plain, "CHUNK_CELLS", 1000)  # several chunks
    matrix = matrix_of(90, 12)
    x = data_of(matrix)["x"]
    x[7] = x[3]  # equal vectors
    relevant = sharing(matrix)
    everyone = list(range(90))
    if form == "with references":
        queries, references = everyone[:30], everyone[20:]
        own = [row - 20 if row >= 20 else -1 for row in queries]
        got = retrieval_metrics(x[:30], matrix[:30], x[20:], matrix[20:], own=own)
        expected = slow(x, relevant, queries, references)
    else:
        got = retrieval_metrics(x, matrix.astype(int) if form == "matrix" else LabelSets.of_matrix(matrix))
        expected = slow(x, relevant, everyone, everyone)
    assert {name: got[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_looking_at_queries_agrees_with_the_means() -> None:
    matrix = matrix_of(80, 12)
    x, sets = torch.from_numpy(data_of(matrix)["x"]), LabelSets.of_matrix(matrix)
    looked, means = inspect(x, sets), retrieval_metrics(x, sets)
    assert np.nanmean(looked.recall) == pytest.approx(means["recall@1"])
    assert np.nanmean(looked.map_at_r) == pytest.approx(means["map@r"])
    scores = class_scores(looked, sets)
    for label in range(12):
        rows = matrix[:, label] & (looked.positives > 0)
        assert scores.queries[label] == rows.sum() and scores.map_at_r[label] == pytest.approx(looked.map_at_r[rows].mean())
    shares = sharing(matrix)
    np.testing.assert_array_equal(looked.is_right, shares[looked.queries[:, None], looked.neighbours])


def test_forms_of_data_are_one(tmp_path: Path) -> None:
    matrix = matrix_of()
    data, lists = data_of(matrix), names_of(matrix)
    names = np.array([f"l{label:02}" for label in range(24)])
    np.savez(tmp_path / "m.npz", **data, class_name=names)
    header = "labels," + ",".join(f"f{column}" for column in range(8))
    lines = [f"{'; '.join(row)},{','.join(map(str, x))}" for row, x in zip(lists, data["x"].tolist(), strict=True)]
    (tmp_path / "m.csv").write_text("\n".join([header, *lines]))

    class Pairs(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(matrix)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, Any]:
            return torch.from_numpy(data["x"][index]), self.label(index)

        def label(self, index: int) -> Any:
            return lists[index]

    class Vectors(Pairs):
        classes = names.tolist()

        def label(self, index: int) -> Any:
            return torch.from_numpy(matrix[index]).float()

    forms: list[Any] = [
        str(tmp_path / "m.csv"),
        {"x": data["x"], "y": lists},
        {**data, "class_name": names},
        Pairs(),
        Vectors(),
    ]
    expected = open_data(str(tmp_path / "m.npz"))
    for form in forms:
        splits = open_data(form)
        for part in ("train", "validation", "test"):
            here, there = getattr(splits, part), getattr(expected, part)
            assert sets_of(here) == sets_of(there) == [lists[row] for row in here.rows]
    assert sorted({label for row in sets_of(expected.train) for label in row} & set(names)) != names.tolist()


@pytest.mark.parametrize("of", ["texts", "numbers", "bools"])
def test_parquet(of: str, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="tables need pyarrow")
    pytest.importorskip("pyarrow.parquet", reason="tables need pyarrow")
    matrix = matrix_of()
    columns = {"texts": names_of(matrix), "numbers": [np.flatnonzero(row) for row in matrix], "bools": list(matrix)}
    table = pyarrow.table({"x": list(data_of(matrix)["x"]), "labels": [list(row) for row in columns[of]]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    splits = open_data(str(tmp_path / "t.parquet"))
    expected = names_of(matrix) if of == "texts" else [[str(label) for label in np.flatnonzero(row)] for row in matrix]
    assert sets_of(splits.test) == [sorted(expected[row], key=splits.test.label_names.index) for row in splits.test.rows]


def test_pictures_and_texts_in_csv_files(tmp_path: Path) -> None:
    words = ["cat", "dog", "fox", "hen", "owl", "pig", "rat", "yak"]
    pictures, texts = ["path,labels"], ["text,labels"]
    for number in range(64):
        save_image(tmp_path / f"{number}.png", seed=number)
        several = f"{words[number % 8]}; {words[(number % 8) ^ 1]}" if number % 3 else words[number % 8]
        pictures.append(f"{number}.png,{several}")
        texts.append(f"the {number}th text,{several}")
    pictures += ["0.png,owl", "gone.png,owl"]
    (tmp_path / "pictures.csv").write_text("\n".join(pictures))
    (tmp_path / "texts.csv").write_text("\n".join(texts))
    for name in ("pictures", "texts"):
        splits = open_data(str(tmp_path / f"{name}.csv"))
        held_out = [
            {label for row in sets_of(getattr(splits, part)) for label in row} for part in ("train", "validation", "test")
        ]
        assert not held_out[0] & held_out[1] and not held_out[0] & held_out[2] and len(splits.test.label_names) == 8


def test_labels_are_held_out_where_possible() -> None:
    splits = open_data(data_of(matrix_of()))
    trained = {label for row in sets_of(splits.train) for label in row}
    for part in (splits.validation, splits.test):
        assert part.judged is not None
        judged = {part.label_names[int(label)] for label in np.flatnonzero(part.judged)}
        assert not judged & trained and all(judged & set(row) for row in sets_of(part))
    assert any("judged by the" in note and note.startswith("test") for note in splits.notes)
    x = np.random.default_rng(3).normal(size=(len(splits.test), 5)).astype(np.float32)
    sets = splits.test.judged_sets().matrix()
    expected = slow(x, sharing(sets), list(range(len(x))), list(range(len(x))))
    got = evaluating.evaluate(torch.from_numpy(x), splits.test)
    assert {name: got[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_mixed_labels_are_split_by_samples() -> None:
    matrix = np.random.default_rng(0).random((100, 5)) < 0.5
    matrix[~matrix.any(1), 0] = True
    split, notes = split_by_label(LabelSets.of_matrix(matrix), (0.5, 0.15, 0.35), 0)
    assert [(split == part).sum() for part in ("train", "validation", "test")] == [50, 15, 35]
    assert "too mixed" in notes[0] and "test labels are trained on" in notes[0]
    splits = open_data(data_of(matrix))
    assert splits.test.judged is None and splits.describe()["test_classes_trained_on"] == 5


def test_the_datas_own_split_is_respected() -> None:
    data = data_of(matrix_of())
    words = np.array((["train"] * 3 + ["test"]) * 60)
    splits = open_data({**data, "split": words})
    assert np.array_equal(splits.test.rows, np.flatnonzero(words == "test"))
    assert "not label-disjoint: 24 of 24 test labels are trained on" in splits.notes
    roles = np.array(["train", "train", "query", "gallery"] * 60)
    splits = open_data({**data, "split": roles})
    x = data["x"][splits.test.rows]
    matrix = splits.test.judged_sets().matrix()
    expected = slow(x, sharing(matrix), splits.test.queries.tolist(), splits.test.references.tolist())
    got = evaluating.evaluate(torch.from_numpy(x), splits.test)
    assert {name: got[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_batches_of_labels() -> None:
    matrix = matrix_of()
    sets = LabelSets.of_matrix(matrix)
    first, again = (create_sampler("class_balanced", sets, 6, 4, seed=3, steps=40) for _ in range(2))
    batches = list(first)
    assert batches == list(again)
    for batch in batches:
        assert len(batch) == len(set(batch)) == 24
        assert (matrix[batch].sum(0) >= 4).sum() >= 5  # of the labels drawn; a round may end within a batch
    assert len({row for batch in batches for row in batch}) == len(matrix)
    again.load_state_dict({"seed": 3, "step": 20})
    assert list(again) == batches[20:]
    small = create_sampler("label_balanced", LabelSets.of_matrix(matrix[:10]), 6, 4, steps=3)
    assert all(len(batch) == 24 and set(batch) == set(range(10)) for batch in small)


def test_training_without_choosing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "m.npz", **data_of(matrix_of()))
    line = ["train", "--data", str(tmp_path / "m.npz"), "--steps", "6", "--out", str(tmp_path / "run")]
    assert cli.main(line) == 0
    shown = capsys.readouterr().err
    assert "labels x 4 samples" in shown
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    page = (tmp_path / "run" / "report.html").read_text()
    assert "A sample counts for each of its labels" in page and "with a common label" in page
    assert cli.main(["eval", str(tmp_path / "run"), "--json"]) == 0
    evaluated = json.loads(capsys.readouterr().out)
    assert evaluated["metrics"]["test"] == pytest.approx(result["metrics"]["test"])
    assert cli.main(["eval", str(tmp_path / "run"), "--data", str(tmp_path / "m.npz"), "--checkpoint", "last"]) == 0
    assert cli.main(["eval", str(tmp_path / "run"), "--rerank", "k-reciprocal"]) == 2
    assert "one label per sample, but these have several" in capsys.readouterr().err
    out = tmp_path / "e.npz"
    assert cli.main(["embed", str(tmp_path / "run"), "--data", str(tmp_path / "m.npz"), "--out", str(out)]) == 0
    with np.load(out) as file:
        assert len(file["x"]) == 240 and any("; " in name for name in file["class_name"])
    assert cli.main(["data", "show", str(tmp_path / "m.npz")]) == 0
    assert "24; samples have several" in capsys.readouterr().out
    assert cli.main(["train", "--resume", str(tmp_path / "run"), "--steps", "8"]) == 0


def test_a_memory_and_metrics(tmp_path: Path) -> None:
    data = data_of(matrix_of())
    short: dict[str, Any] = {"steps": 3, "compress": 0, "embedding_dim": 4, "classes_per_batch": 4, "report": False}
    result = train(out=tmp_path / "run", data=data, plugins="ms,triplet", memory=32, metrics="uniformity", **short)
    assert "uniformity.alignment" in result["metrics"]["test"]


def test_losses_with_proxies_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"have several labels, but proxy_anchor owns a proxy per class"):
        train(out=tmp_path / "run", data=data_of(matrix_of()), plugins="ms,proxy_anchor", steps=2)
    assert not (tmp_path / "run").exists()


def test_rows_without_labels_and_mistakes() -> None:
    matrix = matrix_of()
    matrix[[3, 5]] = False
    splits = open_data(data_of(matrix))
    assert "2 rows without a label were left out" in splits.notes
    assert sum(len(part) for part in (splits.train, splits.validation, splits.test)) == 238
    data = data_of(matrix)
    for y, message in (
        (data["y"].astype(int) * 2, "must hold 0 and 1"),
        (data["y"][:9], "'y' .* has 9 rows, but 'x' has 240"),
        (data["y"] & False, "has no label: all are empty"),
        ([["a"], [0.5]], "the label 0.5 in a list"),
    ):
        with pytest.raises(DataError, match=message):
            open_data({"x": data["x"], "y": y})
    with pytest.raises(DataError, match="24 columns, but there are 2 names"):
        open_data({**data, "class_name": np.array(["a", "b"])})
    with pytest.raises(ConfigError, match="both must be of one form"):
        retrieval_metrics(data["x"], data["y"], data["x"], np.arange(240))
    assert parted_labels("cat; dog|owl") == ["cat", "dog", "owl"]
    assert named_sets([["a", "a", "b"], None, []]).sets.sizes.tolist() == [2, 0, 0]
