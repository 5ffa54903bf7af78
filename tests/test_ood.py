"""`dmlcore ood`: areas, adaptation of the last layer, cells that train and resume, the report."""

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

from dmlcore.cli import main
from dmlcore.data import ClassSplit, SplitFile, open_data
from dmlcore.errors import ConfigError
from dmlcore.evaluation import protocol
from dmlcore.models import build_model
from dmlcore.protocols.cells import Cell, path_of
from dmlcore.protocols.shift import adapting, report, running
from dmlcore.protocols.shift.adapting import Adaptation, Tail, adapt, trunk_features, tune
from dmlcore.protocols.shift.area import area_under_shift
from dmlcore.serving import TrainedRun
from dmlcore.training.loop import Training
from dmlcore.training.settings import PLACES

CLASSES, PER_CLASS = 24, 8


def make_features(path: Path) -> Path:
    generator = np.random.default_rng(0)
    y = np.repeat(np.arange(CLASSES), PER_CLASS)
    x = generator.normal(size=(CLASSES, 12))[y] + 0.9 * generator.normal(size=(len(y), 12))
    np.savez(path, x=x.astype(np.float32), y=y)
    return path


def make_splits(path: Path, data: str) -> Path:
    def names(classes: list[int]) -> tuple[str, ...]:
        return tuple(map(str, classes))

    def episodes(test: list[int], shots: int) -> tuple[dict[str, tuple[str, ...]], ...]:
        found = []
        for number in range(3):
            generator = np.random.default_rng((shots, number))
            found.append({str(c): names((c * PER_CLASS + generator.permutation(PER_CLASS)[:shots]).tolist()) for c in test})
        return tuple(found)

    splits = []
    for swapped, fid in enumerate((3.0, 5.0, 9.0)):
        train = [*range(swapped, 12), *range(12, 12 + swapped)]
        test = [c for c in range(CLASSES) if c not in train]
        split = ClassSplit(
            f"swap{swapped}" if swapped else "default",
            fid,
            swapped,
            0,
            names(train),
            names(test),
            names(train[:9]),
            names(train[9:]),
            {2: episodes(test, 2), 5: episodes(test, 5)},
        )
        splits.append(split)
    path.write_bytes(SplitFile(data, {}, "default", tuple(splits)).to_json())
    return path


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with data, splits and two configurations."""
    data = make_features(tmp_path / "features.npz")
    make_splits(tmp_path / "splits.json", str(data))
    for name in ("ms", "triplet"):
        text = f'plugins = ["{name}"]\nsteps = 12\neval_every = 4\nembedding_dim = 8\ncompress = 0\nclasses_per_batch = 6\n'
        (tmp_path / f"{name}.toml").write_text(text)
    return tmp_path


def cells_of(place: Path, configs: tuple[str, ...] = ("ms",), **given: Any) -> tuple[list[Cell], running.Places]:
    adaptation = Adaptation(shots=(2,), steps=(4,), rate=1e-3)
    return running.plan(
        place / "splits.json", [place / f"{name}.toml" for name in configs], adaptation=adaptation, **{"seeds": 1, **given}
    )


def without_times(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key not in ("seconds", "cpu_seconds")}


# ---- the area


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


# ---- adaptation


MODELS: list[dict[str, Any]] = [
    {},
    {"normalize": False},
    {"heads": 2},
    {"student": 5, "served": "student"},
    {"head_norm": "layer"},
]


@pytest.mark.parametrize("given", MODELS, ids=str)
def test_a_tail_is_the_model_behind_its_trunk_and_tunes_its_last_layer_only(given: dict[str, Any], tmp_path: Path) -> None:
    splits = open_data(make_features(tmp_path / "features.npz"))
    model = build_model(sample_shape=(12,), kind="features", embedding_dim=6, **given)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    features = trunk_features(model, splits.test)
    expected = torch.nn.functional.normalize(protocol.embed(model, splits.test), dim=1)
    tail = Tail(model)
    assert torch.allclose(tail(features), expected, atol=1e-6) and model.training
    tune(tail, features, splits.test.dense_labels, 3, 1e-2, 0)
    changed = {name for name, value in tail.model.state_dict().items() if not torch.equal(value, before[name])}
    layer = "student." if given.get("student") else "head."
    assert changed and all(name.startswith(layer) for name in changed)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_episodes_start_from_the_same_weights_and_see_their_support_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test = open_data(make_features(tmp_path / "features.npz")).test
    model = build_model(sample_shape=(12,), kind="features", embedding_dim=6)
    features = trunk_features(model, test)
    support = [np.arange(n, len(test), PER_CLASS) for n in (0, 3)]
    support = [np.sort(np.concatenate([rows, rows + 1])) for rows in support]
    seen: list[tuple[torch.Tensor, np.ndarray]] = []
    first_weights: list[torch.Tensor] = []
    whole_tune = adapting.tune

    def watched(tail: Tail, rows: torch.Tensor, labels: np.ndarray, *rest: Any) -> Tail:
        seen.append((rows, labels))
        first_weights.append(next(tail.layer.parameters()).detach().clone())
        return whole_tune(tail, rows, labels, *rest)

    monkeypatch.setattr(adapting, "tune", watched)
    found = adapt(model, features, test.dense_labels, support, 20, 1e-2, 0)
    for (rows, labels), chosen in zip(seen, support, strict=True):
        assert torch.equal(rows, features[chosen]) and np.array_equal(labels, test.dense_labels[chosen])
    assert torch.equal(first_weights[0], first_weights[1])
    queries = np.setdiff1d(np.arange(len(test)), support[1])
    again = adapt(model, features, test.dense_labels, support[1:], 20, 1e-2, 1)  # the second episode on its own
    assert again[0] == found[1] and found[1]["before"] != found[1]["after"]
    measured = protocol.evaluate(Tail(model)(features[queries]).detach(), _only(test, queries))
    assert measured["map@r"] == pytest.approx(found[1]["before"]["map@r"])


def _only(dataset: Any, rows: np.ndarray) -> Any:
    return type(dataset)(dataset.samples, dataset.rows[rows], dataset.labels[rows], dataset._table_names, dataset.sample_shape)


def test_adaptation_learns_what_separates_the_support() -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 12)
    signal, noise = np.eye(10)[labels] * 2 + 0.3 * generator.normal(size=(120, 10)), 3 * generator.normal(size=(120, 10))
    features = torch.from_numpy(np.concatenate([signal, noise], 1).astype(np.float32))
    model = build_model("identity", sample_shape=(20,), kind="features", embedding_dim=8, seed=1)
    support = np.flatnonzero(np.arange(120) % 12 < 5)
    (found,) = adapt(model, features, labels, [support], 200, 1e-2, 0)
    assert found["after"]["recall@1"] > found["before"]["recall@1"] + 0.1


@pytest.mark.parametrize(
    "given, message",
    [
        ({"shots": (2, 5), "steps": (1, 2, 3)}, "3 numbers for 2"),
        ({"shots": (1,), "steps": (5,)}, "shots is 1"),
        ({"shots": (2, 2), "steps": (5,)}, "each may be named once"),
        ({"steps": (0,)}, "adapt_steps is 0"),
        ({"rate": 0.0}, "adapt_rate is 0"),
        ({"episodes": 0}, "episodes is 0"),
    ],
)
def test_adaptations_that_cannot_be(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Adaptation(**given)
    assert Adaptation(shots=(2, 5), steps=(7,)).steps == (7, 7)


# ---- cells


def test_a_cell_measures_the_weights_that_validation_chose(place: Path) -> None:
    cells, places = cells_of(place, only=["swap1"])
    config = cells[0].settings["config"]
    config["learning_rate"] = 0.3  # so high that the last weights are worse than earlier ones
    cells = [dataclasses.replace(cells[0], settings={**cells[0].settings, "config": config})]
    (result,) = running.run(cells, places, place / "out", keeps_models=True).values()
    assert result["chosen_step"] < result["steps"] == 12
    kept = place / "out" / "models" / "ms" / "swap1" / "seed0"
    trained = TrainedRun(kept)
    test = trained.open().test
    assert trained.step == result["chosen_step"] and test.num_classes == 12
    embeddings = protocol.embed(trained.model, test)
    assert protocol.evaluate(embeddings, test)["map@r"] == pytest.approx(result["zero_shot"]["map@r"])
    names = [str(row) for row in range(CLASSES * PER_CLASS)]
    split = SplitFile.read(places.splits).find("swap1")
    support = running.support_rows(split, 2, test.rows, names, test.dense_labels, test.class_names)
    queries = np.setdiff1d(np.arange(len(test)), support[0])
    measured = protocol.evaluate(embeddings[queries], _only(test, queries))
    assert measured["map@r"] == pytest.approx(result["few_shot"]["2"][0]["before"]["map@r"])
    assert not (kept / "checkpoints" / "last.pt").exists() and not (place / "out" / "work").exists()


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


# ---- the command


def must_not_run(*arguments: Any, **given: Any) -> dict[str, Any]:
    raise AssertionError("a finished cell is run again")


def run_command(place: Path, *more: str, configs: str = "ms,triplet") -> list[str]:
    files = ",".join(str(place / f"{name}.toml") for name in configs.split(","))
    return [
        *("ood", "run", "--splits", str(place / "splits.json"), "--config", files, "--out", str(place / "out")),
        *("--seeds", "2", "--adapt-steps", "3", "--episodes", "2", *more),
    ]


def test_the_command_trains_reports_and_does_nothing_twice(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    assert main([*run_command(place), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["configurations"]) == ["ms", "triplet"] and found["seeds"] == [0, 1]
    rows = found["configurations"]["ms"]["splits"]
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
    "more, message",
    [
        (["--shots", "10"], "has no episodes of 10 shots; it has: 2, 5. Choose by --shots"),
        (["--split", "swap7"], "no split 'swap7'"),
        (["--episodes", "4"], "episodes is 4, but split 'default' has 3 of 2 shots"),
        (["--seeds", "0"], "seeds is 0"),
        (["--processes", "0"], "processes is 0"),
        (["--shots", "two"], "must be a whole number"),
        (["--config", "none.toml"], "cannot read the configuration none.toml"),
        (["--data", "nowhere.npz"], "there is no data set 'nowhere.npz'"),
        (["--splits", "none.json"], "there is no file of splits"),
    ],
)
def test_mistakes_are_one_line(more: list[str], message: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = run_command(place)
    if more[0] in command:
        command[command.index(more[0]) + 1] = more[1]
    else:
        command += more
    assert main(command) == 2
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1] and "Traceback" not in error
    assert not (place / "out" / "cells").exists()


def test_what_does_not_fit_together_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "other").mkdir()
    (place / "other" / "ms.toml").write_text('plugins = ["ms"]\nseed = 4\n')
    with pytest.raises(ConfigError, match="two configurations are called 'ms'"):
        running.plan(place / "splits.json", [place / "ms.toml", place / "other" / "ms.toml"])
    told: list[str] = []
    running.plan(place / "splits.json", [place / "other" / "ms.toml"], tell=told.append)
    assert told == [f"{place / 'other' / 'ms.toml'}: seed is given by the protocol instead"]
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
    found = json.loads(capsys.readouterr().out)
    assert found["adaptation"]["shots"] == [2] and list(found["configurations"]["ms"]["splits"]["swap1"]["few_shot"]) == ["2"]
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
    told: list[str] = []
    running.run(cells, places, place / "out", keeps_models=True, tell=told.append)
    assert told == ["1 cells were finished before without keeping their models; remove their files to have them again"]


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


def test_a_process_that_is_interrupted_leaves_finished_cells(place: Path) -> None:
    command = [sys.executable, "-m", "dmlcore", *run_command(place, "--processes", "2", "--shots", "0")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=place)
    ends = time.monotonic() + 120
    while time.monotonic() < ends and not list(place.glob("out/cells/*/*/*.json")) and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=120)
    kept = len(list(place.glob("out/cells/*/*/*.json")))
    if process.returncode != 0:  # else it was faster than the signal
        assert process.returncode == 130 and f"interrupted after {kept} of 12 cells" in error
    done = subprocess.run(command, capture_output=True, text=True, cwd=place)
    assert done.returncode == 0 and len(list(place.glob("out/cells/*/*/*.json"))) == 12
    assert f"{kept} of 12 cells are there already" in done.stderr or kept == 12


# ---- the report


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
    found = report.summary(report.Results.read(tmp_path))
    area = 0.25 * 0.75 + 0.75 * 0.5
    assert found["configurations"]["one"]["area"]["recall@1"] == {"mean": pytest.approx(area), "half": 0, "count": 2}
    assert found["configurations"]["two"]["area"]["recall@1"]["mean"] == pytest.approx(area + 0.15)
    difference = found["area_differences"]["one - two"]
    assert difference["mean"] == pytest.approx(-0.15) and difference["half"] == pytest.approx(12.706205 * 0.05, rel=1e-6)
    gain = found["configurations"]["one"]["splits"]["b"]["few_shot"]["2"]["gain"]
    assert gain["mean"] == pytest.approx(0.035) and gain["half"] == pytest.approx(12.706205 * 0.005, rel=1e-6)
    text = report.markdown(found)
    assert "| two | 71.2 ± 63.5 |" in text and "| c | 5 | 30.0 ± 0.0 | 45.0 ± 63.5 |" in text
    assert "| b | 2 | 50.0 +3.5 ± 6.4 | 50.0 +3.5 ± 6.4 |" in text
    path_of(tmp_path, "two/c/seed1").unlink()  # a seed without all splits has no area
    found = report.summary(report.Results.read(tmp_path))
    assert found["configurations"]["two"]["area"]["recall@1"] == {"mean": pytest.approx(area + 0.1), "half": None, "count": 1}
    path_of(tmp_path, "two/b/seed1").write_text("{")
    assert main(["ood", "report", str(tmp_path)]) == 1


def test_settings_of_the_protocol_are_settings_of_training() -> None:
    assert set(running.OWN) <= set(PLACES)
