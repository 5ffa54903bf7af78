"""The report on features of good networks says what its stored results say."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # last: an installed package stays what is measured

from benchmarks import feature_starts, features  # noqa: E402


def test_the_page_says_what_is_stored() -> None:
    results = json.loads(features.RESULTS.read_text())
    assert features.page(results) in features.PAGE.read_text()
    assert set(results) == set(features.TABLES)


def test_differences_are_paired() -> None:
    def cell(own: float, raw: float) -> dict[str, Any]:
        return {"test": {"MAP@R": own}, "raw": {"MAP@R": raw}}

    results = {
        "t": {"default": {"0": cell(0.5, 0.4), "1": cell(0.7, 0.5)}, "before": {"1": cell(0.6, 0.5), "0": cell(0.3, 0.4)}}
    }
    mean, half, count = features.differences(results, "t", "default", "raw", "MAP@R")
    assert (mean, count) == (pytest.approx(15), 2) and half == pytest.approx(12.706204736 * 5, rel=1e-6)
    assert features.differences(results, "t", "default", "before", "MAP@R")[0] == pytest.approx(15)


def test_it_runs_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.repeat(np.arange(16), 5)
    generator = np.random.default_rng(0)
    np.savez(
        tmp_path / "t.npz", x=(generator.normal(size=(16, 6))[labels] + generator.normal(size=(80, 6))).astype("f"), y=labels
    )
    monkeypatch.setattr(features, "TABLES", {"t": "a table", "missing": "not there"})
    monkeypatch.setattr(features, "ARMS", {"default": {"steps": 2}, "before": {"steps": 2, "model": "mlp"}})
    monkeypatch.setattr(features, "SEEDS", {"default": 2, "before": 2})
    lines: list[str] = []
    results = features.run(tmp_path, 1, lines.append, tmp_path / "r.json")
    assert len(lines) == 4 and set(results) == {"t"} and set(results["t"]["default"]) == {"0", "1"}
    assert features.run(tmp_path, 1, lines.append, tmp_path / "r.json") == results and len(lines) == 4
    assert "a table" in features.page(results)


def _starts(validation: dict[str, float], test: dict[str, dict[str, float]]) -> feature_starts.Rows:
    """Rows of all tables and seeds; `test` by table and arm, 50 where nothing is said, and raw features have 49."""

    def row(data: str, arm: str) -> dict[str, Any]:
        points = {"validation": validation.get(arm, 40.0), "test": test.get(data, {}).get(arm, 50.0), "raw": 49.0}
        return {"cpu_seconds": 1.0, **{part: {"MAP@R": value} for part, value in points.items()}}

    arms = [*feature_starts.ARMS, *(f"{arm}, blend" for arm in feature_starts.BLENDED)]
    seeds = range(feature_starts.SEEDS)
    rows = {(data, arm, seed): row(data, arm) for data in feature_starts.TABLES for arm in arms for seed in seeds}
    return feature_starts.with_races(rows)


def test_a_race_is_taken_only_where_it_is_clearly_better() -> None:
    best = "hidden, 1e-3, 350 steps"
    rows = _starts({best: 45.0, "features, 2e-3, 350 steps": 45.2}, {})
    assert feature_starts.taken(rows) == "features, 2e-3, 350 steps"
    rows = _starts({best: 45.0, "features, 2e-3, 350 steps": 44.0, "hidden, 2e-3, 350 steps": 44.9}, {})
    assert feature_starts.taken(rows) == best  # the race has 44.9
    for data in ("letters", "emoji", "icons", "packages", "intents"):  # each trial is best on some tables
        for seed in range(feature_starts.SEEDS):
            if (data, best, seed) in rows:
                rows[data, "features, 2e-3, 350 steps", seed]["validation"]["MAP@R"] = 48.0
    rows = feature_starts.with_races({key: row for key, row in rows.items() if key[1] not in feature_starts.RACES})
    assert feature_starts.taken(rows) == "race, whole runs"
    assert rows["letters", "race, whole runs", 0]["winner"] == "features, 2e-3, 350 steps"


def test_a_short_race_takes_the_long_run_of_the_better_trial() -> None:
    rows = _starts({"hidden, 2e-3, 175 steps": 41.0}, {"emoji": {"hidden, 2e-3, 350 steps": 53.0}})
    row = rows["emoji", "race, short runs", 0]
    assert row["winner"] == "hidden, 2e-3, 350 steps" and row["test"]["MAP@R"] == 53.0


def test_a_start_becomes_the_default_only_where_it_harms_nowhere() -> None:
    arm = "hidden, 1e-3, 350 steps"
    better = {data: {arm: 51.0 + number / 10} for number, data in enumerate(feature_starts.TABLES)}
    assert feature_starts.changes(_starts({}, better), arm)
    assert not feature_starts.changes(_starts({}, {**better, "letters": {arm: 49.4}}), arm)  # behind the default
    behind_raw = {**better, "letters": {arm: 48.6, "today": 48.0}}
    assert not feature_starts.changes(_starts({}, behind_raw), arm)
    assert not feature_starts.changes(_starts({}, {}), arm)  # level


def test_starts_run_and_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.repeat(np.arange(16), 5)
    generator = np.random.default_rng(0)
    x = (generator.normal(size=(16, 6))[labels] + generator.normal(size=(80, 6))).astype("f")
    np.savez(
        tmp_path / "t.npz", x=x, y=labels, split=np.where(labels < 8, "train", np.where(labels < 12, "validation", "test"))
    )
    arm = "hidden, 1e-3, 350 steps"
    monkeypatch.setattr(feature_starts, "ARMS", {arm: {**feature_starts.ARMS[arm], "steps": 2, "eval_every": 1}})
    row, blend = feature_starts._cell("t", str(tmp_path / "t.npz"), arm, 0)
    assert row["arm"] == arm and blend["arm"] == f"{arm}, blend" and blend["share"] in feature_starts.SHARES
    assert blend["validation"]["MAP@R"] >= row["validation"]["MAP@R"] - 1e-6  # all of the change is a share
