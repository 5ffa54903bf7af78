"""Training: repeatability, exact resumption, the choice of the checkpoint, the run folder, hooks and loggers."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interrupting import Stop, records
from PIL import Image

from dmlcore import plugins
from dmlcore.errors import ConfigError, TrainingError
from dmlcore.evaluation import evaluating
from dmlcore.files import write_atomically
from dmlcore.serving import TrainedRun
from dmlcore.training import Logger, RunConfig, checkpoints, optimiser, schedule, train
from dmlcore.training.building import build_run_model
from dmlcore.training.folder import RunFolder
from dmlcore.training.measurements import Measurements
from dmlcore.training.run import Run

SMALL = {"eval_every": 5, "classes_per_batch": 8, "embedding_dim": 8, "seed": 3}


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> str:
    """40 classes of 8 feature vectors, overlapping."""
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(40), 8)
    centres = generator.normal(size=(40, 16))
    path = tmp_path_factory.mktemp("data") / "features.npz"
    np.savez(path, x=(centres[labels] + generator.normal(size=(320, 16))).astype(np.float32), y=labels)
    return str(path)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> str:
    """12 classes of 5 noisy pictures, 16 x 16 grey."""
    generator = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("pictures")
    for label in range(12):
        (root / f"class{label}").mkdir()
        base = generator.integers(0, 255, size=(16, 16))
        for number in range(5):
            noisy = np.clip(base + generator.normal(0, 30, size=(16, 16)), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(root / f"class{label}" / f"{number}.png")
    return str(root)


def state(path: Path, name: str = "last") -> dict[str, Any]:
    return checkpoints.load(path / "checkpoints", name)


def same(first: Any, second: Any) -> bool:
    """Equal bit by bit, through nested containers."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def without_time(saved: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in saved.items() if key not in ("seconds", "records")}


@pytest.mark.parametrize("weighting", ["fixed", "uncertainty"])
def test_a_run_repeats_bit_by_bit(features: str, tmp_path: Path, weighting: str) -> None:
    for name in "ab":
        torch.rand(int(7 + ord(name)))  # whatever happened before must not matter
        train(out=tmp_path / name, data=features, steps=20, weighting=weighting, **SMALL)
    assert records(tmp_path / "a") == records(tmp_path / "b")
    assert same(without_time(state(tmp_path / "a")), without_time(state(tmp_path / "b")))


MEMORY = {
    "plugins": "ms,proxy_anchor,triplet",
    "memory": 100,
    "memory_warmup": 3,
    "ms": {"miner": "distance_weighted(seed=2)"},
    "triplet": {"miner": "batch_hard"},
}


@pytest.mark.parametrize("stop", [10, 13])
@pytest.mark.parametrize(
    "settings", [{"weighting": "fixed"}, {"weighting": "uncertainty"}, MEMORY], ids=["fixed", "uncertainty", "memory"]
)
def test_interrupted_and_resumed_is_the_same_as_straight_on(features: str, tmp_path: Path, settings: Any, stop: int) -> None:
    values = {"data": features, "steps": 20, **SMALL, **settings}
    straight = train(out=tmp_path / "straight", **values)
    with pytest.raises(KeyboardInterrupt, match=f"after step {stop} of 20.*--resume"):
        train(out=tmp_path / "parts", loggers=[Stop(stop)], **values)
    assert state(tmp_path / "parts")["step"] == stop
    torch.rand(11)
    resumed = train(resume=tmp_path / "parts")
    assert records(tmp_path / "parts") == records(tmp_path / "straight")
    assert same(without_time(state(tmp_path / "parts")), without_time(state(tmp_path / "straight")))
    assert resumed["metrics"] == straight["metrics"]


