"""The report of shift: areas under curves, and the summary by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmlcore.cli import main
from dmlcore.errors import ConfigError
from dmlcore.protocols.cells import path_of
from dmlcore.protocols.shift import report, running
from dmlcore.protocols.shift.area import area_under_shift
from dmlcore.training.settings import PLACES


def test_the_area_by_hand() -> None:
    assert area_under_shift([0, 1, 4], [1.0, 0.8, 0.2]) == pytest.approx(0.25 * 0.9 + 0.75 * 0.5)
    assert area_under_shift([4, 0, 1], [0.2, 1.0, 0.8]) == pytest.approx(0.6)
    assert area_under_shift([7, 7, 9], [0.4, 0.6, 0.1]) == pytest.approx(0.3)
    assert area_under_shift([100, 101, 104], [1.0, 0.8, 0.2]) == pytest.approx(0.6)  # distances are scaled to [0, 1]
    for fids, values in (([1.0], [0.5]), ([2.0, 2.0], [0.5, 0.4]), ([1.0, 2.0], [0.5]), ([1.0, np.nan], [0.5, 0.5])):
        with pytest.raises(ConfigError, match="an area needs"):
            area_under_shift(fids, values)


# Online Products: FIDs of the eight published splits; Recall@1 on the first and the last of them and the published bar, read
# off figures to about .003 and .001. The curves are nearly straight there, so their ends give the bar.
ONLINE_PRODUCTS = [3.43, 24.59, 53.47, 99.38, 135.53, 155.25, 189.81, 235.10]


@pytest.mark.parametrize(
    "first, last, bar", [(0.792, 0.699, 0.746), (0.794, 0.697, 0.746), (0.798, 0.703, 0.750), (0.800, 0.701, 0.751)]
)
def test_the_area_is_that_of_the_published_bars(first: float, last: float, bar: float) -> None:
    share = (np.array(ONLINE_PRODUCTS) - ONLINE_PRODUCTS[0]) / (ONLINE_PRODUCTS[-1] - ONLINE_PRODUCTS[0])
    assert area_under_shift(ONLINE_PRODUCTS, first + share * (last - first)) == pytest.approx(bar, abs=0.004)


def _result(recall: float, gain: float) -> dict[str, Any]:
    episodes = [{"before": {"recall@1": 0.5}, "after": {"recall@1": 0.5 + gain + e / 100}} for e in (0, 1)]
    return {"zero_shot": {"recall@1": recall, "map@r": recall / 2}, "few_shot": {"2": episodes}}


def test_the_report_by_hand(tmp_path: Path) -> None:
    splits = [{"id": i, "fid": f, "swapped": 0, "removed": 0, "digest": "x"} for i, f in (("a", 1.0), ("b", 2.0), ("c", 5.0))]
    for name, shift in (("one", 0.0), ("two", 0.1)):
        for seed in (0, 1):
            for split, recall in zip(splits, (0.8, 0.7, 0.3), strict=True):
                path = path_of(tmp_path, f"{name}/{split['id']}/seed{seed}")
                path.parent.mkdir(parents=True, exist_ok=True)
                settings = {"name": name, "split": split, "seed": seed, "adaptation": {"shots": [2]}}
                result = _result(recall + shift * (1 + seed), 0.02 * (1 + seed))
                path.write_text(json.dumps({"settings": settings, "result": result}))
    numbers = report.summary(report.Results.read(tmp_path))
    area = 0.25 * 0.75 + 0.75 * 0.5
    assert numbers["configurations"]["one"]["area"]["recall@1"] == {"mean": pytest.approx(area), "half": 0, "count": 2}
    assert numbers["configurations"]["two"]["area"]["recall@1"]["mean"] == pytest.approx(area + 0.15)
    difference = numbers["area_differences"]["one - two"]
    assert difference["mean"] == pytest.approx(-0.15) and difference["half"] == pytest.approx(12.706205 * 0.05, rel=1e-6)
    gain = numbers["configurations"]["one"]["splits"]["b"]["few_shot"]["2"]["gain"]
    assert gain["mean"] == pytest.approx(0.035) and gain["half"] == pytest.approx(12.706205 * 0.005, rel=1e-6)
    text = report.markdown(numbers)
    assert "| two | 71.2 ± 63.5 |" in text and "| c | 5 | 30.0 ± 0.0 | 45.0 ± 63.5 |" in text
    assert "| b | 2 | 50.0 +3.5 ± 6.4 | 50.0 +3.5 ± 6.4 |" in text
    path_of(tmp_path, "two/c/seed1").unlink()  # a seed without all splits has no area
    numbers = report.summary(report.Results.read(tmp_path))
    assert numbers["configurations"]["two"]["area"]["recall@1"] == {"mean": pytest.approx(area + 0.1), "half": None, "count": 1}
    path_of(tmp_path, "two/b/seed1").write_text("{")
    assert main(["ood", "report", str(tmp_path)]) == 1


def test_folds_side_by_side_have_a_table_of_their_own(tmp_path: Path) -> None:
    for seed, joined in ((0, 0.6), (1, 0.8)):
        path = path_of(tmp_path, f"one/a/seed{seed}")
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {"id": "a", "fid": 1.0, "swapped": 0, "removed": 0, "digest": "x"}
        settings = {"name": "one", "split": about, "seed": seed, "adaptation": None, "folds": 3}
        result = {**_result(0.5, 0.0), "concatenated": {"recall@1": joined, "map@r": joined / 2}, "folds": [{}] * 3}
        path.write_text(json.dumps({"settings": settings, "result": {**result, "few_shot": {}}}))
    numbers = report.summary(report.Results.read(tmp_path))
    assert numbers["folds"] == 3 and numbers["configurations"]["one"]["splits"]["a"]["recall@1"]["mean"] == 0.5
    joined = numbers["configurations"]["one"]["splits"]["a"]["concatenated"]["map@r"]
    assert joined == {"mean": pytest.approx(0.35), "half": pytest.approx(12.706205 * 0.05, rel=1e-6), "count": 2}
    assert "| a | 1 | 70.0 ± 127.1 |" in report.markdown(numbers)


def test_settings_of_the_protocol_are_settings_of_training() -> None:
    assert set(running.OWN) <= set(PLACES)
