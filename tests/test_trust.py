"""Code that nobody asked for is not run: files that a run's folder names, files of splits, compiled files beside sources."""

from __future__ import annotations

import importlib.util
import json
import marshal
import os
import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_files import feature_file

from dmlcore import cli, plugin_files, trust
from dmlcore.errors import ConfigError, DataError
from dmlcore.serving import TrainedRun
from dmlcore.training import RunConfig, train
from dmlcore.training.loop import Training

SHORT: dict[str, Any] = {"steps": 2, "eval_every": 1, "embedding_dim": 4, "compress": 0}
BODIES = {
    "loss": """
        from dmlcore.losses import Loss

        class Part(Loss):
            name = "part"

            def forward(self, embeddings, labels, *, references=None, reference_labels=None, own=None, relation=None):
                return embeddings.square().mean()
        """,
    "logger": """
        from dmlcore.training import Logger

        class Part(Logger):
            name = "quiet"
        """,
    "metric": """
        from dmlcore.evaluation import Metric

        class Part(Metric):
            name = "size"

            def __call__(self, embeddings, labels):
                return {"rows": float(len(embeddings))}
        """,
    "data": """
        import numpy as np
        from dmlcore.data import DataSource, FeatureStore, Table
        from dataclasses import dataclass

        class Part(DataSource):
            name = "drawn"

            @dataclass(frozen=True)
            class Options:
                shift: float = 0.0

            def load(self):
                x = np.random.default_rng(0).normal(size=(48, 6)) + self.options.shift
                labels = np.repeat(np.arange(12), 4)
                return Table("features", FeatureStore(x.astype(np.float32)), labels, list("abcdefghijkl"), (6,))
        """,
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data, and a file of each kind that leaves a mark when it is run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    feature_file(tmp_path / "data.npz")
    for kind, body in BODIES.items():
        write(tmp_path, kind, body)
    return tmp_path


def write(place: Path, kind: str, body: str) -> None:
    mark = f"open({str(place / (kind + '.ran'))!r}, 'a').write('x')\n"
    (place / f"{kind}.py").write_text(mark + textwrap.dedent(body))


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*words: object) -> tuple[int, str, str]:
        plugin_files._module.cache_clear()  # as in a new process
        status = cli.main([str(word) for word in words])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def forget(place: Path) -> None:
    """As if another user had made the runs, and nothing had been run yet."""
    shutil.rmtree(place / "state", ignore_errors=True)
    for mark in place.glob("*.ran"):
        mark.unlink()


def ran(place: Path) -> set[str]:
    return {path.stem for path in place.glob("*.ran")}


def one_line(err: str) -> str:
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    return line


def test_a_run_of_ones_own_is_used_without_a_question(place: Path, here: Callable[..., tuple[int, str, str]]) -> None:
    train(out="run", data="data.npz", plugins="./loss.py:Part", **SHORT)
    assert here("eval", "run")[0] == 0 and ran(place) == {"loss"}
    listed = (place / "state" / "dmlcore" / "trusted_plugins").read_text()
    assert listed == f'{trust.digest(str(place / "loss.py"))} "{place}/loss.py"\n'
    assert os.stat(place / "state" / "dmlcore" / "trusted_plugins").st_mode & 0o077 == 0


def test_a_foreign_run_asks_once(place: Path, here: Callable[..., tuple[int, str, str]]) -> None:
    train(out="run", data="data.npz", plugins="./loss.py:Part", **SHORT)
    forget(place)
    for words in (["eval", "run"], ["embed", "run", "--data", "data.npz", "--out", "e.npz"]):
        status, _, err = here(*words)
        line = one_line(err)
        assert status == 2 and f"the run in run names a loss in {place}/loss.py" in line and "--trust-plugins" in line
        assert not ran(place) and not (place / "state").exists()
    with pytest.raises(ConfigError, match="trusts_plugins=True"):
        TrainedRun("run")
    assert here("eval", "run", "--trust-plugins")[0] == 0 and ran(place) == {"loss"}
    assert here("eval", "run")[0] == 0  # once is enough
    write(place, "loss", BODIES["loss"].replace("mean()", "sum()"))  # until the file changes
    (place / "loss.ran").unlink()
    assert here("eval", "run")[0] == 2 and not ran(place)


def test_a_foreign_run_that_is_resumed_asks_too(
    place: Path, here: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: Training, batches: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Training, "step", stop)
        train(RunConfig.create(data="data.npz", plugins="ms", loggers="./logger.py:Part", **SHORT), out="run")
    forget(place)
    status, _, err = here("train", "--resume", "run")
    assert status == 2 and "names a logger in" in one_line(err) and not ran(place)
    assert here("train", "--resume", "run", "--trust-plugins")[0] == 0 and ran(place) == {"logger"}
    status, _, err = here("train", "--plugins", "ms", "--trust-plugins")
    assert status == 2 and "--trust-plugins is for --resume" in one_line(err)