def test_an_interrupt_during_an_evaluation_loses_nothing(features: str, tmp_path: Path) -> None:
    class Impatient(Logger):
        def __init__(self, event: str) -> None:
            super().__init__()
            self.event = event

        def evaluated(self, run: Run, record: dict[str, Any]) -> None:
            if self.event == f"evaluation {record['step']}":
                raise KeyboardInterrupt

        def note(self, text: str) -> None:
            if self.event == "final evaluation":
                raise KeyboardInterrupt

    values = {"data": features, "steps": 10, **SMALL}
    straight = train(out=tmp_path / "straight", **values)
    for number, event in enumerate(("evaluation 0", "evaluation 5", "evaluation 10", "final evaluation")):
        out = tmp_path / str(number)
        with pytest.raises(KeyboardInterrupt, match="is saved"):
            train(out=out, loggers=[Impatient(event)], **values)
        assert train(resume=out)["metrics"] == straight["metrics"], event
        assert records(out) == records(tmp_path / "straight"), event


def test_resuming_is_exact_with_worker_processes_and_augmentation(pictures: str, tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "data": pictures,
        "steps": 6,
        "workers": 1,
        "plugins": "ms",
        "folder": {"memory_mb": 0},
        "classes_per_batch": 4,
        "eval_every": 100,
        "conv": {"channels": (4, 4)},
    }
    train(out=tmp_path / "straight", **values)
    with pytest.raises(KeyboardInterrupt):
        train(out=tmp_path / "parts", loggers=[Stop(3)], **values)
    train(resume=tmp_path / "parts")
    assert records(tmp_path / "parts") == records(tmp_path / "straight")


def test_resuming_after_a_crash_drops_what_the_checkpoint_does_not_know(features: str, tmp_path: Path) -> None:
    class Crash(Logger):
        def step_ended(self, run: Run, record: dict[str, Any]) -> None:
            if record["step"] == 8:
                raise TrainingError("power cut")

    values = {"data": features, "steps": 10, "loggers": ["spreadsheet"], **SMALL}
    with pytest.raises(TrainingError, match="power cut"):
        _train_with(Crash(), out=tmp_path / "run", **values)
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"kind": "st')
    assert state(tmp_path / "run")["step"] == 5
    train(resume=tmp_path / "run")
    steps = [record["step"] for record in records(tmp_path / "run") if record["kind"] == "step"]
    assert steps == list(range(1, 11))
    rows = (tmp_path / "run" / "steps.csv").read_text().splitlines()
    place = rows[0].split(",").index("step")
    assert [int(row.split(",")[place]) for row in rows[1:]] == list(range(1, 11))


def _train_with(logger: Logger, *, out: Path, loggers: list[str], **values: Any) -> dict[str, Any]:
    return train(RunConfig.create(loggers=loggers, **values), out=out, loggers=[logger])


def test_the_configuration_of_a_run_gives_the_same_run(features: str, tmp_path: Path) -> None:
    train(
        out=tmp_path / "a",
        data=features,
        epochs=2,
        plugins="ms,triplet",
        weights=[1, 2],
        ms={"epsilon": None, "alpha": 3},
        **SMALL,
    )
    text = (tmp_path / "a" / "config.toml").read_text()
    assert 'epsilon = "none"' in text and "alpha = 3.0" in text and "steps = " in text and "epochs" not in text
    train(RunConfig.read(tmp_path / "a" / "config.toml"), out=tmp_path / "b")
    assert (tmp_path / "b" / "config.toml").read_text() == text
    assert records(tmp_path / "a") == records(tmp_path / "b")


def test_validation_chooses_the_checkpoint_and_the_result_is_complete(features: str, tmp_path: Path) -> None:
    result = train(out=tmp_path / "run", data=features, steps=20, **SMALL)
    evaluations = [record for record in records(tmp_path / "run") if record["kind"] == "evaluation"]
    assert [record["step"] for record in evaluations] == [0, 5, 10, 15, 20]
    best = max(evaluations, key=lambda record: (record["map@r"], -record["step"]))
    assert result["chosen_step"] == best["step"] == state(tmp_path / "run", "best")["step"]
    assert result["metrics"]["validation"]["map@r"] == pytest.approx(best["map@r"], abs=1e-6)
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    assert written["metrics"] == json.loads(json.dumps(result["metrics"]))
    assert set(written["metrics"]) == {"validation", "test"}
    assert set(written["baselines"]) == {"raw features", "before training"}
    assert {"seed", "versions", "wall_seconds", "losses", "data", "steps"} <= set(written)
    for parts in [written["metrics"], *written["baselines"].values()]:
        assert all({"recall@1", "recall@8", "r_precision", "map@r", "map"} <= set(parts[part]) for part in parts)


