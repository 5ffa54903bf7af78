"""The metric `verification`: against scikit-learn and counting in float64, pairs out of files, and in `train` and `eval`."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_files import image_folder

from dmlcore import cli, plugins
from dmlcore.errors import ConfigError, DataError
from dmlcore.evaluation import verification
from dmlcore.evaluation.pair_files import Pairs, read_names
from dmlcore.reports import pictures


def measured(x: np.ndarray, y: np.ndarray, names: Any = (), **options: Any) -> dict[str, float]:
    metric = plugins.find("metric", "verification").component(**options)
    return metric(torch.from_numpy(x), torch.from_numpy(y), names=names)


def exact_samples(count: int = 150, classes: int = 15) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of four numbers +-1 and twelve zeros: their cosines are multiples of 1 / 4, exact in float32, with many ties."""
    generator = np.random.default_rng(0)
    y = generator.integers(0, classes, count)
    centres = np.stack([generator.permutation(16)[:4] for _ in range(classes)])
    x = np.zeros((count, 16), dtype=np.float32)
    for row in range(count):
        at = centres[y[row]].copy()
        if generator.random() < 0.6:
            at[:2] = generator.permutation([place for place in range(16) if place not in at])[:2]
        x[row, at] = 1
    return x, y


def test_figures_in_float64_by_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    measures = pytest.importorskip("sklearn.metrics", reason="the oracle is scikit-learn")
    monkeypatch.setattr(verification, "ROWS", 40)  # several tiles
    x, y = exact_samples()
    unit = x.astype(np.float64) / 2
    i, j = np.triu_indices(len(x), 1)
    scores, same = (unit @ unit.T)[i, j], y[i] == y[j]
    far, tar, _ = measures.roc_curve(same, scores, drop_intermediate=False)
    rates = (0.5, 0.1, 0.03, 0.01, 0.001)
    values = measured(x, y, fars=(*rates, 1e-6))
    for rate in rates:
        assert values[f"tar@{rate:g}"] == pytest.approx(tar[far <= rate].max(), abs=1e-12)
    assert np.isnan(values["tar@1e-06"])
    assert values["auc"] == pytest.approx(measures.roc_auc_score(same, scores), abs=1e-12)
    # The crossing of two step functions: the smaller of what is reached on both of its sides.
    crossing = min(max(a, 1 - b) for a, b in zip(far, tar, strict=True))
    assert values["eer"] <= crossing + 1e-12 and values["eer"] >= max(min(a, 1 - b) for a, b in zip(far, tar, strict=True))


def test_the_accuracy_in_folds_by_counting() -> None:
    generator = np.random.default_rng(2)
    x = generator.normal(size=(60, 5)).astype(np.float32)
    pairs = [
        (generator.integers(60), generator.integers(60), bool(generator.integers(2)), fold)
        for fold in range(10)
        for _ in "abcdef"
    ]
    same, fold = np.array([pair[2] for pair in pairs]), np.array([pair[3] for pair in pairs])
    unit = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    scores = np.array([unit[a] @ unit[b] for a, b, _, _ in pairs])
    accuracies = []
    for number in range(10):
        others = fold != number
        best, chosen = -1, 0.0
        for threshold in [np.inf, *sorted(scores[others], reverse=True)]:  # the highest of equally good ones
            right = int(((scores[others] >= threshold) == same[others]).sum())
            best, chosen = (right, threshold) if right > best else (best, chosen)
        accuracies.append(((scores[~others] >= chosen) == same[~others]).mean())
    about = verification.accuracy_in_folds(scores, same, fold)
    assert about["accuracy"] == pytest.approx(np.mean(accuracies), abs=1e-12) and about["folds"] == 10
    assert about["accuracy_deviation"] == pytest.approx(np.std(accuracies, ddof=1), abs=1e-12)


