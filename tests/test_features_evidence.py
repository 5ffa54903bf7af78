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

from benchmarks import features  # noqa: E402


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
