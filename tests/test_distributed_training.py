"""`dmlcore train` in several processes: the records are those of one process, whatever happens to a process the run goes on."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from launched import processes_of
from PIL import Image
from test_webdataset import write_shard

from dmlcore import cli
from dmlcore.data import open_data
from dmlcore.errors import ConfigError
from dmlcore.serving import load
from dmlcore.serving.evaluation import EvaluationOptions, evaluate
from dmlcore.training import RunConfig, checkpoints, train
from dmlcore.training.agreement import draw_apart, facts_of_data
from dmlcore.training.folder import RunFolder
from dmlcore.training.loop import Training
from dmlcore.training.run import Run

SECONDS = 240
pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A table of small pictures: 24 classes of 8."""
    draws = np.random.default_rng(0)
    labels = np.repeat(np.arange(24), 8)
    centres = draws.uniform(size=(24, 12, 12, 3))
    x = np.clip(centres[labels] + draws.normal(size=(192, 12, 12, 3)) * 0.2, 0, 1)
    path = tmp_path_factory.mktemp("data") / "pictures.npz"
    np.savez(path, x=(x * 255).astype(np.uint8), y=labels)
    return path


def settings(pictures: Path, **values: Any) -> dict[str, Any]:
    """A run with everything that depends on the whole batch: batch statistics, changed pictures, a memory, mining."""
    return {
        "data": str(pictures),
        "model": "conv",
        "plugins": "ms,triplet,proxy_anchor",
        "transforms": "shift",
        "classes_per_batch": 5,
        "samples_per_class": 3,  # 15 samples: no even division
        "memory": 40,
        "weighting": "fixed",
        "optimizer": "sgd",  # Adam hides wrong scales, and blows rounding up
        "learning_rate": 0.01,
        "steps": 12,
        "eval_every": 4,
        "log_every": 2,
        "report": False,
        "device": "cpu",
        **values,
    }


def words(values: dict[str, Any]) -> list[str]:
    line = []
    for name, value in values.items():
        flag = "--" + name.replace("_", "-")
        line += [flag if value else f"--no-{flag[2:]}"] if isinstance(value, bool) else [flag, str(value)]
    return line


def command(*line: str) -> list[str]:
    return [sys.executable, "-P", "-m", "dmlcore", "train", *line]


def environment(**values: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **values}


def run(*line: str, **values: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*line), env=environment(**values), capture_output=True, text=True, timeout=SECONDS)


def numbers(record: Any, name: str = "") -> dict[str, float]:
    """All numbers of a record but times."""
    if isinstance(record, dict):
        return {key: n for part, value in record.items() for key, n in numbers(value, f"{name}.{part}").items()}
    is_number = isinstance(record, int | float) and not isinstance(record, bool) and "second" not in name
    return {name: float(record)} if is_number else {}