def test_pairs_of_a_file(tmp_path: Path) -> None:
    """The names of a file are ends of paths, and pairs of which a sample is not there are told."""
    x, y = exact_samples()
    names = [f"/photos/lfw/P{label}/P{label}_{row:04}.jpg" for row, label in enumerate(y)]
    lines, expected, same = ["10\t3"], [], []
    for fold in range(10):
        own = [(a, b) for a in range(150) for b in range(a + 1, 150) if y[a] == y[b]][fold * 3 : fold * 3 + 3]
        for a, b in own:
            lines.append(f"P{y[a]}\t{a}\t{b}")
        for a, b in [(k, k + 1) for k in range(fold * 9, 149) if y[k] != y[k + 1]][:3]:
            lines.append(f"P{y[a]}\t{a}\tP{y[b]}\t{b}")
            own.append((a, b))
        expected += [float(x[a] @ x[b]) / 4 for a, b in own]
        same += [True] * 3 + [False] * 3
    (tmp_path / "pairs.txt").write_text("\n".join(lines) + "\n")
    values = measured(x, y, names, pairs=str(tmp_path / "pairs.txt"), fars=(0.1,))
    curve = verification.curve_of_pairs(np.array(expected), np.array(same))
    about = verification.accuracy_in_folds(np.array(expected), np.array(same), np.repeat(np.arange(10), 6))
    assert values == pytest.approx(
        {
            "accuracy": about["accuracy"],
            "deviation": about["accuracy_deviation"],
            "auc": curve.auc(),
            "eer": curve.eer()[0],
            "tar@0.1": curve.tar_at(0.1),
            "missing": 0,
        }
    )
    part = measured(x[:40], y[:40], names[:40], pairs=str(tmp_path / "pairs.txt"))
    assert 0 < part["missing"] < 60
    nothing = measured(x[:2], y[:2], ["a", "b"], pairs=str(tmp_path / "pairs.txt"))
    assert nothing["missing"] == 60 and np.isnan(nothing["accuracy"]) and np.isnan(nothing["auc"])


def test_names_that_mean_nothing_or_several() -> None:
    pairs = Pairs(["a/1.jpg", "./b/2.jpg"], ["b/2.jpg", "c.jpg"], np.array([True, False]), None)
    left, right = pairs.places(["/x/a/1.jpg", "/x/b/2.jpg"])
    assert left.tolist() == [0, 1] and right.tolist() == [1, -1]
    with pytest.raises(DataError, match=r"'a/1.jpg' of the pairs means several"):
        pairs.places(["/x/a/1.jpg", "/y/a/1.jpg"])
    assert pairs.folds(10).tolist() == [0, 0]


