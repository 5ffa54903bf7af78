"""`dmlcore tune`: search spaces, folds, equal budgets, going on, and what the winners are measured on."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dmlcore.cli import main
from dmlcore.data import RecordedSplit
from dmlcore.errors import ConfigError
from dmlcore.protocols.tuning import folds as folding
from dmlcore.protocols.tuning import space
from dmlcore.protocols.tuning.plan import Plan
from dmlcore.training import RunConfig, train

pytest.importorskip("optuna", reason="tuning needs Optuna, the extra `tune`")

LOSS = '''
from dataclasses import dataclass
import torch
from dmlcore.losses import Loss

class Pull(Loss):
    """Mean distance to the class mean."""
    name = "pull"

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options of `pull`."""
        power: float = 1.0
        """Exponent, > 0."""

    def forward(self, embeddings, labels, **rest):
        same = labels[:, None] == labels[None]
        return (1 - embeddings @ embeddings.T)[same].clamp_min(1e-6).pow(self.options.power).mean()
'''


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "features.npz"
    generator, labels = np.random.default_rng(0), np.repeat(np.arange(24), 5)
    np.savez(path, x=(generator.normal(size=(24, 8))[labels] + generator.normal(size=(120, 8))).astype(np.float32), y=labels)
    return str(path)


def flags(data: str, out: Path, *more: str, steps: int = 4, eval_every: int = 2) -> list[str]:
    short = ["--steps", str(steps), "--eval-every", str(eval_every), "--folds", "2", "--classes-per-batch", "6"]
    return ["tune", "--data", data, "--out", str(out), *short, *more]


def arm(**values: object) -> tuple[RunConfig, RunConfig]:
    config = RunConfig.create(plugins="ms", **values)
    return config, config.completed("features", 10, (8,))


def searched(*words: str, **values: object) -> list[space.Dimension]:
    config, completed = arm(**values)
    specs = space.written(words, [])
    space.check_names(specs, config.components)
    return space.dimensions(specs, config, completed)


def test_ranges_are_read() -> None:
    rate, alpha, classes, samples = searched(
        "learning_rate=1e-5..1e-2 log", "ms.alpha = 0.5 .. 10 step 0.5", "classes-per-batch=4,8", "samples_per_class=2..6"
    )
    assert (rate.low, rate.high, rate.is_log, rate.is_whole) == (1e-5, 1e-2, True, False)
    assert (alpha.low, alpha.high, alpha.is_log, alpha.step) == (0.5, 10.0, False, 0.5)
    assert (classes.name, classes.choices) == ("classes_per_batch", (4, 8))
    assert (samples.low, samples.high, samples.is_whole) == (2, 6, True)


def test_ranges_follow_from_types_and_from_what_options_accept() -> None:
    clip, base, compiles, precision = searched("clip", "ms.base", "compile", "precision")
    assert (clip.low, clip.high, clip.is_log) == (1.0, 100.0, True)
    assert base.low == 0.05 and 0.9 < base.high <= 1  # ms refuses more
    assert compiles.choices == (False, True) and precision.choices == ("fp32", "bf16", "fp16")
    rate, beta = space.dimensions({}, *arm())  # what the loss itself declares
    assert rate.name == "learning_rate" and rate.high == pytest.approx(100 * rate.low)
    assert (beta.name, beta.low, beta.high, beta.is_log) == ("ms.beta", 10.0, 100.0, True)


def test_what_a_form_of_a_loss_leaves_no_choice_of_is_not_searched() -> None:
    def names(**options: object) -> list[str]:
        config = RunConfig.create(plugins="triplet", triplet=options)
        return [d.name for d in space.dimensions({}, config, config.completed("features", 10, (8,)))]

    assert names() == ["learning_rate", "triplet.margin"] and names(variant="wedl") == ["learning_rate"]


def test_tables_of_files_are_read(tmp_path: Path) -> None:
    tables = [{"learning_rate": "1e-4..1e-3 log", "ms": {"alpha": [1, 2]}, "ms.base": "0..1"}]
    specs = space.written(["ms.alpha=1..3"], tables)
    assert specs == {"learning_rate": "1e-4..1e-3 log", "ms.alpha": "1..3", "ms.base": "0..1"}
    config, completed = arm()
    assert space.dimensions({"ms.alpha": [1, 2]}, config, completed)[0].choices == (1.0, 2.0)


@pytest.mark.parametrize(
    "word, told",
    [
        ("nope=1..2", "no setting 'nope'"),
        ("steps=1..2", "equal length"),
        ("triplet.margin", "nothing that is chosen"),
        ("ms.alfa", "Did you mean 'alpha'"),
        ("ms.alpha=-1..2", "must be > 0"),
        ("ms.alpha=2", "two different"),
        ("ms.alpha=2..1", "goes up"),
        ("ms.alpha=0..1 log", "above 0"),
        ("ms.alpha=1..2 lag", "must be like"),
        ("ms.alpha=1..2 step 5", "within the range"),
        ("precision=1..2", "no number"),
        ("precision=fp32,fp8", "must be one of"),
        ("ms.alpha=", "must be like"),
        ("samples_per_class=1..4", "may not be 1"),
        ("patience", "equal length"),
        ("memory", "no range follows"),
    ],
)
def test_what_cannot_be_searched(word: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        searched(word)


def test_folds_divide_the_classes(data: str, tmp_path: Path) -> None:
    train(data=data, plugins="ms", steps=1, out=tmp_path / "run", report=False)
    split = RecordedSplit.read(tmp_path / "run" / "split.json")
    folds = folding.folds_of(split, 3, seed=0)
    own = set(split.parts["train"].labels) | set(split.parts["validation"].labels)
    held_out = [set(fold.parts["validation"].labels) for fold in folds]
    assert set().union(*held_out) == own and sum(map(len, held_out)) == len(own)
    for fold in folds:
        labels = {part: set(entries.labels) for part, entries in fold.parts.items()}
        assert not labels["train"] & labels["validation"] and labels["train"] | labels["validation"] == own
        assert labels["test"] == set(split.parts["test"].labels) and not labels["test"] & own
    with pytest.raises(ConfigError, match=r"folds is 9, .* Take at most \d folds$") as caught:
        folding.folds_of(split, 9, seed=0)
    most = int(re.findall(r"\d+", str(caught.value))[-1])
    assert len(folding.folds_of(split, most, seed=0)) == most
    with pytest.raises(ConfigError, match=f"folds is {most + 1}, "):
        folding.folds_of(split, most + 1, seed=0)


def test_a_study_from_its_trials_to_the_test_classes(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loss = tmp_path / "pull.py"
    loss.write_text(LOSS)
    out = tmp_path / "study"
    words = flags(
        data, out, "--arms", f"ms; ms,{loss}:Pull", "--search", "learning_rate=1e-4..1e-1 log", "--search", "pull.power"
    )
    assert main([*words, "--trials", "2", "--keep-open", "--json"]) == 0
    half = json.loads(capsys.readouterr().out)
    assert not half["is_tested"] and not (out / "winners").exists()
    assert not any({"metrics", "run"} & row.keys() for row in half["arms"])
    assert [row["arm"] for row in half["arms"]] == ["ms", "ms,pull"]
    for place in out.glob("work/**/result.json"):
        pytest.fail(f"{place}: a trial was evaluated on test classes")
    assert main([*words, "--trials", "3", "--json"]) == 0
    told = capsys.readouterr()
    result = json.loads(told.out)
    assert "4 of 6 trials are there already" in told.err
    first, second = result["arms"]
    assert [row["trials"] for row in result["arms"]] == [3, 3] and set(second["best"]["values"]) == {
        "learning_rate",
        "pull.power",
    }
    assert first["before"] is not None and first["validation"][0] >= first["before"]
    assert len(first["best"]["scores"]) == 2
    assert first["validation"][0] == pytest.approx(np.mean(first["best"]["scores"]))
    # The winner's command gives the same run again.
    assert main(["train", *first["command"].split()[2:], "--out", str(tmp_path / "again"), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["metrics"]["test"] == first["metrics"]["test"]
    assert RunConfig.read(out / "ms.toml").settings.optimiser.learning_rate == first["best"]["values"]["learning_rate"]
    page = (out / "report.html").read_text()
    assert "pull.power" in page and 'href="winners/ms/report.html"' in page and 'href="comparison.html"' in page
    assert (out / "winners" / "ms" / "report.html").exists() and (out / "comparison.html").exists()
    # No more is chosen once the test classes were looked at, and another study is another folder.
    assert main([*words, "--trials", "4"]) == 2 and "test classes" in capsys.readouterr().err
    assert main(["tune", "--resume", str(out)]) == 0
    shown = capsys.readouterr().out
    assert all(len(line) <= 160 for line in shown.splitlines()) and "Train the winner of ms by" in shown
    assert main([*words, "--pruner", "none"]) == 2 and "pruner = median instead of none" in capsys.readouterr().err
    assert main(["tune", "--resume", str(out), "--folds", "3"]) == 2 and "--folds" in capsys.readouterr().err


def _trials(out: Path) -> list[tuple[dict[str, float], list[float]]]:
    """Values and fold scores of what is finished, by Optuna's own file."""
    with sqlite3.connect(out / "study.sqlite") as database:
        ids = database.execute("select trial_id from trials where state in ('COMPLETE', 'PRUNED') order by number").fetchall()
        rows = []
        for (identity,) in ids:
            values = database.execute("select param_name, param_value from trial_params where trial_id = ?", (identity,))
            scores = database.execute(
                "select value_json from trial_user_attributes where trial_id = ? and key = 'scores'", (identity,)
            )
            rows.append((dict(values.fetchall()), json.loads(scores.fetchone()[0])))
    return rows


@pytest.mark.slow
def test_a_study_that_is_killed_goes_on_as_if_nothing_had_been(data: str, tmp_path: Path) -> None:
    words = flags(data, tmp_path / "whole", "--plugins", "ms", "--trials", "5", "--keep-open", steps=30)
    assert main(words) == 0
    cut = [word if word != str(tmp_path / "whole") else str(tmp_path / "cut") for word in words]
    process = subprocess.Popen([sys.executable, "-P", "-m", "dmlcore", *cut], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("trial 2"):
            break
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert 2 <= len(_trials(tmp_path / "cut")) < 5
    assert main(["tune", "--resume", str(tmp_path / "cut"), "--keep-open"]) == 0
    assert _trials(tmp_path / "cut") == _trials(tmp_path / "whole")


@pytest.mark.slow
def test_trials_in_processes_are_trained_alike(data: str, tmp_path: Path) -> None:
    out = tmp_path / "study"
    assert main(flags(data, out, "--arms", "ms;triplet", "--trials", "1", "--keep-open", "--processes", "2")) == 0
    assert main(flags(data, tmp_path / "one", "--arms", "ms;triplet", "--trials", "1", "--keep-open")) == 0
    assert sorted(map(str, _trials(out))) == sorted(map(str, _trials(tmp_path / "one")))


def test_trials_that_fall_behind_are_given_up(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = flags(data, tmp_path / "study", "--plugins", "ms", "--trials", "9", "--keep-open", "--json", eval_every=1)
    assert main([*words, "--pruner", "median", "--search", "learning_rate=1e-6..10 log", "--clip", "none"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["arms"]
    assert row["pruned"] > 0 and row["trials"] == 9 and row["steps"] < 9 * 8
    page = (tmp_path / "study" / "report.html").read_text()
    assert "given up" in page


def test_failed_trials_count_and_damage_is_told(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "study"
    words = flags(data, out, "--plugins", "ms", "--trials", "3", "--keep-open", "--search", "classes_per_batch=6,8")
    assert main([*words, "--accumulate", "13"]) == 1  # more parts than pairs of samples in a batch
    assert "first trial of 'ms' failed: accumulate is 13" in " ".join(capsys.readouterr().err.split())
    (out / "study.sqlite").write_bytes(b"SQLite format 3\0" + b"x" * 4096)
    assert main(["tune", "--resume", str(out)]) == 1
    assert "study.sqlite" in capsys.readouterr().err
    (out / "study.json").write_text("{}")
    assert main(["tune", "--resume", str(out)]) == 1 and "damaged" in capsys.readouterr().err
    assert main(["tune", "--resume", str(tmp_path)]) == 2 and "no study" in capsys.readouterr().err


def test_a_study_of_somebody_else_runs_no_code(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loss, out = tmp_path / "pull.py", tmp_path / "study"
    loss.write_text(LOSS)
    words = flags(data, out, "--plugins", f"{loss}:Pull", "--search", "learning_rate", "--trials", "1", "--keep-open")
    assert main(words) == 0
    loss.write_text("raise SystemExit(7)\n")
    assert main(["tune", "--resume", str(out)]) == 2
    assert "--trust-plugins" in capsys.readouterr().err
    assert Plan.read(out).trials == 1


def test_changed_data_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "features.npz", tmp_path / "study"
    x, y = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32), np.repeat(np.arange(12), 5)
    np.savez(path, x=x, y=y)
    words = flags(str(path), out, "--plugins", "ms", "--trials", "1", "--keep-open")
    assert main(words) == 0
    np.savez(path, x=x + 1, y=y)
    for again in (words, ["tune", "--resume", str(out)]):
        assert main(again) == 2 and "other data" in capsys.readouterr().err
