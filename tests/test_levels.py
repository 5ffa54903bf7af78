"""Labels with coarser ones above them: every form of data, training on a level, measures at every level and graded ones."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_files import save_image

from dmlcore import cli, plugins
from dmlcore.data import LevelledOptions, array_table, open_data
from dmlcore.data.levels import levelled
from dmlcore.errors import ConfigError, DataError
from dmlcore.evaluation import retrieval_metrics
from dmlcore.training import train

OPTIONS = {"levels": ("genus", "family")}
SHORT: dict[str, Any] = {"plugins": "ms", "steps": 2, "embedding_dim": 4, "compress": 0}


def data(species: int = 24, samples: int = 6) -> dict[str, Any]:
    """Species of 8 genera of 4 families."""
    label = np.repeat(np.arange(species), samples)
    genus, family = label % 8, label % 4
    generator = np.random.default_rng(0)
    x = generator.normal(size=(len(label), 10))
    for ids in (label, genus, family):
        x += generator.normal(size=(30, 10))[ids]
    names = {"y": "s", "genus": "g", "family": "f"}
    columns = {"y": label, "genus": genus, "family": family}
    return {
        "x": x.astype(np.float32),
        **{name: np.array([f"{names[name]}{i:02}" for i in ids]) for name, ids in columns.items()},
    }


def test_every_form_has_the_same_levels(tmp_path: Path) -> None:
    arrays = data()
    np.savez(tmp_path / "d.npz", **arrays)
    features = [f"f{column}" for column in range(10)]
    lines = [",".join(["label", "family", "genus", *features])]
    for row in range(len(arrays["x"])):
        numbers = map(str, arrays["x"][row].tolist())
        lines.append(",".join([arrays["y"][row], arrays["family"][row], arrays["genus"][row], *numbers]))
    (tmp_path / "d.csv").write_text("\n".join(lines))
    expected = open_data(str(tmp_path / "d.npz"), options=OPTIONS)
    assert list(expected.test.levels) == ["genus", "family"]
    for form in (str(tmp_path / "d.csv"), arrays):
        splits = open_data(form, options=OPTIONS)
        for part in ("train", "validation", "test"):
            here, there = getattr(splits, part), getattr(expected, part)
            np.testing.assert_array_equal(here.rows, there.rows)
            for level in ("genus", "family"):
                at = here.at_level(level)
                assert [at.class_names[label] for label in at.dense_labels] == arrays[level][here.rows].tolist()
    assert not any("not used" in note for note in expected.notes)
    assert any("level 'family': 4 of 4 test groups are trained on" in note for note in expected.notes)


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="tables need pyarrow")
    pytest.importorskip("pyarrow.parquet", reason="tables need pyarrow")
    arrays = data()
    columns = {"x": list(arrays["x"]), "label": arrays["y"], "genus": arrays["genus"], "family": arrays["family"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "d.parquet")
    splits = open_data(str(tmp_path / "d.parquet"), options=OPTIONS)
    at = splits.test.at_level("genus")
    assert [at.class_names[label] for label in at.dense_labels] == arrays["genus"][splits.test.rows].tolist()
    with pytest.raises(DataError, match="no column 'genius'. Did you mean 'genus'"):
        open_data(str(tmp_path / "d.parquet"), options={"levels": ("genius",)})


def test_pictures_and_texts(tmp_path: Path) -> None:
    pictures, texts = ["path,label,family"], ["text,label,family"]
    for number in range(48):
        save_image(tmp_path / f"{number}.png", seed=number)
        pictures.append(f"{number}.png,s{number % 12},f{number % 3}")
        texts.append(f"text {number},s{number % 12},f{number % 3}")
    (tmp_path / "3.png").write_bytes(b"no picture")
    (tmp_path / "pictures.csv").write_text("\n".join(pictures))
    (tmp_path / "texts.csv").write_text("\n".join(texts))
    for name in ("pictures", "texts"):
        test = open_data(str(tmp_path / f"{name}.csv"), options={"levels": ("family",)}).test
        at = test.at_level("family")
        for fine, coarse in zip(test.dense_labels, at.dense_labels, strict=True):
            assert int(test.class_names[fine][1:]) % 3 == int(at.class_names[coarse][1:])


def test_names_that_stand_in_several_groups() -> None:
    result = levelled(np.array([0, 0, 1, 1]), ["other", "rose"], {"g": ["a", "b", "a", "a"], "f": ["x", "y", "x", "x"]}, "it")
    assert result.class_names == ["other (a)", "other (b)", "rose"]
    assert result.levels == {"g": ["a", "b", "a"], "f": ["x", "y", "x"]}
    assert "'other'" in result.notes[0]
    twice = levelled(np.array([0, 1, 2]), ["s", "t", "u"], {"g": ["a", "a", "b"], "f": ["x", "y", "x"]}, "it")
    assert twice.levels["g"] == ["a (x)", "a (y)", "b"]
    with pytest.raises(DataError, match="'g' of sample 1 in it is empty"):
        levelled(np.array([0, 1]), ["s", "t"], {"g": ["a", ""]}, "it")


def test_training_measures_every_level(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "d.npz", **data())
    line = ["train", "--data", str(tmp_path / "d.npz"), "--npz.levels", "genus,family", "--metrics", "hierarchical"]
    line += ["--plugins", "ms", "--steps", "2", "--compress", "0", "--out", str(tmp_path / "run")]
    assert cli.main(line) == 0
    assert "test (family)" in capsys.readouterr().out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    names = [f"{part}{level}" for part in ("validation", "test") for level in ("", " (genus)", " (family)")]
    assert list(result["metrics"]) == names and list(result["baselines"]["raw features"]) == names
    test = result["metrics"]["test"]
    assert 0 < test["hierarchical.h_ap"] <= 1 and "hierarchical.h_ap" not in result["metrics"]["test (genus)"]
    assert cli.main(["eval", str(tmp_path / "run"), "--json"]) == 0
    evaluated = json.loads(capsys.readouterr().out)["metrics"]
    assert list(evaluated) == names and evaluated["test (genus)"] == pytest.approx(result["metrics"]["test (genus)"])
    assert evaluated["test"]["hierarchical.h_ap"] == pytest.approx(test["hierarchical.h_ap"])
    other = ["eval", str(tmp_path / "run"), "--data", str(tmp_path / "d.npz"), "--npz.levels", "family"]
    assert cli.main(other) == 0
    out = tmp_path / "e.npz"
    assert cli.main(["embed", str(tmp_path / "run"), "--data", str(tmp_path / "d.npz"), "--out", str(out)]) == 0
    arrays = data()
    with np.load(out) as file:
        is_test = file["split"] == "test"
        expected = retrieval_metrics(
            file["x"][is_test], np.unique(arrays["genus"], return_inverse=True)[1][file["row"][is_test]]
        )
    assert result["metrics"]["test (genus)"]["map@r"] == pytest.approx(expected["map@r"], abs=1e-5)


def test_losses_train_on_a_level(tmp_path: Path) -> None:
    values: dict[str, Any] = {**SHORT, "plugins": "proxy_anchor"}
    result = train(out=tmp_path / "run", data=data(), level="family", python_data=OPTIONS, **values)
    assert result["data"]["parts"]["train"]["classes"] == 4 and result["data"]["parts"]["test"]["classes"] > 4
    assert result["data"]["test_classes_trained_on"] == 0  # species
    state = torch.load(tmp_path / "run" / "checkpoints" / "best.pt", weights_only=True)
    assert [len(value) for name, value in state["ensemble"].items() if "proxies" in name] == [4]
    with pytest.raises(ConfigError, match="there is no level 'famly' of the labels; they have genus, family"):
        train(out=tmp_path / "other", data=data(), level="famly", python_data=OPTIONS, **SHORT)
    with pytest.raises(ConfigError, match="they have none. The option `levels`"):
        train(out=tmp_path / "other", data=(data()["x"], data()["y"]), level="family", **SHORT)


def test_mistakes() -> None:
    arrays = data()
    with pytest.raises(DataError, match="no array 'genius' of coarser labels. Did you mean 'genus'"):
        array_table(arrays, "it", LevelledOptions(levels=("genius",)))
    with pytest.raises(DataError, match="must be a label for each of 144"):
        open_data({**arrays, "genus": arrays["genus"][:5]}, options=OPTIONS)
    with pytest.raises(ConfigError, match="must name different columns"):
        open_data(arrays, options={"levels": ("genus", "genus")})
    several = np.ones((144, 2), dtype=bool)
    with pytest.raises(DataError, match="levels are for one label per sample"):
        open_data({**arrays, "y": several}, options=OPTIONS)


def slow(x: np.ndarray, levels: np.ndarray) -> tuple[float, float]:
    """H-AP and NDCG by loops over the definition, in float64."""
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    number, depth = levels.shape
    haps, ndcgs = [], []
    for query in range(number):
        others = [row for row in range(number) if row != query]
        agreed = {row: int((levels[row] == levels[query]).sum()) for row in others}
        if not any(agreed.values()):
            continue
        sizes = {level: sum(value == level for value in agreed.values()) for level in range(depth + 1)}
        rel = {row: agreed[row] / depth / sizes[agreed[row]] for row in others}
        s = {row: float(x[query] @ x[row]) for row in others}
        total = 0.0
        for k in others:
            if agreed[k]:
                before = [j for j in others if s[j] > s[k]]
                rank = 1 + len(before)
                total += (rel[k] + sum(min(rel[k], rel[j]) for j in before if agreed[j])) / rank
        haps.append(total / sum(rel.values()))
        ranked = sorted(others, key=lambda row: -s[row])
        gains = [2 ** agreed[row] - 1 for row in ranked]
        dcg, ideal = (
            sum(gain / math.log2(place + 2) for place, gain in enumerate(order)) for order in (gains, sorted(gains)[::-1])
        )
        ndcgs.append(dcg / ideal)
    return float(np.mean(haps)), float(np.mean(ndcgs))


@pytest.mark.parametrize("cells", [1 << 22, 100])
def test_hierarchical_measures_agree_with_loops(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import dmlcore_plugins.metrics.hierarchical

    monkeypatch.setattr(dmlcore_plugins.metrics.hierarchical, "SIMILARITIES", cells)
    label = np.arange(30) % 12
    label[0] = 99  # alone in its species and genus, but not in its family
    levels = np.stack([label, label % 6, label % 3], 1)
    levels[1] = 1000  # agrees with nobody
    x = np.random.default_rng(0).normal(size=(30, 7))
    metric = plugins.find("metric", "hierarchical").component()
    measured = metric(torch.from_numpy(x), torch.from_numpy(levels))
    assert (measured["h_ap"], measured["ndcg"]) == pytest.approx(slow(x, levels), abs=1e-12)
    single = metric(torch.from_numpy(x), torch.from_numpy(levels[:, 0]))
    assert single["h_ap"] == pytest.approx(retrieval_metrics(x, levels[:, 0])["map"], abs=1e-12)


def test_equal_similarities_count_against_a_ranking() -> None:
    metric = plugins.find("metric", "hierarchical").component()
    levels = torch.tensor([[0, 0], [0, 0], [1, 0], [2, 1], [3, 1]])
    collapsed, worst = metric(torch.ones(5, 3), levels), []
    for query in range(5):
        order = sorted((row for row in range(5) if row != query), key=lambda row: int((levels[row] == levels[query]).sum()))
        worst.append([int((levels[row] == levels[query]).sum()) for row in order])
    expected = []
    for agreed in worst:
        gains = [2**level - 1 for level in agreed]
        dcg = sum(gain / math.log2(place + 2) for place, gain in enumerate(gains))
        expected.append(dcg / sum(gain / math.log2(place + 2) for place, gain in enumerate(sorted(gains)[::-1])))
    assert collapsed["ndcg"] == pytest.approx(np.mean(expected))
