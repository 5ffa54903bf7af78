"""`python -m benchmarks field`: an equal search for each arm, repeats on folds, tests of the differences, and what survives a
kill."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from dmlcore.data import RecordedSplit

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # last: an installed package stays what is compared

from benchmarks.field import arms, command, comparing, estimate, page, stages  # noqa: E402
from tests import field_files  # noqa: E402

pytest.importorskip("optuna")
TINY = ["--recipe", "none", "--steps", "2", "--eval-every", "1", "--classes-per-batch", "4", "--device", "cpu"]
BUDGET = ["--trials", "1", "--folds", "2", "--seeds", "2"]


def features(path: Path, *, test_seed: int = 1, has_split: bool = True) -> Path:
    generator, labels = np.random.default_rng(0), np.repeat(np.arange(16), 5)
    x = generator.normal(size=(16, 8))[labels] + 1.5 * generator.normal(size=(80, 8))
    x[labels >= 8] += np.random.default_rng(test_seed).normal(size=(40, 8))
    arrays: dict[str, Any] = {"split": np.where(labels < 8, "train", "test")} if has_split else {}
    np.savez(path, x=x.astype(np.float32), y=labels, **arrays)
    return path


def flags(data: Path, work: Path, *more: str) -> list[str]:
    return ["--data", str(data), "--arms", "ms;ms,triplet", "--work", str(work), *BUDGET, *TINY, *more]


def comparison(data: Path) -> tuple[list[arms.Arm], stages.Budget]:
    words = ["--data", str(data), *TINY[2:]]
    return arms.resolve(["ms", "ms,triplet"], [arms.source_of(words)]), stages.Budget(1, 2, 2)


def results(**scores: list[float]) -> stages.Results:
    """Repeats with made-up scores by arm; MAP@R and R@1, apart and side by side, are the same number."""
    both = {"MAP@R": 0.0, "R@1": 0.0}
    repeats = {
        name: {
            seed: {form: dict.fromkeys(both, value) for form in comparing.FORMS}
            | {"length": 8, "seconds": 36.0, "baselines": {"raw features": {"MAP@R": 0.125}}}
            for seed, value in enumerate(values)
        }
        for name, values in scores.items()
    }
    return stages.Results({}, repeats)


def test_differences_are_paired_tested_and_corrected() -> None:
    there = results(ms=[0.30, 0.34, 0.32], triplet=[0.31, 0.36, 0.35], wedl=[0.20, 0.25, 0.24, 0.9])
    column = ("concatenated", "MAP@R")
    by_arm = comparing.differences(there, ["triplet", "wedl"], "ms", column)
    assert by_arm["triplet"].mean == pytest.approx(2.0) and by_arm["triplet"].seeds == 3
    assert by_arm["triplet"].half == pytest.approx(4.302652729696142 * 1 / math.sqrt(3))  # t(2, 97.5 %), deviation 1
    p = stats.ttest_rel([31, 36, 35], [30, 34, 32]).pvalue
    q = stats.ttest_rel([20, 25, 24], [30, 34, 32]).pvalue  # the fourth seed has no partner
    assert by_arm["triplet"].p == pytest.approx(p) and by_arm["wedl"].p == pytest.approx(q) and q < p
    assert comparing.corrected(by_arm) == {"wedl": pytest.approx(2 * q), "triplet": pytest.approx(max(p, 2 * q))}
    assert comparing.paired_p([1.0, 1.0]) == 0 and comparing.paired_p([0.0, 0.0]) == 1 and math.isnan(comparing.paired_p([1.0]))


def test_the_search_and_not_the_test_says_which_single_is_the_best(tmp_path: Path) -> None:
    members, budget = comparison(features(tmp_path / "x.npz"))
    members += arms.resolve(["triplet"], [arms.source_of(["--data", str(tmp_path / "x.npz"), *TINY[2:]])])
    there = results(**{"ms": [0.30, 0.34], "triplet": [0.6, 0.62], "ms,triplet": [0.4, 0.5]})
    row: dict[str, Any] = {"values": {"learning_rate": 0.25}, "before": None, "trials": 2, "seconds": 36.0}
    scores = {"ms": 0.8, "triplet": 0.7, "ms,triplet": 0.9}
    there.tuned.update({name: {**row, "validation": score} for name, score in scores.items()})
    assert comparing.best_single(there, members) == "ms"
    text = page.text(there, members, budget, "A note.", "")
    assert "| `ms,triplet` | 45.0 ± 63.5 |" in text  # t(1, 97.5 %) = 12.706, standard error 5
    assert "| raw features | 12.5 |" in text and "A note." in text and "Not complete" not in text
    # Differences 30 and 28: the error is 1, so p = 2 - 4 atan(29) / pi = 0.0219, twice for two arms.
    assert "| `triplet` | **+29.00 ± 12.71 (p = 0.044)** |" in text
    assert "`ms` had the best score" in text
    del there.repeats["triplet"][1]
    assert "**Not complete: 5 of 6 repeats are there.**" in page.text(there, members, budget, "", "")


def test_an_estimate_multiplies() -> None:
    timing = estimate.Timing(start=10.0, step=0.5, evaluation=2.0, end=5.0, joined=1.0)
    budget = stages.Budget(trials=3, folds=4, seeds=2)
    cost = estimate.cost(timing, budget, steps=100, evaluations=10)
    assert cost.search == 3 * 4 * (10 + 50 + 20) and cost.repeats == 2 * 4 * (10 + 50 + 20 + 5 + 1)
    assert cost.hours == pytest.approx((960 + 688) / 3600)


def test_arms_share_width_and_served_length(tmp_path: Path) -> None:
    path = tmp_path / "pictures.npz"
    labels = np.repeat(np.arange(12), 4)
    np.savez(path, x=np.zeros((48, 8, 8), np.uint8), y=labels, split=np.where(labels < 8, "train", "test"))
    words = ["--data", str(path), "--embedding-dim", "32", "--compress", "16", "--triplet.margin", "0.5", "--steps", "2"]
    members = arms.resolve(["ms", "triplet", "wel", "wedl", "wedl_c", "default"], [arms.source_of(words)])
    widths, served = {}, {}
    for arm in members:
        settings = arm.config.completed("images", 2, (1, 8, 8)).settings
        heads = len(settings.losses.names) if settings.ensemble.has_heads else 1
        assert settings.model.embedding_dim is not None
        widths[arm.name], served[arm.name] = heads * settings.model.embedding_dim, settings.model.compress
        assert settings.ensemble.kind == (arm.name.removesuffix("_c") if arm.name in ("wel", "wedl", "wedl_c") else "shared")
    assert widths == {"ms": 32, "triplet": 32, "wel": 32, "wedl": 32, "wedl_c": 32, "default": 32}
    assert set(served.values()) == {16} and [arm.is_single for arm in members] == [True, True, False, False, False, False]
    margins = {arm.name: arm.config.options.get("triplet", {}).get("margin") for arm in members}
    assert margins["triplet"] == 0.5 and margins["ms"] is None and margins["wedl"] is None  # is as published


def test_mistakes_are_refused_before_anything_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = features(tmp_path / "x.npz")
    other = tmp_path / "longer.toml"
    other.write_text('plugins = ["ms"]\nsteps = 9\n')
    cases = {
        ("--arms", f"ms;{other}"): "the arm 'longer' has steps = 9, 'ms' 2",
        ("--arms", "ms;ms"): "must be different names",
        ("--arms", "ms;nonsense"): "nonsense",
        ("--plugins", "ms"): "its arms name the losses",
        ("--stepps", "3"): "unknown key 'stepps'",
        ("--triplet.marjin", "3"): "no option 'marjin'",
        ("--circle.gamma", "3"): "circle",
        ("--folds", "1"): "folds is 1",
        ("--seeds", "0"): "seeds is 0",
        ("--folds", "5"): "folds is 5, but there are 8",
        ("--validation", "samples"): "Leave --validation out",
        ("--report-every",): "has no value",
        ("nonsense",): "'nonsense' is no flag",
    }
    for more, message in cases.items():
        assert command.main(flags(data, tmp_path / "work", *more)) == 2, more
        assert message in capsys.readouterr().err, more
    assert not (tmp_path / "work").exists()


def test_no_test_class_has_a_say_in_the_search(tmp_path: Path) -> None:
    """Other test samples: the same trials, scores and settings, bit for bit. All seeds are measured on the same classes."""
    rows = []
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        data = features(tmp_path / str(number) / "x.npz", test_seed=number)
        members, budget = comparison(data)
        work = tmp_path / str(number) / "work"
        (cell,) = stages._searches(members[:1], dataclasses.replace(budget, trials=2), work)
        row = stages.search(cell.settings, work / "work" / cell.key)
        rows.append({key: value for key, value in row.items() if key not in ("seconds", "config")})
    assert rows[0] == rows[1] and rows[0]["trials"] == 2


def test_it_goes_on_after_an_interruption_with_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = features(tmp_path / "x.npz", has_split=False)
    members, budget = comparison(data)
    whole = stages.run(members, budget, stages.Place(tmp_path / "whole"), lambda line: None)
    original, calls = stages.repeat, []

    def repeat(settings: dict[str, Any], work: Path) -> dict[str, Any]:
        calls.append((settings["arm"], settings["seed"]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(settings, work)

    monkeypatch.setattr(stages, "repeat", repeat)
    assert command.main(flags(data, tmp_path / "work")) == 130
    assert "Not complete: 2 of 4 repeats" in (tmp_path / "work" / "report.md").read_text()
    assert command.main(flags(data, tmp_path / "work", "--json", str(tmp_path / "all.json"))) == 0
    assert calls == [("ms", 0), ("ms,triplet", 0), ("ms", 1), ("ms", 1), ("ms,triplet", 1)]
    there = json.loads((tmp_path / "all.json").read_text())
    for arm in members:
        assert there["tuned"][arm.name]["validation"] == whole.tuned[arm.name]["validation"]
        for seed in (0, 1):
            for form in comparing.FORMS:
                assert there["repeats"][arm.name][str(seed)][form] == whole.repeats[arm.name][seed][form]
    text = (tmp_path / "work" / "report.md").read_text()
    assert "Not complete" not in text and (tmp_path / "work" / "report.svg").exists()
    assert not (tmp_path / "work" / "work").exists()  # no model is left behind
    split = RecordedSplit.read(tmp_path / "work" / stages.SPLIT)
    assert set(split.parts["test"].labels.tolist()).isdisjoint(split.parts["train"].labels.tolist())
    assert command.main(flags(data, tmp_path / "work", "--trials", "3")) == 2
    assert "trials = 1 instead of 3" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_comparison_of_pictures_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The layout of a published data set, the whole command, killed without a warning."""
    root = field_files.cub(tmp_path / "birds")
    pictures = ["--model", "conv", "--conv.channels", "4,4", "--image-size", "16", "--embedding-dim", "8"]
    pictures += ["--samples-per-class", "2", "--cub.path", str(root)]
    words = ["--data", "cub", "--arms", "ms;wedl", *BUDGET, *TINY, *pictures]
    killed, whole = ["--work", str(tmp_path / "killed")], ["--work", str(tmp_path / "whole")]
    place = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen([sys.executable, "-P", "-m", "benchmarks", "field", *words, *killed], env=place)
    try:
        until = time.monotonic() + 300
        while not (tmp_path / "killed" / "cells" / "search" / "ms.json").exists():
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert command.main([*words, *killed, "--json", str(tmp_path / "killed.json")]) == 0
    assert "1 of 2 cells are there already" in capsys.readouterr().out
    assert command.main([*words, *whole, "--json", str(tmp_path / "whole.json")]) == 0
    assert command.main([*words, *whole, "--estimate"]) == 0
    assert "hours of one process" in capsys.readouterr().out
    after, undisturbed = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("killed", "whole"))
    assert set(after["repeats"]) == {"ms", "wedl"}
    for name, repeats in after["repeats"].items():
        assert after["tuned"][name]["values"] == undisturbed["tuned"][name]["values"]
        for seed, repeat in repeats.items():
            for form in comparing.FORMS:
                assert repeat[form] == undisturbed["repeats"][name][seed][form]
