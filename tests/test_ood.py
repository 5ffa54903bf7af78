"""`dmlcore ood`: cells that train and resume, and its command."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ood_files import CLASSES, PER_CLASS, make_features, make_splits, only

from dmlcore.cli import main
from dmlcore.data import SplitFile
from dmlcore.errors import ConfigError, Interrupted
from dmlcore.evaluation import evaluating
from dmlcore.protocols.cells import Cell, path_of
from dmlcore.protocols.shift import cell, running
from dmlcore.protocols.shift.adapting import Adaptation
from dmlcore.protocols.shift.episodes import support_rows
from dmlcore.serving import TrainedRun
from dmlcore.training.loop import Training


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with data, splits and two configurations."""
    data = make_features(tmp_path / "features.npz")
    make_splits(tmp_path / "splits.json", str(data))
    for name in ("ms", "triplet"):
        text = f'plugins = ["{name}"]\nsteps = 12\neval_every = 4\nembedding_dim = 8\ncompress = 0\nclasses_per_batch = 6\n'
        (tmp_path / f"{name}.toml").write_text(text)
    return tmp_path


def cells_of(place: Path, configs: tuple[str, ...] = ("ms",), **settings: Any) -> tuple[list[Cell], running.Places]:
    adaptation = Adaptation(shots=(2,), steps=(4,), rate=1e-3)
    return running.plan(
        place / "splits.json", [place / f"{name}.toml" for name in configs], adaptation=adaptation, **{"seeds": 1, **settings}
    )


def without_times(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key not in ("seconds", "cpu_seconds")}


def test_a_cell_measures_the_weights_that_validation_chose(place: Path) -> None:
    cells, places = cells_of(place, only=["swap1"])
    config = cells[0].settings["config"]
    config["learning_rate"] = 0.3  # so high that the last weights are worse than earlier ones
    cells = [dataclasses.replace(cells[0], settings={**cells[0].settings, "config": config})]
    (result,) = running.run(cells, places, place / "out", keeps_models=True).values()
    assert result["chosen_step"] < result["steps"] == 12
    run_folder = place / "out" / "models" / "ms" / "swap1" / "seed0"
    trained = TrainedRun(run_folder)
    test = trained.open().test
    assert trained.step == result["chosen_step"] and test.num_classes == 12
    embeddings = evaluating.embed(trained.model, test)
    assert evaluating.evaluate(embeddings, test)["map@r"] == pytest.approx(result["zero_shot"]["map@r"])
    names = [str(row) for row in range(CLASSES * PER_CLASS)]
    split = SplitFile.read(places.splits).find("swap1")
    support = support_rows(split, 2, test.rows, names, test.dense_labels, test.class_names)
    queries = np.setdiff1d(np.arange(len(test)), support[0])
    measured = evaluating.evaluate(embeddings[queries], only(test, queries))
    assert measured["map@r"] == pytest.approx(result["few_shot"]["2"][0]["before"]["map@r"])
    assert not (run_folder / "checkpoints" / "last.pt").exists() and not (place / "out" / "work").exists()


def test_an_episode_without_support_is_refused_before_training(place: Path) -> None:
    file = SplitFile.read(place / "splits.json")
    split = file.splits[1]
    bare = dataclasses.replace(split, episodes={2: (split.episodes[2][0], dict.fromkeys(split.test, ()))})
    file = dataclasses.replace(file, splits=(bare,), default=bare.id)
    (place / "splits.json").write_bytes(file.to_json())
    with pytest.raises(ConfigError, match=r"episode 2 of 2 shots .* no two classes with two support samples"):
        cells_of(place)


def test_a_cell_trains_on_all_classes_of_the_training_side(place: Path) -> None:
    cells, places = cells_of(place, only=["swap1"], validation="none")
    (result,) = running.run(cells, places, place / "out").values()
    split = SplitFile.read(places.splits).find("swap1")
    assert len(split.train_part) < len(split.train)
    assert result["data"]["train"]["classes"] == len(split.train) and result["data"]["validation"]["classes"] == 0
    assert result["chosen_step"] == result["steps"] == 12 and result["validation"] == {}
    assert "map@r" in result["zero_shot"] and "2" in result["few_shot"]