def records(folder: Path) -> list[dict[str, float]]:
    return [numbers(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def check_same(folder: Path, expected: Path, tolerance: float = 1e-5, least: int = 11) -> None:
    ours, theirs = records(folder), records(expected)
    assert len(ours) == len(theirs) >= least
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for name, number in b.items():
            assert abs(a[name] - number) <= tolerance * max(abs(number), 5e-2), (name, b[".step"], a[name], number)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As in the processes that are started: another number of threads rounds otherwise, and a rounding may turn a maximum."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def alone(pictures, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    train(RunConfig.create(**settings(pictures)), out=folder)
    return folder


@pytest.fixture(scope="module")
def long_alone(pictures, tmp_path_factory) -> Path:
    """A run that is long enough to be hit in the middle."""
    folder = tmp_path_factory.mktemp("long") / "run"
    train(RunConfig.create(**long_settings(pictures)), out=folder)
    return folder


def long_settings(pictures: Path) -> dict[str, Any]:
    return settings(pictures, steps=80, eval_every=5, learning_rate=0.001)


def test_two_processes_give_the_records_of_one(pictures, alone, tmp_path) -> None:
    done = run("--out", str(tmp_path / "run"), "--processes", "2", *words(settings(pictures)))
    assert done.returncode == 0, done.stderr
    check_same(tmp_path / "run", alone)
    assert done.stdout.count("Results and checkpoints") == 1 and "Warning" not in done.stderr
    result = json.loads((tmp_path / "run/result.json").read_text())
    ends = evaluate(load(tmp_path / "run"), how=EvaluationOptions(bootstrap=0)).result  # in one process
    assert result["metrics"] == ends["metrics"] and result["baselines"] == ends["baselines"]


def test_two_processes_make_the_keys_of_one(pictures, tmp_path) -> None:
    """A head for each task, the copy of the model that makes keys, and the memory of these."""
    names = "margin,sample_specific,class_shared,intra_class"
    values = settings(pictures, plugins=names, ensemble="heads", memory=0, weights="1,0.3,0.3,0.3", embedding_dim=8)
    train(RunConfig.create(**values), out=tmp_path / "alone")
    done = run("--out", str(tmp_path / "run"), "--processes", "2", *words(values))
    assert done.returncode == 0, done.stderr
    check_same(tmp_path / "run", tmp_path / "alone", 1e-4)  # rounding grows to 2e-5 in ten steps


@pytest.mark.slow
def test_shards_of_webdataset_and_workers_change_nothing(tmp_path) -> None:
    """Encoded pictures in tar files, which each process reads for its own samples, by other numbers of workers."""
    draws = np.random.default_rng(0)
    for shard in range(3):
        files = []
        for number in range(8 * 8):
            key, label = f"{number:03d}", 8 * shard + number % 8
            pixels = (draws.uniform(size=(12, 12, 3)) * 255).astype(np.uint8) // 2 + 10 * (label % 12)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            files += [(f"{key}.png", buffer.getvalue()), (f"{key}.cls", str(label).encode())]
        write_shard(tmp_path / "shards" / f"s-{shard}.tar", files)
    values = settings(tmp_path / "shards", steps=8)
    train(out=tmp_path / "alone", **values)
    for workers in (0, 1):
        folder = tmp_path / f"two-{workers}"
        done = run("--out", str(folder), "--processes", "2", *words({**values, "workers": workers}))
        assert done.returncode == 0, done.stderr
        check_same(folder, tmp_path / "alone", least=7)


@pytest.mark.slow
def test_four_processes_die_and_two_go_on(pictures, long_alone, tmp_path) -> None:
    folder, line = tmp_path / "run", words(long_settings(pictures))
    job = subprocess.Popen(command("--out", str(folder), "--processes", "4", *line), env=environment(), stderr=subprocess.PIPE)
    wait_for_step(folder, 6)
    began = time.monotonic()
    os.kill(processes_of(job.pid)[1], signal.SIGKILL)
    _, text = job.communicate(timeout=SECONDS)
    assert job.returncode == 128 + signal.SIGKILL and time.monotonic() - began < 30
    errors = [line for line in text.decode().splitlines() if "error" in line]
    assert any("was ended by signal 9" in line for line in errors) and not any("Traceback" in line for line in errors)
    done = run("--resume", str(folder), "--processes", "2")
    assert done.returncode == 0, done.stderr
    check_same(folder, long_alone, 1e-2)  # rounding grows on a long way, and turns answers round


@pytest.mark.slow
def test_a_signal_to_one_process_saves_and_ends_all(pictures, long_alone, tmp_path) -> None:
    folder, line = tmp_path / "run", words(long_settings(pictures))
    job = subprocess.Popen(
        command("--out", str(folder), "--processes", "2", *line), env=environment(), stderr=subprocess.PIPE, text=True
    )
    wait_for_step(folder, 5)
    os.kill(processes_of(job.pid)[1], signal.SIGTERM)
    _, text = job.communicate(timeout=SECONDS)
    assert job.returncode == 128 + signal.SIGTERM, text
    assert "interrupted after step" in text and "the checkpoint of step" in text
    done = run("--resume", str(folder))
    assert done.returncode == 0, done.stderr
    check_same(folder, long_alone, 1e-2)  # rounding grows on a long way, and turns answers round


@pytest.mark.slow
def test_a_stopped_process_ends_all_in_time(pictures, tmp_path) -> None:
    """The one that waits says so, and wakes the other, so that the launcher can end it."""
    folder, line = tmp_path / "run", words(long_settings(pictures) | {"steps": 4000, "timeout": "5s"})
    job = subprocess.Popen(
        command("--out", str(folder), "--processes", "2", *line), env=environment(), stderr=subprocess.PIPE, text=True
    )
    wait_for_step(folder, 6)
    began = time.monotonic()
    os.kill(processes_of(job.pid)[1], signal.SIGSTOP)
    _, text = job.communicate(timeout=SECONDS)
    assert job.returncode == 1 and time.monotonic() - began < 60
    errors = [line for line in text.splitlines() if "error" in line]
    assert len(errors) == 1 and "another of 2 processes did not answer in time (--timeout)" in errors[0], text


@pytest.mark.slow
def test_a_dead_process_is_started_again(pictures, long_alone, tmp_path) -> None:
    folder, line = tmp_path / "run", words(long_settings(pictures))
    flags = ("--out", str(folder), "--processes", "2", "--max-restarts", "1")
    job = subprocess.Popen(command(*flags, *line), env=environment(), stderr=subprocess.PIPE, text=True)
    wait_for_step(folder, 6)
    os.kill(processes_of(job.pid)[0], signal.SIGKILL)
    _, text = job.communicate(timeout=SECONDS)
    assert job.returncode == 0, text
    check_same(folder, long_alone, 1e-2)  # rounding grows on a long way, and turns answers round


@pytest.mark.slow
def test_processes_with_other_settings_are_refused(pictures, tmp_path) -> None:
    jobs = []
    for rank, rate in enumerate((0.01, 0.02)):
        place = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_ADDR": "localhost"}
        line = command("--out", str(tmp_path / "run"), *words(settings(pictures, learning_rate=rate)))
        env = environment(**place, MASTER_PORT=str(free_port()))
        jobs.append(subprocess.Popen(line, env=env, stderr=subprocess.PIPE, text=True))
    texts = [job.communicate(timeout=SECONDS)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [2, 2], texts
    assert "process 1 has other settings than process 0: 'learning_rate = 0.02' instead of" in texts[0]
    assert "error" not in texts[1] and not (tmp_path / "run/config.toml").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_goes_on_draws_numbers_of_its_own(rank, pictures, alone, tmp_path) -> None:
    folder = RunFolder(Path(shutil.copytree(alone, tmp_path / "run")))
    state = checkpoints.load(folder.checkpoints, "last")
    process = Run(RunConfig.read(folder.config), folder, is_resumed=True)
    process.processes = cast(Any, SimpleNamespace(rank=rank, is_first=True))
    Training(process, [], state)
    own, of_first = torch.get_rng_state(), state["random"]["torch"]
    assert torch.equal(own, of_first) == (rank == 0)
    for other in ((1, 0, 12), (1, 0, 11), (2, 0, 12), (1, 1, 12)):
        draw_apart(*other)
        assert torch.equal(own, torch.get_rng_state()) == (rank == 1 and other == (1, 0, 12))
    folder.unlock()


def test_other_data_have_another_checksum(pictures, tmp_path) -> None:
    with np.load(pictures) as file:
        x, y = file["x"], file["y"]
    np.savez(tmp_path / "same.npz", x=x, y=y)
    np.savez(tmp_path / "samples.npz", x=255 - x, y=y)
    np.savez(tmp_path / "labels.npz", x=x, y=np.roll(y, 1))
    before = facts_of_data(open_data(str(pictures)).train)
    same, *others = (facts_of_data(open_data(str(tmp_path / f"{name}.npz")).train) for name in ("same", "samples", "labels"))
    assert same == before and before not in others


@cache
def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def wait_for_step(folder: Path, step: int) -> None:
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        path = folder / "metrics.jsonl"
        if path.exists() and path.read_text().count('"total"') >= step:
            return
        time.sleep(0.02)
    raise AssertionError(f"no step {step} in {SECONDS} s")


def test_commands_that_cannot_be_shared_are_refused(monkeypatch, capsys) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["tune", "--data", "x"]) == 2
    assert "`dmlcore tune` was started in 2 processes, but works in one" in capsys.readouterr().err
    assert cli.main(["train", "--data", "glyphs", "--processes", "2"]) == 2
    assert (
        "process 1 of 2: --seeds, --folds and --processes start processes, but this is one of several"
        in capsys.readouterr().err
    )
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(ConfigError, match="WORLD_SIZE is 'many', but must be a whole number"):
        cli.launch.place()


def test_mistakes_are_told_once_before_processes_start(tmp_path, capsys) -> None:
    for line, words_of_error in (
        (["--processes", "0"], "processes is 0"),
        (["--max-restarts", "1"], "--max-restarts needs --out"),
        (["--processes", "2", "--timeout", "soon"], "timeout is 'soon'"),
        (["--processes", "2", "--seed", "-1"], "seed is -1"),
    ):
        assert cli.main(["train", "--data", "glyphs", *line]) == 2
        text = capsys.readouterr().err
        assert words_of_error in text and text.count("error") == 1
