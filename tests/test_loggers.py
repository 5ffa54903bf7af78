"""The built-in loggers, each with its real package where that is installed: numbers, resumption, ends."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from data_files import feature_file

from dmlcore.cli import main
from dmlcore.errors import ConfigError
from dmlcore.training import Logger, RunConfig, SeriesLogger, flat_numbers, train

SMALL = {
    "plugins": "ms,triplet",
    "steps": 6,
    "eval_every": 3,
    "log_every": 2,
    "classes_per_batch": 4,
    "embedding_dim": 4,
    "report": False,
}


class Stop(Logger):
    def step_ended(self, run: Any, record: dict[str, Any]) -> None:
        if record["step"] == 4:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(feature_file(tmp_path_factory.mktemp("data") / "data.npz"))


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def interrupted_and_resumed(data: str, out: Path, loggers: str, **options: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(RunConfig.create(data=data, loggers=loggers, **options, **SMALL), out=out, loggers=[Stop()])
    train(resume=out)


def test_numbers_of_a_record() -> None:
    record = {"kind": "step", "step": 3, "total": 1, "bad": float("nan"), "is_best": True, "terms": {"ms": 0.5, "x": None}}
    assert flat_numbers(record) == {"total": 1.0, "terms/ms": 0.5}


def test_the_table_has_all_columns_and_rows(data: str, tmp_path: Path) -> None:
    interrupted_and_resumed(data, tmp_path / "run", "csv", spreadsheet={"every": 2})
    with open(tmp_path / "run" / "steps.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    steps = {record["step"]: record for record in records(tmp_path / "run", "step")}
    assert [int(row["step"]) for row in rows] == [2, 4, 6]
    for row in rows:
        assert float(row["terms/ms"]) == steps[int(row["step"])]["terms"]["ms"]
        assert None not in row and float(row["loss_gradient_norms/triplet"]) > 0, "columns that come later are there"


def test_columns_that_come_later(data: str, tmp_path: Path) -> None:
    train(RunConfig.create(data=data, loggers="spreadsheet", **SMALL), out=tmp_path / "run")
    with open(tmp_path / "run" / "steps.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [bool(row["loss_gradient_norms/ms"]) for row in rows] == [False, True] * 3


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_package_is_one_line(
    name: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda package, *rest: None if package == name else find(package, *rest))
    assert main(["train", "--data", data, "--loggers", name, "--steps", "1", "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert f"pip install {name}" in error and "Traceback" not in error and not (tmp_path / "run").exists()


def test_a_folder_of_that_name_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Some(SeriesLogger):
        name, package = "some", "a_folder_without_code"

    (tmp_path / "a_folder_without_code").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="pip install"):
        Some()


def test_tensorboard(data: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    interrupted_and_resumed(data, tmp_path / "run", "tensorboard")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    steps = records(tmp_path / "run", "step")
    series = events.Scalars("train/terms/ms")
    assert [event.step for event in series] == [record["step"] for record in steps] == [1, 2, 3, 4, 5, 6]
    assert [event.value for event in series] == pytest.approx([record["terms"]["ms"] for record in steps])
    evaluations = records(tmp_path / "run", "evaluation")
    assert [event.value for event in events.Scalars("validation/map@r")] == pytest.approx([e["map@r"] for e in evaluations])
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert [event.value for event in events.Scalars("test/map@r")] == pytest.approx([result["metrics"]["test"]["map@r"]])


def test_wandb_offline(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    train(RunConfig.create(data=data, loggers="wandb", wandb={"every": 2}, **SMALL), out=tmp_path / "run")
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    assert file.stat().st_size > 1000
    content = file.read_bytes()
    for name in (b"train/total", b"validation/map@r", b"test/map@r", b"learning_rate"):
        assert name in content, name
    assert "warning" not in capfd.readouterr().err


def test_mlflow_in_a_folder(data: str, tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    store = str(tmp_path / "mlruns")
    interrupted_and_resumed(data, tmp_path / "run", "mlflow", mlflow={"every": 1, "uri": store})
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("dmlcore")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.data.params["plugins"] == "ms, triplet"
    history = client.get_metric_history(run.info.run_id, "train/terms/ms")
    steps = records(tmp_path / "run", "step")
    assert {m.step: m.value for m in history} == {record["step"]: record["terms"]["ms"] for record in steps}
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert run.data.metrics["test/map_at_r"] == pytest.approx(result["metrics"]["test"]["map@r"])