def test_only_what_a_command_needs_is_run(place: Path, here: Callable[..., tuple[int, str, str]]) -> None:
    config = RunConfig.create(
        data="./data.py:Part", plugins="ms", loggers="./logger.py:Part", metrics="./metric.py:Part", drawn={"shift": 1}, **SHORT
    )
    result = train(config, out="run")
    forget(place)
    embed = ["embed", "run", "--data", "data.npz", "--out", "e.npz"]
    assert here(*embed)[0] == 0 and not ran(place), "a model without code of its own needs no consent"
    status, _, err = here("eval", "run", "--data", "data.npz")
    assert status == 2 and "names a metric in" in one_line(err) and not ran(place)
    status, _, err = here("eval", "run")
    assert status == 2 and "names a data in" in one_line(err) and not ran(place)
    status, out, err = here("eval", "run", "--json", "--trust-plugins")
    assert status == 0 and ran(place) == {"data", "metric"}
    assert json.loads(out)["metrics"] == result["metrics"]  # with the options of the data


def test_data_that_the_user_names_are_consented_to(place: Path, here: Callable[..., tuple[int, str, str]]) -> None:
    train(out="run", data="./data.py:Part", plugins="ms", **SHORT)
    forget(place)
    assert here("eval", "run", "--data", "./data.py:Part")[0] == 0


def test_files_of_splits_run_nothing(place: Path, here: Callable[..., tuple[int, str, str]]) -> None:
    assert here("splits", "ood", "--data", "./data.py:Part", "--out", "splits.json")[0] == 0
    stored = json.loads((place / "splits.json").read_text())
    assert stored["data"] == f"{place}/data.py:Part"
    forget(place)
    (place / "config.toml").write_text('plugins = "ms"\nsteps = 1\n')
    train_words = ["train", "--splits", "splits.json", "--plugins", "ms", "--steps", "1"]
    ood_words = [
        "ood",
        "run",
        "--splits",
        "splits.json",
        "--config",
        "config.toml",
        "--out",
        "out",
        "--seeds",
        "1",
        "--shots",
        "0",
    ]
    for words in (train_words, ood_words):
        status, _, err = here(*words)
        assert status == 2 and "no file of splits leads to running code" in one_line(err) and not ran(place)
    with pytest.raises(DataError, match="name it yourself: --data"):
        RunConfig.create(splits="splits.json")
    assert here("splits", "show", "splits.json")[0] == 0 and not ran(place)
    assert here(*train_words, "--data", "./data.py:Part", "--out", "run")[0] == 0 and ran(place) == {"data"}


def test_a_compiled_file_beside_the_source_is_not_run(place: Path, here: Callable[..., tuple[int, str, str]]) -> None:
    train(out="run", data="data.npz", plugins="./loss.py:Part", **SHORT)
    evil = compile(f"open({str(place / 'evil.ran')!r}, 'w')\n" + (place / "loss.py").read_text(), "loss.py", "exec")
    compiled = Path(importlib.util.cache_from_source(str(place / "loss.py")))
    compiled.parent.mkdir(exist_ok=True)
    flags = (1).to_bytes(4, "little")  # based on a hash that is not compared with anything
    compiled.write_bytes(importlib.util.MAGIC_NUMBER + flags + bytes(8) + marshal.dumps(evil))
    assert here("eval", "run")[0] == 0 and ran(place) == {"loss"}


def test_a_package_is_consented_to_with_all_its_files(place: Path, here: Callable[..., tuple[int, str, str]]) -> None:
    package = place / "package"
    package.mkdir()
    (package / "__init__.py").write_text("from .inner import Part\nPart.__module__ = __name__\n")
    (package / "inner.py").write_text((place / "loss.py").read_text())
    train(out="run", data="data.npz", plugins="./package/__init__.py:Part", **SHORT)
    assert here("eval", "run")[0] == 0
    (package / "inner.py").write_text((place / "loss.py").read_text() + "\nopen('evil.ran', 'w')\n")
    status, _, err = here("eval", "run")
    assert status == 2 and "names a loss in" in one_line(err) and "evil" not in ran(place)


def test_where_consent_cannot_be_kept_the_user_is_asked_again(
    place: Path, here: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "blocked").write_text("a file, no folder")
    monkeypatch.setenv("XDG_STATE_HOME", str(place / "blocked"))
    train(out="run", data="data.npz", plugins="./loss.py:Part", **SHORT)
    assert here("eval", "run")[0] == 2
    assert here("eval", "run", "--trust-plugins")[0] == 0
    assert here("eval", "run")[0] == 2
    monkeypatch.setenv("XDG_STATE_HOME", "relative")  # to be ignored, says the standard
    monkeypatch.setenv("HOME", str(place / "home"))
    trust.remember([str(place / "loss.py")])
    assert (place / "home" / ".local" / "state" / "dmlcore" / "trusted_plugins").exists() and not (place / "relative").exists()
    assert here("eval", "run")[0] == 0