def test_a_step_record_has_every_number_a_reader_needs(features: str, tmp_path: Path) -> None:
    train(
        out=tmp_path / "run",
        data=features,
        steps=2,
        plugins="triplet,triplet",
        triplet_2={"margin": 0.3},
        weighting="fixed",
        **SMALL,
    )
    record = [r for r in map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) if r["kind"] == "step"][
        -1
    ]
    assert {"step", "total", "terms", "weights", "active", "learning_rates", "images_per_second"} <= set(record)
    assert list(record["terms"]) == list(record["weights"]) == list(record["active"]) == ["triplet", "triplet_2"]
    assert record["terms"]["triplet"] != record["terms"]["triplet_2"]
    assert record["total"] == pytest.approx(sum(record["terms"].values()), rel=1e-5)


def test_parameters_are_grouped_by_role(features: str, tmp_path: Path) -> None:
    values = {
        "plugins": "ms,proxy_anchor",
        "weighting": "uncertainty",
        "learning_rate": 0.01,
        "proxies_factor": 5,
        "model": "mlp",
        **SMALL,
    }
    config = RunConfig.create(data=features, **values)
    run = Run(config, RunFolder(tmp_path))
    groups = {group["role"]: group for group in run.optimiser.param_groups}
    assert {"trunk", "head", "proxies", "weights"} <= set(groups)
    assert groups["proxies"]["lr"] == pytest.approx(0.05) and groups["trunk"]["lr"] == pytest.approx(0.01)
    assert groups["proxies"]["weight_decay"] == groups["weights"]["weight_decay"] == 0
    grouped = [id(p) for group in groups.values() for p in group["params"]]
    learnable = {id(p) for p in [*run.model.parameters(), *run.ensemble.parameters()] if p.requires_grad}
    assert len(grouped) == len(set(grouped)) and set(grouped) == learnable
    rates = optimiser.set_rates(run.optimiser, 0.5)
    assert rates["proxies"] == pytest.approx(0.025)


def test_gradients_are_clipped_by_role() -> None:
    model, proxies = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2))
    adam = torch.optim.AdamW([{"params": [model], "role": "trunk"}, {"params": [proxies], "role": "proxies"}])
    model.grad, proxies.grad = torch.tensor([0.3, 0.4]), torch.tensor([30.0, 40.0])
    assert optimiser.clip(adam, 5.0).tolist() == pytest.approx([0.5, 50.0])
    assert model.grad.tolist() == pytest.approx([0.3, 0.4])
    assert proxies.grad.tolist() == pytest.approx([3.0, 4.0], rel=1e-4)