def test_what_is_refused(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("first,second,same,fold\na,b,1,1\na,c,0,1\n")
    with pytest.raises(DataError, match="one fold"):
        read_names(tmp_path / "one.csv")
    rows = ["Ada\t1\t2", "Ada\t1\tBob\t3", "Bob\t3\t4", "Ada\t1\tCy\t10"]
    for first in ("2\t1", "2"):
        (tmp_path / "whole.txt").write_bytes("\r\n".join([first, *rows, ""]).encode())
        assert len(read_names(tmp_path / "whole.txt").same) == 4
    for first, lines in (("2\t1", rows[:-1]), ("2\t1", [*rows, rows[0]]), ("2", rows[:-1]), ("3\t1", rows)):
        (tmp_path / "cut.txt").write_text("\n".join([first, *lines]))
        with pytest.raises(DataError, match=rf"announces .* pairs, but holds {len(lines)}"):
            read_names(tmp_path / "cut.txt")
    for options, words in (({"fars": (2.0,)}, "fars"), ({"fars": ()}, "fars is empty"), ({"drawn": 3}, "drawn")):
        with pytest.raises(ConfigError, match=words):
            measured(np.ones((2, 2), np.float32), np.zeros(2, np.int64), **options)


def test_the_curve_by_scikit_learn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measures = pytest.importorskip("sklearn.metrics", reason="the oracle is scikit-learn")
    x, y = exact_samples()
    np.savez(tmp_path / "e.npz", x=x, y=y)
    out = tmp_path / "deep" / "roc.csv"
    words = ["eval", str(tmp_path / "e.npz"), "--metrics", "verification", "--curves"]
    assert cli.main([*words, str(out)]) == 0
    assert f"points of curves: {out}" in capsys.readouterr().out
    rows = list(csv.DictReader(out.open()))
    assert {row["part"] for row in rows} == {"all"} and {row["curve"] for row in rows} == {"verification.roc"}
    i, j = np.triu_indices(len(x), 1)
    unit = x.astype(np.float64) / 2
    fars, tars, thresholds = measures.roc_curve(y[i] == y[j], (unit @ unit.T)[i, j], drop_intermediate=False)
    exact = {round(t, 9): (far, tar) for far, tar, t in zip(fars, tars, thresholds, strict=True)}
    for row in rows:
        assert (float(row["far"]), float(row["tar"])) == pytest.approx(exact[round(float(row["threshold"]), 9)], abs=1e-12)
    assert len(rows) == len({round(float(t), 9) for t in (unit @ unit.T)[i, j][y[i] == y[j]]})  # every corner: they are few
    pairs = tmp_path / "pairs.csv"
    same = [f"{a},{b},{int(y[a] == y[b])}" for a, b in zip(range(0, 60, 2), range(1, 61, 2), strict=True)]
    twins = [f"{a},{next(b for b in range(150) if b != a and y[b] == y[a])},1" for a in range(8)]
    pairs.write_text("\n".join(["first,second,same", *same, *twins]) + "\n")
    values = plugins.find("metric", "verification").component(pairs=str(pairs))
    names = list(map(str, range(150)))
    curve = values.curves(torch.from_numpy(x), torch.from_numpy(y), names=names)["roc"]
    read = [line.split(",") for line in [*same, *twins]]
    scores = [float(unit[int(a)] @ unit[int(b)]) for a, b, _ in read]
    fars, tars, thresholds = measures.roc_curve([s == "1" for _, _, s in read], scores, drop_intermediate=False)
    exact = {round(t, 9): (far, tar) for far, tar, t in zip(fars, tars, thresholds, strict=True)}
    for far, tar, threshold in zip(curve["far"], curve["tar"], curve["threshold"], strict=True):
        assert (far, tar) == pytest.approx(exact[round(threshold, 9)], abs=1e-12)


def test_curves_are_drawn_or_refused_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = exact_samples()
    np.savez(tmp_path / "e.npz", x=x, y=y)
    np.savez(tmp_path / "alone.npz", x=x, y=np.arange(len(y)))
    eval_of = lambda name, *words: cli.main(["eval", str(tmp_path / name), "--bootstrap", "0", *map(str, words)])  # noqa: E731
    verified = ("--metrics", "verification", "--curves")
    if pictures.can_draw():
        assert eval_of("e.npz", *verified, tmp_path / "roc.svg") == 0
        assert "mathdefault" not in (tmp_path / "roc.svg").read_text()
    capsys.readouterr()
    for words, message in [
        ((*verified, tmp_path / "roc.txt"), "must end in .csv or .svg"),
        (("--metrics", "uniformity", "--curves", tmp_path / "c.csv"), "none here has any (uniformity). Add --metrics verif"),
        (("--curves", tmp_path / "c.csv"), "none here has any (none)"),
        ((tmp_path / "e.npz", *verified, tmp_path / "c.csv"), "--curves is for one model, but 2 are given"),
    ]:
        assert eval_of("e.npz", *words) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
    assert eval_of("alone.npz", *verified, tmp_path / "c.csv") == 2
    assert "there is no curve" in capsys.readouterr().err.splitlines()[-1]
    monkeypatch.setattr(pictures, "can_draw", lambda: False)
    assert eval_of("e.npz", *verified, tmp_path / "other.svg") == 2
    assert "matplotlib is not installed" in capsys.readouterr().err.splitlines()[-1]
    assert not {"c.csv", "roc.txt", "other.svg"} & {file.name for file in tmp_path.iterdir()}


def test_in_train_and_eval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = image_folder(tmp_path / "photos", 12, 4, mode="RGB", size=(24, 24))
    lines = [f"class {n}/0.png,class {n}/1.png,1\nclass {n}/0.png,class {(n + 1) % 12}/2.png,0\n" for n in range(12)]
    (tmp_path / "pairs.csv").write_text("first,second,same\n" + "".join(lines))
    words = ["--plugins", "ms", "--steps", "2", "--classes-per-batch", "4", "--embedding-dim", "8", "--metrics", "verification"]
    assert cli.main(["train", "--data", str(photos), "--out", str(tmp_path / "run"), *words]) == 0
    test = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]["test"]
    assert 0 <= test["verification.eer"] <= 1 and test["verification.tar@1e-06"] is None
    assert "verification.eer" in capsys.readouterr().out
    pairs = ["--metrics", "verification", "--verification.pairs", str(tmp_path / "pairs.csv")]
    assert cli.main(["eval", str(tmp_path / "run"), "--data", str(photos), *pairs, "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)["metrics"]
    assert sum(part["verification.missing"] for part in whole.values()) < 12 * 2 * len(whole)
    assert cli.main(["train", "--data", str(photos), *words, "--verification.pairs", "nothing.csv"]) == 2
    assert "cannot read" in capsys.readouterr().err
    (tmp_path / "strange.csv").write_text("first,second,same\nAda/1.jpg,class 1/0.png,1\nAda/1.jpg,Bob/2.jpg,0\n")
    strange = ["--verification.pairs", str(tmp_path / "strange.csv")]
    assert cli.main(["train", "--data", str(photos), "--out", str(tmp_path / "none"), *words, *strange]) == 2
    assert "has both samples in the data (validation, test). It names 'Ada/1.jpg'" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    assert cli.main(["embed", str(tmp_path / "run"), "--data", str(photos), "--out", str(tmp_path / "e.npz")]) == 0
    for what in ([str(tmp_path / "run"), "--data", str(photos)], [str(tmp_path / "run")], [str(tmp_path / "e.npz")]):
        capsys.readouterr()
        assert cli.main(["eval", *what, "--metrics", "verification", *strange]) == 2
        assert "no pair of" in capsys.readouterr().err