def test_folds_are_models_measured_alone_and_side_by_side(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells, places = cells_of(place, only=["swap1"], folds=2)
    begun = cell.trained
    stops = iter([1, 2])

    def stopped(*arguments: Any, **options: Any) -> dict[str, Any]:
        if next(stops, 0) == 2:
            raise KeyboardInterrupt
        return begun(*arguments, **options)

    monkeypatch.setattr(cell, "trained", stopped)
    with pytest.raises(Interrupted):
        running.run(cells, places, place / "out", keeps_models=True)
    first = place / "out" / "work" / "ms" / "swap1" / "seed0" / "fold-1" / "run" / "result.json"
    written = first.stat().st_mtime_ns
    monkeypatch.setattr(cell, "trained", begun)
    (result,) = running.run(cells, places, place / "out", keeps_models=True).values()
    split = SplitFile.read(places.splits).find("swap1")
    validated, embeddings = [], []
    for number in (1, 2):
        folder = place / "out" / "models" / "ms" / "swap1" / "seed0" / f"fold-{number}"
        run = TrainedRun(folder)
        opened = run.open()
        held_out = set(opened.validation.class_names)
        assert held_out < set(split.train) and held_out.isdisjoint(split.test)
        validated.append(held_out)
        parts = evaluating.embed(run.model, opened.test)
        embeddings.append(parts / parts.norm(dim=1, keepdim=True))
        alone = result["folds"][number - 1]
        assert alone["zero_shot"]["map@r"] == pytest.approx(evaluating.evaluate(parts, opened.test)["map@r"])
        assert alone["chosen_step"] == result["chosen_step"][number - 1]
        if number == 1:
            assert (folder / "result.json").stat().st_mtime_ns == written  # trained once
    assert validated[0] | validated[1] == set(split.train) and not validated[0] & validated[1]
    side_by_side = evaluating.evaluate(torch.cat(embeddings, dim=1), opened.test)
    assert result["concatenated"]["map@r"] == pytest.approx(side_by_side["map@r"])
    of_folds = [alone["zero_shot"]["recall@1"] for alone in result["folds"]]
    assert result["zero_shot"]["recall@1"] == pytest.approx(sum(of_folds) / 2)
    gains = [alone["few_shot"]["2"][0]["after"]["map@r"] for alone in result["folds"]]
    assert result["few_shot"]["2"][0]["after"]["map@r"] == pytest.approx(sum(gains) / 2)


TRACER = """
from dmlcore_plugins.data.npz import ArrayFile
from dmlcore.data.stores import FeatureStore

FETCHED = []


class Watched(FeatureStore):
    def fetch(self, indices):
        FETCHED.extend(indices.tolist())
        return super().fetch(indices)


class Tracer(ArrayFile):
    name = "tracer"

    def load(self):
        table = super().load()
        table.samples = Watched(table.samples.values)
        return table
"""


def test_no_test_class_is_seen_before_training_ends(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "tracer.py").write_text(TRACER)
    data = f"{place / 'tracer.py'}:Tracer"
    (place / "ms.toml").write_text((place / "ms.toml").read_text() + f'[tracer]\npath = "{place / "features.npz"}"\n')
    cells, places = cells_of(place, only=["swap2"], data=data)
    fetched: dict[str, list[int]] = {}
    whole = Training._train

    def watched(self: Training) -> None:
        log = sys.modules[type(self.run.splits.train.samples).__module__].FETCHED
        log.clear()
        whole(self)
        fetched["in training"] = list(log)
        log.clear()
        fetched["afterwards"] = log

    monkeypatch.setattr(Training, "_train", watched)
    running.run(cells, places, place / "out")
    split = SplitFile.read(places.splits).find("swap2")
    seen = {str(row // PER_CLASS) for row in fetched["in training"]}
    assert seen == set(split.train) and seen.isdisjoint(split.test)
    assert {str(row // PER_CLASS) for row in fetched["afterwards"]} >= set(split.test)


def test_a_cell_repeats_bit_by_bit_and_goes_on_after_an_interruption(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells, places = cells_of(place, only=["default"])
    (first,) = running.run(cells, places, place / "first").values()
    step, steps = Training.step, []

    def interrupted(self: Training, batches: Any) -> None:
        if self.run.step == 6 and not steps:
            raise KeyboardInterrupt
        step(self, batches)

    monkeypatch.setattr(Training, "step", interrupted)
    with pytest.raises(KeyboardInterrupt, match="interrupted after 0 of 1 cells"):
        running.run(cells, places, place / "second")
    assert (place / "second" / "work" / "ms" / "default" / "seed0" / "run" / "checkpoints" / "last.pt").exists()

    def counted(self: Training, batches: Any) -> None:
        steps.append(self.run.step)
        step(self, batches)

    monkeypatch.setattr(Training, "step", counted)
    (second,) = running.run(cells, places, place / "second").values()
    assert steps == list(range(6, 12)) and without_times(second) == without_times(first)


def test_work_of_other_settings_is_not_gone_on_with(place: Path) -> None:
    cells, places = cells_of(place, only=["default"])
    work = place / "work"
    running.train_and_measure(cells[0].settings, work, places)
    config = {**cells[0].settings["config"], "steps": 3}
    assert running.train_and_measure({**cells[0].settings, "config": config}, work, places)["steps"] == 3


def must_not_run(*arguments: Any, **named: Any) -> dict[str, Any]:
    raise AssertionError("a finished cell is run again")


def run_command(place: Path, *flags: str, configs: str = "ms,triplet") -> list[str]:
    files = ",".join(str(place / f"{name}.toml") for name in configs.split(","))
    return [
        *("ood", "run", "--splits", str(place / "splits.json"), "--config", files, "--out", str(place / "out")),
        *("--seeds", "2", "--adapt-steps", "3", "--episodes", "2", *flags),
    ]


@pytest.mark.slow
def test_the_command_trains_reports_and_does_nothing_twice(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    assert main([*run_command(place), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert list(answer["configurations"]) == ["ms", "triplet"] and answer["seeds"] == [0, 1]
    rows = answer["configurations"]["ms"]["splits"]
    stored = [json.loads(path_of(place / "out", f"ms/swap2/seed{s}").read_text())["result"] for s in (0, 1)]
    assert rows["swap2"]["recall@1"]["mean"] == pytest.approx(np.mean([s["zero_shot"]["recall@1"] for s in stored]))
    gains = np.mean([[e["after"]["recall@1"] - e["before"]["recall@1"] for e in s["few_shot"]["5"]] for s in stored], axis=0)
    assert rows["swap2"]["few_shot"]["5"]["gain"]["mean"] == pytest.approx(gains.mean())
    assert rows["swap2"]["few_shot"]["5"]["gain"]["count"] == 2  # episodes
    assert (place / "out" / "recall.svg").read_text().startswith("<?xml")
    monkeypatch.setattr(running, "train_and_measure", must_not_run)
    assert main(run_command(place)) == 0
    shown = capsys.readouterr()
    assert "area over FID" in shown.out and "gained by 5 shots" in shown.out
    assert main(["ood", "report", str(place / "out"), "--config", "triplet", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["configurations"]) == ["triplet"]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--shots", "10"], "has no episodes of 10 shots; it has: 2, 5. Choose by --shots"),
        (["--split", "swap7"], "no split 'swap7'"),
        (["--episodes", "4"], "episodes is 4, but split 'default' has 3 of 2 shots"),
        (["--seeds", "0"], "seeds is 0"),
        (["--processes", "0"], "processes is 0"),
        (["--folds", "1"], "folds is 1"),
        (["--folds", "7"], "split 'default' has 12 training classes, but 7 folds need 14"),
        (["--folds", "3", "--validation", "none"], "folds validate on classes, but validation is none"),
        (["--shots", "two"], "must be a whole number"),
        (["--config", "none.toml"], "cannot read the configuration none.toml"),
        (["--data", "nowhere.npz"], "there is no data set 'nowhere.npz'"),
        (["--splits", "none.json"], "there is no file of splits"),
    ],
)
def test_mistakes_are_one_line(flags: list[str], message: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = run_command(place)
    if flags[0] in command:
        command[command.index(flags[0]) + 1] = flags[1]
    else:
        command += flags
    assert main(command) == 2
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1] and "Traceback" not in error
    assert not (place / "out" / "cells").exists()


def test_what_does_not_fit_together_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "other").mkdir()
    (place / "other" / "ms.toml").write_text('plugins = ["ms"]\nseed = 4\n')
    with pytest.raises(ConfigError, match="two configurations are called 'ms'"):
        running.plan(place / "splits.json", [place / "ms.toml", place / "other" / "ms.toml"])
    lines: list[str] = []
    running.plan(place / "splits.json", [place / "other" / "ms.toml"], tell=lines.append)
    assert lines == [f"{place / 'other' / 'ms.toml'}: seed is given by the protocol instead"]
    (place / "ms.toml").write_text("stepz = 3\n")
    assert main(run_command(place, configs="ms")) == 2
    assert "ms.toml: unknown key 'stepz'" in capsys.readouterr().err
    assert main(["ood", "report", str(place)]) == 2
    assert "there are no results of `dmlcore ood run`" in capsys.readouterr().err


def test_what_is_not_said_comes_from_the_file(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = SplitFile.read(place / "splits.json")
    fewer = [dataclasses.replace(split, episodes={2: split.episodes[2]}) for split in file.splits]
    (place / "splits.json").write_bytes(dataclasses.replace(file, splits=tuple(fewer)).to_json())
    assert main([*run_command(place, "--split", "swap1", configs="ms"), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["adaptation"]["shots"] == [2] and list(answer["configurations"]["ms"]["splits"]["swap1"]["few_shot"]) == ["2"]
    bare = [dataclasses.replace(split, episodes={}) for split in file.splits]
    (place / "splits.json").write_bytes(dataclasses.replace(file, splits=tuple(bare)).to_json())
    assert main([*run_command(place, "--split", "default", configs="triplet"), "--json"]) == 0
    shown = capsys.readouterr()
    assert "no adaptation: the splits have no episodes" in shown.err and json.loads(shown.out)["adaptation"]
    out = str(place / "run")
    assert main(["train", "--splits", str(place / "splits.json"), "--split", "swap2", "--steps", "2", "--out", out]) == 0
    assert TrainedRun(out).config.settings.data.source == str(place / "features.npz")
    (place / "bad.toml").write_text("plugins = 3\n")
    assert main(["train", "--config", str(place / "bad.toml"), "--out", str(place / "none")]) == 2
    assert "plugins is 3, but must be text" in capsys.readouterr().err


def test_models_are_kept_or_said_to_be_gone(place: Path) -> None:
    cells, places = cells_of(place, only=["default"])
    running.run(cells, places, place / "out")
    lines: list[str] = []
    running.run(cells, places, place / "out", keeps_models=True, tell=lines.append)
    assert lines == ["1 cells were finished before without keeping their models; remove their files to have them again"]


def test_missing_samples_are_told_before_training(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load(place / "features.npz") as arrays:
        np.savez(place / "features.npz", x=arrays["x"][:-3], y=arrays["y"][:-3])
    assert main(run_command(place, "--split", "default")) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "of class '23', which the data lack" in error
    assert not list(place.glob("out/work/**/checkpoints"))


def test_results_of_other_settings_are_not_mixed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells, places = cells_of(place, only=["default"])
    running.run(cells, places, place / "out")
    (place / "ms.toml").write_text((place / "ms.toml").read_text().replace("steps = 12", "steps = 9"))
    other, _ = cells_of(place, only=["default"])
    with pytest.raises(ConfigError, match="a result with steps = 12 instead of 9"):
        running.run(other, places, place / "out")
    (place / "ms.toml").write_text((place / "ms.toml").read_text().replace("steps = 9", "steps = 12"))
    folded, _ = cells_of(place, only=["default"], folds=2)
    with pytest.raises(ConfigError, match="a result with folds = null instead of 2"):
        running.run(folded, places, place / "out")


def test_folds_by_the_command(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = run_command(place, "--folds", "2", "--shots", "0", "--split", "default,swap2", configs="ms")
    command[command.index("--seeds") + 1] = "1"
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "2 models concatenated" in shown
    text = (place / "out" / "report.md").read_text()
    assert "A cell is 2 models" in text and "R@1 of the embeddings of all folds side by side, by split:" in text


@pytest.mark.slow
def test_a_process_that_is_interrupted_leaves_finished_cells(place: Path) -> None:
    command = [sys.executable, "-m", "dmlcore", *run_command(place, "--processes", "2", "--shots", "0")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=place)
    ends = time.monotonic() + 120
    while time.monotonic() < ends and not list(place.glob("out/cells/*/*/*.json")) and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=300)
    count = len(list(place.glob("out/cells/*/*/*.json")))
    if process.returncode != 0:  # else it was faster than the signal
        assert process.returncode == 130 and f"interrupted after {count} of 12 cells" in error
    done = subprocess.run(command, capture_output=True, text=True, cwd=place)
    assert done.returncode == 0 and len(list(place.glob("out/cells/*/*/*.json"))) == 12
    assert f"{count} of 12 cells are there already" in done.stderr or count == 12
