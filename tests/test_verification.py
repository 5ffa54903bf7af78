"""Verification: figures as scikit-learn has them, the threshold by counting, and pairs out of files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import image_folder

from dmlcore import cli
from dmlcore.errors import ConfigError, DataError, TrainingError
from dmlcore.evaluation import verification
from dmlcore.evaluation.verification import AllPairs
from dmlcore.serving.entries import of_arrays
from dmlcore.serving.thresholds import chosen_threshold, read_threshold, write_threshold
from dmlcore.serving.verify import read_pairs, verify_entries
from dmlcore.training import train


def samples(count: int = 240, classes: int = 24, noise: float = 1.2) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    labels = generator.integers(classes, size=count)
    x = generator.normal(size=(classes, 12))[labels] + noise * generator.normal(size=(count, 12))
    return x.astype(np.float32), labels


def all_pairs(x: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    i, j = np.triu_indices(len(x), 1)
    return (unit @ unit.T)[i, j], labels[i] == labels[j]


def test_figures_are_those_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    measures = pytest.importorskip("sklearn.metrics", reason="the oracle is scikit-learn")
    monkeypatch.setattr(verification, "ROWS", 50)  # several tiles
    x, labels = samples()
    scores, same = all_pairs(x, labels)
    curve = AllPairs(torch.from_numpy(x), labels).curve()
    assert (curve.positives, curve.negatives) == (same.sum(), (~same).sum())
    assert curve.auc() == pytest.approx(measures.roc_auc_score(same, scores), abs=1e-6)
    far, tar, _ = measures.roc_curve(same, scores, drop_intermediate=False)
    for rate in (1e-1, 1e-2, 1e-3, 1e-4):
        assert curve.tar_at(rate) == pytest.approx(tar[far <= rate].max(), abs=1e-3 if rate > 1e-3 else 5e-3)
    assert curve.tar_at(1e-6) is None
    crossing = np.argmin(np.abs(far - (1 - tar)))
    assert curve.eer()[0] == pytest.approx((far[crossing] + 1 - tar[crossing]) / 2, abs=1e-3)
    given = verification.curve_of_pairs(scores, same)
    assert given.auc() == pytest.approx(curve.auc(), abs=1e-6)
    np.testing.assert_array_equal(given.accepted, np.arange(1, same.sum() + 1))


def test_ties_count_half() -> None:
    measures = pytest.importorskip("sklearn.metrics", reason="the oracle is scikit-learn")
    generator = np.random.default_rng(0)
    scores, same = generator.integers(0, 6, 400).astype(np.float32), generator.random(400) < 0.3
    curve = verification.curve_of_pairs(scores, same)
    assert curve.auc() == pytest.approx(measures.roc_auc_score(same, scores))
    far, tar, thresholds = measures.roc_curve(same, scores, drop_intermediate=False)
    at = np.searchsorted(-thresholds, -curve.thresholds)
    np.testing.assert_allclose(curve.far, far[at])
    np.testing.assert_allclose(curve.tar, tar[at])


def test_curves_by_hand() -> None:
    perfect = verification.curve_of_pairs(np.array([0.9, 0.8, 0.2]), np.array([True, True, False]))
    assert (perfect.auc(), perfect.eer()[0], perfect.tar_at(0.5)) == (1, 0, None)
    worst = verification.curve_of_pairs(np.array([0.1, 0.9]), np.array([True, False]))
    assert (worst.auc(), worst.eer()[0]) == (0, 1)
    with pytest.raises(DataError, match="no pair of one class"):
        verification.curve_of_pairs(np.array([0.1]), np.array([False]))
    assert verification.best_threshold(np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, True, False, False])) == pytest.approx(
        0.9
    )


def test_the_threshold_keeps_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = samples()
    scores, same = all_pairs(x, labels)
    pairs = AllPairs(torch.from_numpy(x), labels)
    for far in (0.1, 0.01, 0.001):
        about = pairs.threshold(far, replicates=200)
        accepted = np.sort(scores[~same])[::-1]
        allowed = int(far * len(accepted))
        assert accepted[allowed - 1] >= about["threshold"] > accepted[allowed] - 1e-6
        assert about["far"] <= far and about["low"] < about["threshold"] < about["high"]
    monkeypatch.setattr(verification, "MOST_HIGHEST", 3_000)  # the interval then comes from a part of the samples
    part = pairs.threshold(0.1, replicates=200)
    whole = about = AllPairs(torch.from_numpy(x), labels).threshold(0.1, replicates=200)
    assert part["threshold"] == about["threshold"] and part["low"] < whole["threshold"] < part["high"]
    with pytest.raises(DataError, match="needs at least 1,000,000 pairs"):
        pairs.threshold(1e-6)
    with pytest.raises(ConfigError, match="far"):
        pairs.threshold(1.5)


def test_the_interval_holds_thresholds_of_new_classes() -> None:
    """Of 40 draws of other classes, about 38 have their threshold within the interval of one large draw's width."""
    generator = np.random.default_rng(1)

    def drawn(classes: int) -> AllPairs:
        labels = np.repeat(np.arange(classes), 5)
        # Classes lie on few axes, so that pairs of classes differ much and the classes drawn matter.
        x = np.abs(generator.normal(size=(classes, 3)))[labels] + 0.2 * generator.normal(size=(len(labels), 3))
        return AllPairs(torch.from_numpy(x.astype(np.float32)), labels)

    truth = np.median([drawn(60).threshold(0.05, replicates=2)["threshold"] for _ in range(40)])
    covered = [
        about["low"] <= truth <= about["high"] for about in (drawn(60).threshold(0.05, replicates=150) for _ in range(40))
    ]
    assert np.mean(covered) >= 0.8


