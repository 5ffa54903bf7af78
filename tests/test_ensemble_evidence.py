"""The comparison of ensembles with single losses: its splits, its choices on validation classes, its resuming, its tables."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmlcore.data import open_data

sys.path.append(str(Path(__file__).parents[1]))  # last: an installed package stays what is compared

from benchmarks.ensembles import arms, drawing, report, runs
from benchmarks.ensembles.data import DATA, WIDTH, available, prepare

SMALL = replace(DATA["banking"], most=8, steps=4, seeds=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tables")
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(30), 10)
    x = (rng.normal(size=(30, 280))[y] + rng.normal(size=(300, 280))).astype(np.float16)
    np.savez(path / "banking77_minilm.npz", x=x, y=y)
    return path


def test_splits_are_disjoint_in_classes_and_reduced_by_the_training_classes_alone(folder: Path, tmp_path: Path) -> None:
    assert {"banking", "glyphs"} <= set(available(folder)) and "emoji" not in available(folder)
    path = prepare(SMALL, 0, folder, tmp_path)
    splits = open_data(str(path))
    parts = [set(part.labels.tolist()) for part in (splits.train, splits.validation, splits.test)]
    assert [len(part) for part in parts] == [15, 5, 10] and len(set.union(*parts)) == 30
    with np.load(path) as arrays:
        x, split = arrays["x"], arrays["split"]
        assert x.shape == (240, WIDTH) and len(arrays["y"]) == 240
    train = x[split == "train"].astype(float)
    covariance = np.cov(train, rowvar=False)
    assert np.abs(train.mean(0)).max() < 1e-5
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 1e-3 * covariance.max()
    before = path.stat().st_mtime_ns
    assert prepare(SMALL, 0, folder, tmp_path) == path and path.stat().st_mtime_ns == before
    assert not np.array_equal(np.load(prepare(SMALL, 1, folder, tmp_path))["split"], split)


def test_runs_are_kept_and_not_repeated(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runs, "RATES", (1e-3, 2e-3))
    monkeypatch.setattr(runs, "RATED", ("ms",))
    datas = {"banking": SMALL}
    state = runs.Runs(tmp_path / "rows.jsonl", folder, tmp_path, 1, None, 3)
    assert state.run(runs.jobs_of(SMALL, "rates", state, [0]), datas)
    assert state.rate("banking") in (1e-3, 2e-3)
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 2
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"cut')  # as a crash leaves it
    capsys.readouterr()
    again = runs.Runs(tmp_path / "rows.jsonl", folder, tmp_path, 1, None, 3)
    assert again.run(runs.jobs_of(SMALL, "rates", again, [0]), datas)
    assert capsys.readouterr().out == "" and set(again.rows) == set(state.rows)


def test_every_arm_is_a_configuration_that_can_be_run(folder: Path, tmp_path: Path) -> None:
    from dmlcore.training import RunConfig

    path = prepare(SMALL, 0, folder, tmp_path)
    state = runs.Runs(tmp_path / "none.jsonl", folder, tmp_path, 1, None, None)
    names = [arm.name for arm in arms.arms()]
    assert len(set(names)) == len(names)
    for arm in (arm for arm in arms.arms() if not arm.commit):
        losses = arms.members(arm, list(arms.LOSSES))
        few = replace(SMALL, pictures=True)
        job = runs._job(few, "arms", arm, losses, 0, {"steps": 4, "embedding_dim": 64}, state)
        config = RunConfig.create(data=str(path), plugins=",".join(losses), **job.settings)
        assert len(config.settings.losses.names) == len(losses)
    for first, second, _ in report.PAIRS:
        assert {first, second} <= set(names)


def _row(arm: str, stage: str, seed: int, test: float, validation: float, **embeddings: float) -> dict[str, Any]:
    def figures(value: float) -> dict[str, Any]:
        part = {"recall@1": value, "map@r": value}
        return {"test": part, "validation": {"recall@1": validation, "map@r": validation}}

    return {
        "data": "banking", "stage": stage, "arm": arm, "seed": seed, "losses": [arm], "served": figures(test),
        "settings": {"embedding_dim": 256, "compress": 64}, "cpu_seconds": 2.0 if stage == "singles" else 3.0,
        "raw": figures(0.1), "embeddings": {name: figures(v) for name, v in (embeddings or {"whole": test}).items()},
        "weights": {"1": [1.0], "9": [2.0]}, "step_ms": 2.0, "cosines": {},
    }  # fmt: skip


def test_differences_are_paired_and_chosen_on_validation(tmp_path: Path) -> None:
    rows = [_row(loss, "singles", s, 0.5 + s / 100, 0.4) for loss in arms.LOSSES for s in range(3)]
    for row in rows:
        if row["arm"] == "circle":  # the best of validation, not of test
            row.update(_row("circle", "singles", row["seed"], 0.3 + row["seed"] / 10, 0.6))
    gains = [0.01, 0.03, 0.02]
    rows += [
        _row("wide: b, 256", "arms", s, 0, 0.5, whole=0.3 + s / 10 + g, compressed=0.3 + s / 10) for s, g in enumerate(gains)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    state = runs.Runs(file, None, tmp_path, 1, None, None)
    results = report.DataResults(state, "banking")
    assert results.ranking[0] == "circle" and results.seeds == [0, 1, 2]
    mean, half = report.interval(results.differences(("arms", "wide: b, 256", "whole"), ("singles", "circle", None)))
    assert mean == pytest.approx(2) and half == pytest.approx(4.302653 * 1 / 3**0.5, rel=1e-5)
    page = tmp_path / "page.md"
    page.write_text("".join(f"<!-- table: {name} -->\nold\n<!-- end -->\n" for name in report.BLOCKS) + "kept\n")
    text = report.write(state, page)
    assert "| circle | **40.0** |" in text and "| frozen features | 10.0 |" in text and text.endswith("kept\n")
    assert "| wide: b, 256 (whole) | 256 | 1.5 | +2.00 ± 2.48 |" in text
    assert "| wide: b, 256 (compressed) | 64 | 1.5 | +0.00 ± 0.00 |" in text
    assert "old" not in text
    report.as_json(state, tmp_path / "summary.json")
    summary = json.loads((tmp_path / "summary.json").read_text())["banking"]
    assert summary["best_single"] == "circle" and summary["arms"]["wide: b, 256"]["whole"]["map@r"]["difference"] == 2.0
    pytest.importorskip("matplotlib")
    assert drawing.draw(state, tmp_path / "bars.svg").stat().st_size > 1000


def test_holm_rejects_from_the_smallest_p_value_until_one_is_too_large() -> None:
    clear, middling, nothing = [1.0, 1.1, 0.9, 1.05], [1.0, 1.6, 0.3, 1.2], [1.0, -1.1, 0.2, 0.1]  # p = .0002, .031, .93
    assert report.survivors([clear, middling, nothing]) == [True, False, False]  # .031 > .05 / 2
    assert report.survivors([clear, middling]) == [True, True]  # .031 < .05 / 1
    assert report.survivors([nothing, [], [1.0], [2.0, 2.0, 2.0]]) == [False] * 4


def test_networks_of_their_own_are_concatenated(folder: Path, tmp_path: Path) -> None:
    common = {"steps": 3, "eval_every": 3, "embedding_dim": 64, "device": "cpu", "log_every": 3, "seed": 0, "model": "mlp"}
    job = runs.Job("banking", "arms", "nets: b x 3", 0, ("ms", "sup_con"), {**common, "ms": {"beta": 40.0}}, nets=True)
    row = runs._train(job, str(prepare(SMALL, 0, folder, tmp_path)))
    assert set(row["embeddings"]) == {"whole", "compressed"} and row["served"] == row["embeddings"]["compressed"]
    alone = runs._train(replace(job, losses=("ms",), nets=False), str(prepare(SMALL, 0, folder, tmp_path)))
    assert row["raw"] == alone["raw"] and row["embeddings"]["whole"] != alone["embeddings"]["whole"]
    assert report._size(row["settings"], 2, True, "whole") == 128 and report._size(row["settings"], 2, True, "compressed") == 64


def test_pictures_are_halved_and_split_by_class(tmp_path: Path) -> None:
    x = np.arange(20 * 4 * 4 * 3, dtype=np.uint8).reshape(20, 4, 4, 3)
    np.savez(tmp_path / "emoji_64.npz", x=x, y=np.repeat(np.arange(10), 2))
    with np.load(prepare(DATA["emoji pictures"], 0, tmp_path, tmp_path)) as arrays:
        assert arrays["x"].shape == (20, 2, 2, 3)
        assert arrays["x"][3, 1, 0, 2] == round(float(x[3, 2:4, 0:2, 2].mean()))
        parts = [set(arrays["y"][arrays["split"] == part]) for part in ("train", "validation", "test")]
    assert sum(map(len, parts)) == 10 and not set.intersection(*parts)
