"""`dmlcore runs`: states, scores, the settings that differ, order and width."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from data_files import feature_file

from dmlcore.cli import main
from dmlcore.locks import FolderLock, is_locked
from dmlcore.training import Logger, train
from dmlcore.training.catalogue import differing, list_runs

SMALL = {"plugins": "ms", "steps": 4, "eval_every": 2, "classes_per_batch": 4, "embedding_dim": 4, "report": False}


class Stop(Logger):
    def step_ended(self, run: Any, record: dict[str, Any]) -> None:
        if record["step"] == 3:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs, one of them deeper, and one that was interrupted."""
    folder = tmp_path_factory.mktemp("runs")
    data = str(feature_file(folder / "data.npz"))
    train(data=data, out=folder / "first", **SMALL)
    more = {"seed": 1, "learning_rate": 0.01, "accumulate": 2, "patience": 9, "ms": {"alpha": 3.0}}
    train(data=data, out=folder / "deep" / "second", **more, **SMALL)
    with pytest.raises(KeyboardInterrupt):
        train(data=data, out=folder / "third", loggers=[Stop()], **{**SMALL, "plugins": "triplet"})
    return folder


def table(folder: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    assert main(["runs", str(folder), *flags]) == 0
    return capsys.readouterr().out


def test_states_scores_and_settings(runs: Path) -> None:
    rows = {run.name: run for run in list_runs(runs)}
    assert {name: run.state for name, run in rows.items()} == {
        "first": "finished",
        "deep/second": "finished",
        "third": "interrupted",
    }
    result = json.loads((runs / "first" / "result.json").read_text())
    assert rows["first"].test["map@r"] == result["metrics"]["test"]["map@r"] and rows["first"].step == 4
    assert rows["third"].test == {} and rows["third"].step == 3 and "map@r" in rows["third"].validation
    keys = differing(list(rows.values()))
    assert {"plugins", "learning_rate", "accumulate", "patience", "seed", "ms.alpha"} <= set(keys)
    assert "triplet.margin" not in keys and "report" not in keys, "a choice of losses says that itself"


def test_a_run_that_works_is_running(runs: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from dmlcore.locks import FolderLock;"
        " lock = FolderLock(Path(sys.argv[1])); print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-P", "-c", code, str(runs / "third")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "locked\n"
        assert {run.name: run.state for run in list_runs(runs)}["third"] == "running"
        process.communicate("")
    assert not is_locked(runs / "third")


def test_asking_takes_no_lock_away(runs: Path) -> None:
    lock = FolderLock(runs / "third")
    assert is_locked(runs / "third")
    code = "import sys; from pathlib import Path; from dmlcore.locks import is_locked; print(is_locked(Path(sys.argv[1])))"
    done = subprocess.run([sys.executable, "-P", "-c", code, str(runs / "third")], capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr
    lock.release()
    assert not is_locked(runs / "third") and not is_locked(runs)


def test_order(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def names(*flags: str) -> list[str]:
        return [run["name"] for run in json.loads(table(runs, capsys, "--json", *flags))["runs"]]

    scores = {run.name: run.test.get("map@r") for run in list_runs(runs)}
    best = sorted((name for name in scores if scores[name] is not None), key=lambda name: -scores[name])  # type: ignore[operator]
    assert names("--sort", "map@r") == names("--sort", "test MAP@R") == [*best, "third"]
    assert names("--sort", "learning_rate")[-1] == "deep/second" and names("--sort", "changed")[0] == "third"
    assert names() == sorted(names())
    assert main(["runs", str(runs), "--sort", "learning_rat"]) == 2
    assert "Did you mean 'learning_rate'?" in capsys.readouterr().err


@pytest.mark.parametrize("columns", [60, 80, 120, 200])
def test_nothing_is_cut_or_folded_within_a_word(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = table(runs, capsys)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= columns
    words = text.replace(",", " ").split()
    assert {"deep/second", "first", "third", "interrupted"} <= set(words) and "…" not in text
    assert ("learning_rate=0.01" in words) or ("learning_rate" in words and "0.01" in words)


def test_damaged_and_foreign_folders(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(runs / "first", tmp_path / "broken")
    (tmp_path / "broken" / "result.json").write_text("{")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.toml").write_text("[tool]\n")
    text = table(tmp_path, capsys)
    assert "damaged" in text and "result.json is damaged" in text and "other" not in text
    shutil.rmtree(tmp_path / "broken")
    assert "no run in" in table(tmp_path, capsys)
    assert main(["runs", str(tmp_path / "nope")]) == 2
    assert "there is no folder" in capsys.readouterr().err