def test_drawn_pairs_are_what_they_say() -> None:
    x, labels = samples()
    pairs = AllPairs(torch.from_numpy(x), labels)
    scores, same, fold = pairs.balanced()
    assert len(scores) == len(same) == len(fold) == 6_000 and same.mean() == 0.5 and len(np.unique(fold)) == 10
    true, is_same = all_pairs(x, labels)
    for drawn, those in ((scores[same], true[is_same]), (scores[~same], true[~is_same])):
        assert max(np.abs(those - score).min() for score in drawn) < 1e-6
    about = verification.accuracy_in_folds(scores, same, fold)
    assert 0.6 < about["accuracy"] < 1 and about["folds"] == 10


def test_entries_need_labels() -> None:
    x, labels = samples()
    result = verify_entries(of_arrays(x, labels), far=0.01)
    assert result["classes"] == 24 and 0 < result["eer"] < 0.5 and len(result["curve"][0]) == len(result["curve"][1])
    with pytest.raises(DataError, match="needs labels"):
        verify_entries(of_arrays(x))


def test_pairs_of_both_layouts(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("first,second,same,fold\nx.jpg,y.jpg,1,a\nx.jpg,z.jpg,0,b\n")
    pairs = read_pairs(tmp_path / "a.csv")
    assert pairs.first == ["x.jpg", "x.jpg"] and pairs.same.tolist() == [True, False]
    assert pairs.fold is not None and pairs.fold.tolist() == [0, 1]
    (tmp_path / "pairs.txt").write_text("2\t1\nAda\t1\t2\nAda\t1\tBob\t3\nBob\t3\t4\nAda\t1\tCy\t10\n")
    pairs = read_pairs(tmp_path / "pairs.txt")
    assert pairs.first[1] == "Ada/Ada_0001.jpg" and pairs.second[3] == "Cy/Cy_0010.jpg"
    assert pairs.same.tolist() == [True, False, True, False] and pairs.fold is not None and pairs.fold.tolist() == [0, 0, 1, 1]
    for text, words in (
        ("first,second\na,b\n", "no column 'same'"),
        ("first,second,same\na,b,maybe\n", "line 2"),
        ("", "no column"),
    ):
        (tmp_path / "bad.csv").write_text(text)
        with pytest.raises(DataError, match=words):
            read_pairs(tmp_path / "bad.csv")
    for text, words in (("1\nAda 1\n", "line 2"), ("Ada 1 2\n", "neither"), ("3\n", "no pairs")):
        (tmp_path / "bad.txt").write_text(text)
        with pytest.raises(DataError, match=words):
            read_pairs(tmp_path / "bad.txt")


def test_a_threshold_is_kept_beside_the_model(tmp_path: Path) -> None:
    assert read_threshold(tmp_path) is None and chosen_threshold(None, tmp_path)[0] is None
    path = write_threshold(tmp_path, {"threshold": 0.625, "wanted_far": 0.001})
    assert chosen_threshold(None, tmp_path) == (0.625, "for a false-accept rate of 0.001 a pair")
    assert chosen_threshold("none", tmp_path)[0] is None and chosen_threshold("0.5", None)[0] == 0.5
    with pytest.raises(ConfigError, match="number or `none`"):
        chosen_threshold("high", tmp_path)
    path.write_text(path.read_text().replace("0.625", "0.025"))
    with pytest.raises(TrainingError, match="damaged"):
        read_threshold(tmp_path)


def test_the_commands_of_a_new_user(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Photographs, a run, an index, a threshold: a search that says none of these, and a class for a picture."""
    pytest.importorskip("faiss", reason="an index needs faiss-cpu")
    pytest.importorskip("pyarrow", reason="an index needs pyarrow")
    photos = image_folder(tmp_path / "photos", 12, 4, mode="RGB", size=(24, 24))
    settings = {"plugins": "ms", "steps": 2, "eval_every": 2, "classes_per_batch": 4, "embedding_dim": 8, "report": False}
    train(data=str(photos), out=tmp_path / "run", **settings)
    pairs = [f"class {n}/0.png,class {n}/1.png,1\nclass {n}/0.png,class {n + 1}/2.png,0\n" for n in range(8)]
    (tmp_path / "pairs.csv").write_text("first,second,same\n" + "".join(pairs))

    def here(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = cli.main([str(word) for word in argv])
        out, err = capsys.readouterr()
        return status, out, err

    _run_commands(here, tmp_path, photos)


def _run_commands(here: Callable[..., tuple[int, str, str]], root: Path, photos: Path) -> None:
    run, index, picture = root / "run", root / "index", photos / "class 3" / "1.png"
    status, out, err = here("verify", run, "--pairs", root / "pairs.csv", "--root", photos, "--json")
    assert status == 0 and json.loads(out)["positives"] == 8, err
    assert not (run / "threshold.json").exists()
    status, out, err = here("verify", run, "--data", photos, "--far", "0.05", "--json")
    about = json.loads(out)
    assert status == 0 and about["samples"] == 16 and about["threshold"]["threshold"] <= 1.001, err
    assert here("index", run, photos, "--out", index)[0] == 0
    status, out, _ = here("search", index, picture, "--k", 3, "--threshold", "none", "--json", "--html", root / "s.html")
    neighbours = json.loads(out)["queries"][0]["neighbours"]
    assert neighbours[0]["label"] == "class 3" and neighbours[0]["score"] == pytest.approx(1, abs=1e-5)
    page = (root / "s.html").read_text()
    assert page.count("data:image/") == 3  # the query is the first neighbour, and its picture is kept once
    status, out, _ = here("search", index, picture, "--threshold", "1.5")
    assert status == 0 and "none of these" in out
    status, out, _ = here("search", index, picture, "--others", "--threshold", "none", "--k", 2, "--json")
    assert [entry["path"] for entry in json.loads(out)["queries"][0]["neighbours"]].count(str(picture)) == 0
    status, out, _ = here(
        "search", index, photos, "--where", "label=class 3", "--threshold", "none", "--rerank", "augmentation"
    )
    assert status == 0 and out.count("class 3") >= 48
    for by in ("neighbours", "means", "probe"):
        status, out, err = here(
            "classify", index, photos, "--by", by, "--threshold", "0.2", "--out", root / f"{by}.csv", "--json"
        )
        about = json.loads(out)
        assert status == 0 and about["known"] == 48 and about["accuracy"] > 0.2, err
        assert (root / f"{by}.csv").read_text().count("\n") == 49
    status, out, _ = here("classify", index, picture, "--threshold", "1.5")
    assert status == 0 and "none of these" in out
    status, out, _ = here("eval", run, "--data", photos, "--rerank", "k-reciprocal", "--json")
    assert status == 0 and json.loads(out)["reranked"]["test"]["queries"] == 16
    exported = root / "exported"
    assert here("export", run, "--safetensors", "--out", exported)[0] == 0
    assert here("verify", exported, "--data", photos, "--far", "0.05", "--only-show")[0] == 0
    for words in (
        ("search", index),
        ("search", index, "nothing.jpg"),
        ("search", index, picture, "--rerank", "best"),
        ("search", index, picture, "--html", "page.pdf"),
        ("search", index, picture, "--rows", "7"),
        ("search", root, picture),
        ("classify", index, picture, "--by", "magic"),
        ("verify", run, "--far", "2"),
        ("verify", exported),
        ("verify", root / "nothing.npz"),
        ("eval", run, "--rerank", "best"),
    ):
        status, out, err = here(*words)
        assert status == 2 and err.splitlines()[-1].startswith("error: ") and not out, (words, err)