def test_the_learning_rate_rises_and_falls() -> None:
    default = plugins.find("schedule", plugins.defaults().SCHEDULE).component()
    factors = [schedule.factor(default, step, 100, 10) for step in range(100)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == factors[10] == 1.0
    assert factors[55] == pytest.approx(0.01 + 0.99 / 2) and factors[99] == pytest.approx(0.01, abs=2e-3)
    assert all(a >= b for a, b in itertools.pairwise(factors[10:]))
    assert schedule.factor(default, 0, 1, 50) == 1.0  # a run shorter than its warm-up


class Poison(Logger):
    """Spoils a parameter after a step."""

    def __init__(self, step: int, choose: Any) -> None:
        super().__init__()
        self.step, self.choose = step, choose

    def step_ended(self, run: Run, record: dict[str, Any]) -> None:
        if record["step"] == self.step:
            with torch.no_grad():
                self.choose(run).fill_(math.nan)


@pytest.mark.parametrize(
    ("choose", "what"),
    [
        (
            lambda run: next(run.model.head.parameters()),
            r"step 8: the embeddings of rows 0, 1, 2, 3, 4 and 27 more of 32 are not finite",
        ),
        (lambda run: run.ensemble.parameter_roles()["proxies"][0], r"step 8: loss 'proxy_anchor' is nan"),
    ],
)
def test_a_loss_that_is_not_finite_stops_the_run_and_names_loss_step_and_rows(
    features: str, tmp_path: Path, choose: Any, what: str
) -> None:
    with pytest.raises(TrainingError, match=what) as raised:
        train(out=tmp_path / "run", data=features, plugins="ms,proxy_anchor", steps=20, loggers=[Poison(7, choose)], **SMALL)
    assert "step 5" in str(raised.value) and "row" in str(raised.value)
    saved = state(tmp_path / "run")
    assert saved["step"] == 5
    assert all(
        torch.isfinite(v).all() for v in [*saved["model"].values(), *saved["ensemble"].values()] if v.is_floating_point()
    )


class Recorder:
    """A plugin that notes every event of a run."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    @plugins.hookspecs.hookimpl
    def dmlcore_training_started(self, run: Run) -> None:
        self.events.append(("started", run.step))

    @plugins.hookspecs.hookimpl
    def dmlcore_step_ended(self, run: Run, record: dict[str, Any]) -> None:
        assert record["kind"] == "step" and run.step == record["step"]
        self.events.append(("step", record["step"]))

    @plugins.hookspecs.hookimpl
    def dmlcore_evaluated(self, run: Run, record: dict[str, Any]) -> None:
        assert record["split"] == "validation" and "map@r" in record
        self.events.append(("evaluated", record["step"]))

    @plugins.hookspecs.hookimpl
    def dmlcore_checkpoint_saved(self, run: Run, name: str, path: Path) -> None:
        assert path.exists() and path.stem == name
        self.events.append((name, run.step))

    @plugins.hookspecs.hookimpl
    def dmlcore_training_ended(self, run: Run, result: dict[str, Any]) -> None:
        assert (run.folder.path / "result.json").exists() and "metrics" in result
        self.events.append(("ended", run.step))


def test_plugins_hear_of_every_event(features: str, tmp_path: Path) -> None:
    recorder = Recorder()
    plugins.manager().register(recorder, "recorder")
    try:
        train(out=tmp_path / "run", data=features, steps=3, **{**SMALL, "eval_every": 2})
    finally:
        plugins.manager().unregister(recorder)
    events = [event for event in recorder.events if event[0] != "best"]
    assert events == [
        ("started", 0),
        ("last", 0),
        ("evaluated", 0),
        ("step", 1),
        ("step", 2),
        ("last", 2),
        ("evaluated", 2),
        ("step", 3),
        ("last", 3),
        ("evaluated", 3),
        ("ended", 3),
    ]
    assert recorder.events.index(("best", 0)) < recorder.events.index(("last", 0))


def test_an_event_hook_that_fails_is_warned_about_once_and_training_goes_on(features: str, tmp_path: Path) -> None:
    class Faulty:
        @plugins.hookspecs.hookimpl
        def dmlcore_step_ended(self, run: Run, record: dict[str, Any]) -> None:
            raise ZeroDivisionError("oh")

    class Broken(Logger):
        name = "broken"

        def __init__(self) -> None:
            super().__init__()
            self.notes: list[str] = []

        def note(self, text: str) -> None:
            self.notes.append(text)

        def step_ended(self, run: Run, record: dict[str, Any]) -> None:
            raise OSError("no wire")

    recorder, faulty, broken = Recorder(), Faulty(), Broken()
    for plugin in (recorder, faulty):  # the one registered last is called first
        plugins.manager().register(plugin)
    try:
        result = train(out=tmp_path / "run", data=features, steps=3, loggers=[broken], **SMALL)
    finally:
        for plugin in (recorder, faulty):
            plugins.manager().unregister(plugin)
    assert [step for event, step in recorder.events if event == "step"] == [1, 2, 3]
    warnings = [note for note in broken.notes if note.startswith("warning: ")]
    assert len(warnings) == 2 and [f"warning: {text}" for text in result["warnings"]] == warnings
    assert "the logger 'broken' (step_ended) failed: OSError: no wire. Training goes on" in warnings[0]
    assert "the hook dmlcore_step_ended of" in warnings[1] and "ZeroDivisionError: oh" in warnings[1]


def test_loggers_hear_of_the_whole_run_and_are_always_closed(features: str, tmp_path: Path) -> None:
    class Heard(Logger):
        def __init__(self) -> None:
            super().__init__()
            self.calls: list[str] = []

        def started(self, run: Run) -> None:
            self.calls.append("started")

        def evaluated(self, run: Run, record: dict[str, Any]) -> None:
            self.calls.append("evaluated")

        def ended(self, run: Run, result: dict[str, Any]) -> None:
            self.calls.append("ended")

        def closed(self) -> None:
            self.calls.append("closed")

    heard, interrupted = Heard(), Heard()
    train(out=tmp_path / "a", data=features, steps=2, loggers=[heard], **SMALL)
    assert heard.calls == ["started", "evaluated", "evaluated", "ended", "closed"]
    with pytest.raises(KeyboardInterrupt):
        train(out=tmp_path / "b", data=features, steps=2, loggers=[interrupted, Stop(1)], **SMALL)
    assert interrupted.calls == ["started", "evaluated", "closed"]


def state_of(step: int) -> dict[str, Any]:
    """What every checkpoint has."""
    model = {"weight": torch.zeros(1000)}
    return {"step": step, "kind": "features", "sample_shape": [5], "config": {}, "model": model, "ensemble": {}}


def test_checkpoints_keep_the_one_before_and_name_it_when_the_last_is_damaged(tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoints.save(tmp_path, "last", state_of(step))
    assert checkpoints.load(tmp_path, "previous")["step"] == 1
    last = tmp_path / "last.pt"
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    with pytest.raises(TrainingError, match=r"last\.pt is damaged.*previous\.pt is intact \(step 1\).*--checkpoint previous"):
        checkpoints.load(tmp_path, "last")
    with pytest.raises(ConfigError, match="there is: last, previous"):
        checkpoints.load(tmp_path, "best")


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "harm"),)

    torch.save({"format": checkpoints.FORMAT, "step": 1, "model": Harmful()}, tmp_path / "best.pt")
    with pytest.raises(TrainingError, match=r"holds code \(.*mkdir\), which dmlcore never writes and never runs"):
        checkpoints.load(tmp_path, "best")
    assert not (tmp_path / "harm").exists()


def test_writing_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"before")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainingError, match="No space left on device"):
        write_atomically(path, b"after")
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"plugins": "ms,triplit"}, "no loss 'triplit'. Did you mean 'triplet'"),
        ({"plugins": "ms", "triplet": {"margin": 1}}, "'triplet' are given, but that loss is not selected"),
        ({"plugins": "ms", "ms": {"alpah": 1}}, "ms has no option 'alpah'. Did you mean 'alpha'"),
        (
            {"plugins": "ms", "ms": {"miner": "x"}, "semihard": {"margin": 1}},
            "'semihard' is a miner; its options stand behind its name",
        ),
        ({"memory": -1}, "memory is -1, but must be >= 0"),
        ({"stepz": 1}, "unknown key 'stepz'. Did you mean 'steps'"),
        ({"steps": 0}, "steps is 0, but must be >= 1"),
        ({"recall_at": [2, 4]}, "recall_at must hold 1, but is 2,4"),
        ({"steps": 3, "epochs": 2}, "both given"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast', but must be a number"),
        ({"weights": [1]}, "weights has 1 numbers for 3 losses"),
        ({"device": "gpu"}, "device is 'gpu'"),
        ({"nonsense": {"a": 1}}, "nothing called 'nonsense'"),
        ({"plugins": "ms", "MultiSimilarityLoss": {"alpha": 1}}, "'MultiSimilarityLoss' are given by its own name, 'ms'"),
    ],
)
def test_wrong_settings_are_refused(values: dict[str, Any], message: str, features: str) -> None:
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        RunConfig.create(**{"data": features, **values})


def test_settings_stand_in_the_tables_of_their_groups_or_without(features: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(
        f"data = '{features}'\nplugins = ['ms']\n[run]\nsteps = 20\n[optimiser]\nlearning-rate = 0.01\n[ms]\nalpha = 4\n"
    )
    config = RunConfig.read(file)
    assert config == RunConfig.create(data=features, plugins="ms", steps=20, learning_rate=0.01, ms={"alpha": 4})
    text = config.completed("features", 20, (12,)).toml()
    tables = tomllib.loads(text)
    assert {"losses", "ensemble", "data", "model", "optimiser", "run"} <= set(tables) and tables["format"] == 2
    assert tables["losses"]["plugins"] == ["ms"] and tables["run"]["steps"] == 20 and tables["ms"]["alpha"] == 4
    file.write_text(text)
    assert RunConfig.read(file).settings == config.completed("features", 20, (12,)).settings


def test_a_byte_order_mark_before_settings_changes_nothing(features: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    text = f"data = '{features}'\nplugins = ['ms']\nsteps = 3\n"
    file.write_text(text)
    plain = RunConfig.read(file)
    for content in (b"\xef\xbb\xbf" + text.encode(), b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()):
        file.write_bytes(content)
        assert RunConfig.read(file) == plain and plain.settings.run.steps == 3
    file.write_bytes(text.encode("utf-16"))
    with pytest.raises(ConfigError, match=r"settings\.toml is not valid TOML: .*utf-8"):
        RunConfig.read(file)
    file.write_text("a = " + "[" * 20_000)
    with pytest.raises(ConfigError, match=r"settings\.toml nests too many brackets"):
        RunConfig.read(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[losses]\nsteps = 3", r"settings\.toml: 'steps' is a setting of \[run\], but stands in \[losses\]"),
        ("[run]\nstepz = 3", r"settings\.toml: unknown key 'stepz' in \[run\]\. Did you mean 'steps'"),
        ("stepz = 3", r"settings\.toml: unknown key 'stepz'\. Did you mean 'steps'"),
        ("steps = 3\n[run]\nsteps = 4", r"settings\.toml: 'steps' is given twice, in \[run\] and without a table"),
        ("[run]\nsteps = 'few'", r"settings\.toml: steps is 'few', but must be a whole number"),
        ("[ensemble]\nensemble = 'head'", r"settings\.toml: ensemble is 'head', but must be one of shared"),
        ("format = 3", r"settings\.toml is of another format than 2"),
    ],
)
def test_a_file_of_settings_is_refused_by_file_and_key(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        RunConfig.read(tmp_path / "settings.toml")


def test_a_run_of_another_version_is_refused_in_one_line(features: str, tmp_path: Path) -> None:
    train(out=tmp_path / "run", data=features, steps=1, **SMALL)
    file = tmp_path / "run" / "config.toml"
    file.write_text(file.read_text().replace("format = 2\n", ""))
    for use in (TrainedRun, lambda path: train(resume=path)):
        with pytest.raises(
            ConfigError, match=r"run was made by another version of dmlcore .*Use that version, or train again"
        ) as error:
            use(tmp_path / "run")
        assert "\n" not in str(error.value)


def test_what_is_called_like_a_group_of_settings_cannot_be_chosen(features: str) -> None:
    class Named(Logger):
        name = "run"

    class Plugin:
        @plugins.hookspecs.hookimpl
        def dmlcore_loggers(self) -> list[type]:
            return [Named]

    plugin = Plugin()
    plugins.manager().register(plugin, "named")
    plugins.registry.cache_clear()
    try:
        with pytest.raises(ConfigError, match="the logger 'run' is called like a group of settings"):
            RunConfig.create(data=features, loggers="run")
    finally:
        plugins.manager().unregister(plugin)
        plugins.registry.cache_clear()


def test_measurements_become_numbers_by_name() -> None:
    def number(value: float) -> torch.Tensor:
        return torch.tensor(value)

    cosines = torch.tensor([[1.0, 0.5, 0.25], [0.5, 1.0, -0.5], [0.25, -0.5, 1.0]])
    measured = Measurements(
        total=number(1.0),
        gradient_norms={"model": number(2.0), "losses": number(3.0)},
        terms={"a": number(4.0), "b": number(5.0), "c": number(6.0)},
        active={"a": number(0.0), "b": number(0.5), "c": number(1.0)},
        weights=torch.tensor([7.0, 8.0, 9.0]),
        extra_terms={"student": number(10.0)},
        loss_gradient_norms={"a": number(11.0), "b": number(12.0), "c": number(13.0)},
        loss_gradient_cosines=cosines,
    )
    record = measured.fetch().as_dict()
    assert record["total"] == 1 and record["gradient_norms"] == {"model": 2, "losses": 3}
    assert record["terms"] == {"a": 4, "b": 5, "c": 6} and record["active"] == {"a": 0, "b": 0.5, "c": 1}
    assert record["weights"] == {"a": 7, "b": 8, "c": 9} and record["extra_terms"] == {"student": 10}
    assert record["loss_gradient_norms"] == {"a": 11, "b": 12, "c": 13} and "embedding_norms" not in record
    assert record["loss_gradient_cosines"] == {"a, b": 0.5, "a, c": 0.25, "b, c": -0.5}


def test_options_for_the_default_model_of_other_data_are_refused(features: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="options of 'conv' are given, but the model for features is 'identity'"):
        train(out=tmp_path / "run", data=features, steps=1, conv={"channels": (4,)}, **SMALL)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_is_refused(features: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="0 CUDA devices"):
        train(out=tmp_path / "run", data=features, device="cuda", **SMALL)


def test_a_trained_run_embeds_and_evaluates(features: str, tmp_path: Path) -> None:
    result = train(out=tmp_path / "run", data=features, steps=5, **SMALL)
    trained = TrainedRun(tmp_path / "run")
    assert trained.evaluate()["metrics"] == result["metrics"]
    splits = trained.open()
    embeddings = evaluating.embed(trained.model, splits.test, batch_size=7)
    assert embeddings.shape == (len(splits.test), 8)
    torch.testing.assert_close(embeddings, trained(splits.test.batch(range(len(splits.test)))))


def test_raw_pixels_are_averaged_down_and_embedding_leaves_the_mode_alone(pictures: str) -> None:
    from dmlcore.data import open_data

    test = open_data(pictures, image_size=64).test
    raw = evaluating.raw_features(test)
    assert raw.shape == (len(test), 32 * 32)
    torch.testing.assert_close(raw[0], torch.nn.functional.avg_pool2d(test[0][0], 2).flatten())
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.9))
    assert torch.equal(evaluating.embed(model, test), test.batch(range(len(test))).flatten(1)) and model.training


def test_the_step_limit_of_the_environment(features: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DML_MAX_STEPS", "2")
    assert train(out=tmp_path / "run", data=features, steps=50, **SMALL)["steps"] == 2
    monkeypatch.setenv("DML_MAX_STEPS", "many")
    with pytest.raises(ConfigError, match="DML_MAX_STEPS"):
        train(out=tmp_path / "other", data=features, **SMALL)


def test_settings_need_no_torch() -> None:
    import subprocess

    code = "import sys, dmlcore.training.settings, dmlcore.console; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_memory_takes_part_and_must_hold_a_batch(features: str, tmp_path: Path) -> None:
    train(out=tmp_path / "with", data=features, steps=4, memory=200, **SMALL)
    train(out=tmp_path / "without", data=features, steps=4, **SMALL)
    with_memory, without = records(tmp_path / "with"), records(tmp_path / "without")
    steps = [[r["terms"] for r in lines if r["kind"] == "step"] for lines in (with_memory, without)]
    assert steps[0][0] == pytest.approx(steps[1][0], rel=1e-4)  # only the batch is there yet
    assert steps[0][2] != pytest.approx(steps[1][2], rel=1e-4)
    memory = state(tmp_path / "with")["memory"]
    size = memory["filled"].item() // 4
    assert memory["queue"].shape[0] == 200 and memory["pointer"] == 4 * size and memory["calls"] == 4
    with pytest.raises(ConfigError, match="memory is 5, but must hold at least a batch"):
        train(out=tmp_path / "small", data=features, steps=4, memory=5, **SMALL)


def test_products_of_raw_embeddings_switch_their_normalisation_off(features: str, tmp_path: Path) -> None:
    for distance, normalises in (("dot", False), ("cosine", True)):
        config = RunConfig.create(data=features, plugins="contrastive", contrastive={"distance": distance}, steps=2)
        assert build_run_model(config.completed("features", 2, (12,)), (12,), "features").normalize == normalises
