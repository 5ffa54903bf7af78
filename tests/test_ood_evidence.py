"""The comparison on splits of growing shift: it runs on any data, goes on, and fills its page with what it found."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # last: an installed package stays what is measured

from benchmarks import ood  # noqa: E402

PAGE = ROOT / "docs" / "reports" / "ood.md"


def must_not_run(*arguments: Any, **named: Any) -> dict[str, Any]:
    raise AssertionError("a finished cell is run again")


def test_it_runs_goes_on_and_fills_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    y = np.repeat(np.arange(24), 7)
    x = np.random.default_rng(0).normal(size=(24, 10))[y] + np.random.default_rng(1).normal(size=(168, 10))
    np.savez(tmp_path / "small.npz", x=x.astype(np.float32), y=y)
    settings = {"steps": 9, "model": "mlp", "head_start": "random"}
    family = ood.Family("small, class means", "small.npz", {"number": 3}, settings, 2, "raw features")
    monkeypatch.setattr(ood, "FAMILIES", (family,))
    wide = {"embedding_dim": 16, "compress": 4}
    methods = {"ms": {"plugins": ["ms"], **wide}, "ms + sec": {"plugins": ["ms", "sec"], **wide}}
    monkeypatch.setattr(ood, "METHODS", methods)
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- results: small, class means -->\nold\n<!-- end -->\nafter\n")
    lines: list[str] = []
    settings: dict[str, Any] = {"processes": 1, "only": None, "page": page, "tell": lines.append}
    results = ood.run(tmp_path, tmp_path / "work", quick=True, file=tmp_path / "ood.json", **settings)["small, class means"]
    assert results["splits"][0]["id"] == "default" and len(results["splits"]) == 2
    assert list(results["configurations"]) == ["ms", "ms + sec"] and set(results["constraint"]) == {"0.001", "0.01"}
    strength = max(results["constraint"], key=results["constraint"].get)
    written = (tmp_path / "work" / "small-class-means" / "ms + sec.toml").read_text()
    assert f"weights = [\n    1.0,\n    {strength},\n]" in written
    assert set(results["baselines"]) == {"raw features", "untrained network"} and len(results["cells"]) == 4
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("<!-- end -->\nafter\n") and "old" not in text
    assert "| ms - ms + sec |" in text and "| raw features |" in text and "gains" not in text
    stored = (tmp_path / "ood.json").read_text()
    assert json.loads(stored)["small, class means"]["seeds"] == [0]
    assert (tmp_path / "ood-small-class-means.svg").exists()
    monkeypatch.setattr("dmlcore.protocols.shift.running.train_and_measure", must_not_run)
    ood.run(tmp_path, tmp_path / "work", quick=True, file=tmp_path / "ood.json", **settings)
    assert (tmp_path / "ood.json").read_text() == stored


def test_the_page_has_a_place_for_every_family_and_says_what_is_stored() -> None:
    text, stored = PAGE.read_text(), json.loads((ROOT / "benchmarks" / "results" / "ood.json").read_text())
    assert set(stored) == {family.name for family in ood.FAMILIES}
    for name, results in stored.items():
        block = text.partition(f"<!-- results: {name} -->\n")[2].partition("<!-- end -->")[0]
        expected = "\n".join(ood.tables(results)).strip()
        assert block.strip() == expected, f"docs/reports/ood.md lacks the stored results of {name}"
        assert len(results["splits"]) >= 6 and len(results["seeds"]) >= 3 and len(results["configurations"]) == 6
