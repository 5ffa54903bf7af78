"""Runs that are stopped, cut off, changed or shared: nothing is lost, and nothing wrong goes unsaid."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import dmlcore.files
from dmlcore.cli import main
from dmlcore.errors import ConfigError, DmlcoreError, Interrupted, TrainingError
from dmlcore.interruption import Interruption
from dmlcore.locks import FolderLock
from dmlcore.seals import SealError, check_archive, check_archive_file, seal, seal_archive, unseal
from dmlcore.training import checkpoints, train

SMALL: dict[str, Any] = {
    "plugins": "ms",
    "steps": 4,
    "eval_every": 2,
    "warmup": 2,
    "compress": 0,
    "embedding_dim": 8,
    "classes_per_batch": 4,
    "samples_per_class": 2,
    "model": "mlp",
}
FLAGS = [word for key, value in SMALL.items() for word in (f"--{key.replace('_', '-')}", str(value))]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "features.npz"
    generator, labels = np.random.default_rng(0), np.repeat(np.arange(20), 6)
    np.savez(path, x=(generator.normal(size=(120, 5)) + labels[:, None]).astype(np.float32), y=labels)
    return str(path)


@pytest.fixture(scope="module")
def finished(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    train(out=out, data=data, **SMALL)
    return out


def outcome(folder: Path) -> tuple[Any, ...]:
    """Everything that must not depend on how often a run was stopped: records without times, weights, metrics."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    records = [{key: value for key, value in line.items() if key not in ("seconds", "images_per_second")} for line in lines]
    weights = []
    for name in ("best", "last"):
        state = checkpoints.load(folder / "checkpoints", name)
        buffer = io.BytesIO()
        torch.save([state["step"], state["model"], state["ensemble"], state.get("best_step")], buffer)
        weights.append(buffer.getvalue())
    result = json.loads((folder / "result.json").read_text())
    return records, weights, result["metrics"], result["chosen_step"]


class _Stop(BaseException):
    """As sudden as a kill: nothing handles it, and no `finally` that writes is trusted."""


OPERATIONS = ("open", "os.replace", "os.link", "os.fsync", "os.truncate", "os.unlink")


@contextlib.contextmanager
def stopped_at(number: int, action: Any) -> Iterator[list[int]]:
    """Calls `action` before the file operation of that number. Gives the count."""
    count, before = [0], {}

    def counted(function: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            count[0] += 1
            if count[0] == number:
                action()
            return function(*arguments, **named)

        return call

    import builtins

    def opening(file: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        if any(letter in mode for letter in "wa+x"):
            count[0] += 1
            if count[0] == number:
                action()
        return original(file, mode, *arguments, **named)

    original = builtins.open
    for name in OPERATIONS[1:]:
        before[name] = getattr(os, name[3:])
        setattr(os, name[3:], counted(before[name]))
    builtins.open = opening  # type: ignore[assignment]
    try:
        yield count
    finally:
        builtins.open = original
        for name, function in before.items():
            setattr(os, name[3:], function)


def count_of_operations(data: str, tmp_path: Path) -> int:
    with stopped_at(-1, None) as count:
        train(out=tmp_path / "counted", data=data, **SMALL)
    return count[0]


def _raise_stop() -> None:
    raise _Stop


def _full() -> None:
    raise OSError(28, "No space left on device")


def _two_interrupts() -> None:
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.001)


@pytest.mark.parametrize("action", [_raise_stop, _full, _two_interrupts], ids=["stop", "full disk", "two interrupts"])
def test_a_run_ends_the_same_wherever_it_is_stopped(action: Any, data: str, finished: Path, tmp_path: Path) -> None:
    """At every file operation once. It is resumed, or begun again where it had not begun, and ends bit for bit the same."""
    expected, total = outcome(finished), count_of_operations(data, tmp_path)
    assert total > 30
    for number in range(1, total + 1):
        out = tmp_path / f"run{number}"
        with contextlib.suppress(_Stop, DmlcoreError, KeyboardInterrupt), stopped_at(number, action):
            train(out=out, data=data, **SMALL)
        if not (out / "config.toml").exists():
            train(out=out, data=data, **SMALL)  # the folder can be used again
        elif not (out / "result.json").exists():
            train(resume=out)
        assert outcome(out) == expected, number
        assert not list(out.rglob("*.tmp")) and not list(out.rglob("*.new.pt")), number
        shutil.rmtree(out)


def test_two_interrupts_while_the_best_checkpoint_is_written(data: str, tmp_path: Path, monkeypatch: Any) -> None:
    write = dmlcore.files.write_atomically

    def interrupted_write(path: Path, content: Any) -> None:
        if path.name == "best.new.pt":
            _two_interrupts()
        write(path, content)

    monkeypatch.setattr(checkpoints, "write_atomically", interrupted_write)
    with pytest.raises(Interrupted):
        train(out=tmp_path / "run", data=data, **SMALL)
    state = checkpoints.load(tmp_path / "run" / "checkpoints", "last")
    best = checkpoints.load(tmp_path / "run" / "checkpoints", "best")
    assert state["best_step"] == best["step"] == state["step"] == 0


def _unfinished(finished: Path, tmp_path: Path) -> Path:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / "result.json").unlink()
    return out


def test_a_crash_between_two_renames(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = _unfinished(finished, tmp_path)
    folder = out / "checkpoints"
    (folder / "last.pt").rename(folder / "last.new.pt")
    assert main(["train", "--resume", str(out)]) == 0
    assert "goes on from last.new.pt, the newest intact checkpoint, of step 4" in " ".join(capsys.readouterr().err.split())
    assert outcome(out) == outcome(finished)


def test_a_run_with_steps_but_no_checkpoint_is_not_begun_again(finished: Path, tmp_path: Path) -> None:
    out = _unfinished(finished, tmp_path)
    shutil.rmtree(out / "checkpoints")
    (out / "checkpoints").mkdir()
    with pytest.raises(TrainingError, match=r"metrics\.jsonl has 4 steps, but .* has no checkpoint"):
        train(resume=out)


def test_the_best_checkpoint_is_the_one_that_the_state_names(finished: Path, tmp_path: Path) -> None:
    out = _unfinished(finished, tmp_path)
    folder = out / "checkpoints"
    state = checkpoints.load(folder, "last")
    checkpoints.save(folder, "last", {**state, "best_step": 2, "step": 4})
    checkpoints.save(folder, "best", {**checkpoints.load(folder, "best"), "step": 0})
    checkpoints.forget_best_before(folder)
    with pytest.raises(TrainingError, match=r"of step 2, but in .* best\.pt is of step 0"):
        train(resume=out)


@pytest.mark.parametrize("name", ["best", "last"])
def test_flipped_bits_are_found(name: str, finished: Path, tmp_path: Path) -> None:
    out = _unfinished(finished, tmp_path)
    path = out / "checkpoints" / f"{name}.pt"
    content, generator = path.read_bytes(), random.Random(0)
    for _ in range(200):
        changed = bytearray(content)
        changed[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(TrainingError, match="damaged|is no checkpoint of this version"):
            checkpoints.load(path.parent, name)
    for size in (0, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(TrainingError, match="damaged"):
            checkpoints.load(path.parent, name)


def test_embeddings_carry_a_checksum(finished: Path, tmp_path: Path, data: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "embeddings.npz"
    assert main(["embed", str(finished), "--data", data, "--out", str(out)]) == 0
    assert check_archive_file(out) and check_archive(out.read_bytes())
    assert np.load(out)["x"].shape[1] == 8  # any reader opens it
    content = bytearray(out.read_bytes())
    content[len(content) // 3] ^= 4
    out.write_bytes(content)
    capsys.readouterr()
    assert main(["train", "--data", str(out), "--plugins", "ms", "--steps", "1"]) == 2
    error = capsys.readouterr().err
    assert "checksum is wrong" in " ".join(error.split()) and "Traceback" not in error


def test_seals() -> None:
    buffer = io.BytesIO()
    np.savez(buffer, x=np.arange(5))
    assert not check_archive(buffer.getvalue())
    seal_archive(buffer)
    content = buffer.getvalue()
    assert check_archive(content) and np.load(io.BytesIO(content))["x"].tolist() == list(range(5))
    for position in range(len(content) - 64):
        changed = bytearray(content)
        changed[position] ^= 16
        with contextlib.suppress(SealError):
            assert not check_archive(changed)  # the mark itself was hit
    sealed = json.loads(json.dumps(seal({"a": [1, 2.5, None], "b": {"ä": "\n"}}), indent=3))
    assert unseal(sealed) == ({"a": [1, 2.5, None], "b": {"ä": "\n"}}, True)
    assert unseal({"a": 1}) == ({"a": 1}, False)
    with pytest.raises(SealError):
        unseal({**sealed, "a": [1, 2.5]})


def test_another_process_in_the_folder(finished: Path, tmp_path: Path) -> None:
    out = _unfinished(finished, tmp_path)
    code = (
        "import sys, pathlib; from dmlcore.locks import FolderLock;"
        f"lock = FolderLock(pathlib.Path({str(out)!r})); print('locked', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "locked\n"
        with pytest.raises(ConfigError, match=rf"is in use by process {other.pid} on \S+ since \d{{4}}-"):
            train(resume=out)
    finally:
        other.kill()
        other.wait()
    train(resume=out)  # the system has released it


def test_a_file_system_that_cannot_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.lockf", refuse)
    notes: list[str] = []
    FolderLock(tmp_path, notes.append).release()
    assert len(notes) == 1 and "cannot be locked (No locks available)" in notes[0]


def test_a_run_that_cannot_go_on_keeps_its_result(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "run"))
    kept = [out / "result.json", out / "report.html"]
    for part in ("start._divide", "run.Run.restore"):
        with monkeypatch.context() as patch:
            patch.setattr(f"dmlcore.training.{part}", _refuse)
            with pytest.raises(ConfigError, match="refused"):
                train(resume=out, steps=6)
        assert all(path.exists() for path in kept)


def _refuse(*_: Any) -> None:
    raise ConfigError("refused")


def test_other_settings_beside_resume(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = _unfinished(finished, tmp_path)
    for flags in (["--seed", "1"], ["--learning-rate", "0.1"], ["--plugins", "triplet"]):
        assert main(["train", "--resume", str(out), *flags]) == 2
        assert f"{flags[0]} cannot be given with --resume" in " ".join(capsys.readouterr().err.split())
    assert main(["train", "--resume", str(out), "--steps", "3"]) == 2
    assert "has done 4 steps already, more than 3" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(ConfigError, match="seed cannot be changed"):
        train(resume=out, seed=1)


@pytest.mark.parametrize(
    "before, after, told",
    [
        ("seed = 0", "seed = 1", "seed = 1 instead of 0"),
        ("learning_rate = 0.001", "learning_rate = 0.01", "learning_rate = 0.01 instead of 0.001"),
        ("alpha = 2.0", "alpha = 3.0", "ms.alpha = 3.0 instead of 2.0"),
    ],
)
def test_an_edited_configuration(before: str, after: str, told: str, finished: Path, tmp_path: Path) -> None:
    out = _unfinished(finished, tmp_path)
    text = (out / "config.toml").read_text()
    assert before in text
    (out / "config.toml").write_text(text.replace(before, after))
    with pytest.raises(ConfigError, match="has changed since the run was made: " + told):
        train(resume=out)


def test_more_steps(data: str, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    with pytest.raises(ConfigError, match="is complete"):
        train(resume=out)
    result = train(resume=out, steps=6)
    assert result["steps"] == 6 and "steps = 6" in (out / "config.toml").read_text()
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines() if '"step", ' in line]
    assert steps == sorted(steps)


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_signals_end_a_process_like_an_interrupt(number: int, status: int, data: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "dmlcore", "train", "--data", data, "--out", str(out), *FLAGS]
    command[command.index("--steps") + 1] = "1000000"
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # the tests may run below nohup
    )
    deadline = time.monotonic() + 60
    while not (out / "metrics.jsonl").exists() or '"step": 3' not in (out / "metrics.jsonl").read_text():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == status
    assert "Continue by: dmlcore train --resume" in " ".join(error.split()) and "Traceback" not in error
    last = checkpoints.load(out / "checkpoints", "last")["step"]
    steps = [record["step"] for record in map(json.loads, (out / "metrics.jsonl").read_text().splitlines())]
    assert max(steps) == last


def test_stop_after(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    flags = [*FLAGS, "--stop-after", "1s"]
    flags[flags.index("--steps") + 1] = "1000000"
    assert main(["train", "--data", data, "--out", str(out), *flags]) == 0
    error = " ".join(capsys.readouterr().err.split())
    assert "its time of 1s is up: stopped after step" in error and "Continue by: dmlcore train --resume" in error
    step = checkpoints.load(out / "checkpoints", "last")["step"]
    assert 0 < step < 1000000 and not (out / "result.json").exists()
    assert main(["train", "--resume", str(out), "--steps", str(step + 1), "--stop-after", "none"]) == 0
    for wrong in ("soon", "0", "1h1d", "-5m"):
        assert main(["train", "--data", data, "--stop-after", wrong]) == 2
        assert "must be a time such as 3h50m" in " ".join(capsys.readouterr().err.split()) or wrong.startswith("-")


def test_interruptions() -> None:
    interruption, done = Interruption(), []
    with pytest.raises(Interrupted) as error, interruption.installed():
        with interruption.after():
            with interruption.held():
                _two_interrupts()
                done.append("write")
            done.append("step")
    assert done == ["write", "step"] and error.value.status == 130
    with pytest.raises(Interrupted), interruption.installed(), interruption.after():
        _two_interrupts()  # the second one does not wait
        raise AssertionError
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as below nohup
    try:
        with interruption.installed():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_temporary_files_of_dead_processes(finished: Path, tmp_path: Path) -> None:
    out = _unfinished(finished, tmp_path)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = out / "checkpoints" / f".last.new.pt.{dead.pid}.tmp"
    left.write_bytes(b"half")
    train(resume=out)
    assert not left.exists()


def test_a_damaged_line_of_records(finished: Path, tmp_path: Path) -> None:
    out = _unfinished(finished, tmp_path)
    lines = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    (out / "metrics.jsonl").write_text("".join([lines[0], lines[1][:20] + "\n", *lines[2:]]))
    with pytest.raises(TrainingError, match=r"line 2 of .*metrics\.jsonl is damaged"):
        train(resume=out)


@pytest.mark.parametrize("change", ["digit", "cut", "gone", "more"])
def test_changed_records(change: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = _unfinished(finished, tmp_path)
    path = out / "metrics.jsonl"
    content = path.read_bytes()
    if change == "gone":
        path.unlink()
    else:
        path.write_bytes(
            {"digit": content.replace(b'"step": 3', b'"step": 2'), "cut": content[:-30], "more": content * 2}[change]
        )
    status = main(["train", "--resume", str(out)])
    error = " ".join(capsys.readouterr().err.split())
    if change in ("digit", "cut"):
        what = "bytes have changed" if change == "digit" else f"it has {len(content) - 30} bytes, not {len(content)}"
        assert status == 1 and f"is not as the checkpoint knows it ({what}). Bring it back, or remove it" in error
        path.unlink()
        assert main(["train", "--resume", str(out)]) == 0
    else:
        assert status == 0 and ("the run goes on without the records of its earlier steps" in error) == (change == "gone")
    assert change != "more" or path.read_bytes() == content


def test_an_edited_configuration_is_not_evaluated(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    text = (out / "config.toml").read_text()
    (out / "config.toml").write_text(text.replace("embedding_dim = 8", "embedding_dim = 9"))
    assert main(["eval", str(out)]) == 2
    assert "embedding_dim = 9 instead of 8" in " ".join(capsys.readouterr().err.split())
    (out / "config.toml").write_text(text.replace("[data]\n", "[data]\nworkers = 1\n"))
    assert main(["eval", str(out)]) == 0


def test_a_killed_data_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    from dmlcore.data.datasets import LabelledDataset
    from dmlcore.data.loading import batches

    class Deadly:
        in_memory = False
        dense_labels = np.zeros(8, dtype=np.int64)

        def batch(self, indices: Any, **_: Any) -> Any:
            os.kill(os.getpid(), signal.SIGKILL)

    dataset: LabelledDataset = Deadly()  # type: ignore[assignment]
    with pytest.raises(TrainingError, match=r"a process that loads data has died .*Try fewer --workers"):
        next(batches(dataset, [[0, 1], [2, 3]], workers=1))


def test_a_signal_to_all_processes_of_a_job(tmp_path: Path) -> None:
    """A batch system ends the data workers too, which the last step still needs."""
    generator = np.random.default_rng(0)
    for label in range(10):
        (tmp_path / "photos" / str(label)).mkdir(parents=True)
        for number in range(6):
            pixels = generator.integers(0, 255, (200, 200, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / str(label) / f"{number}.png")
    out = tmp_path / "run"
    command = [sys.executable, "-m", "dmlcore", "train", "--data", "photos", "--out", str(out), *FLAGS]
    command += ["--image-size", "32", "--workers", "2", "--folder.memory-mb", "0"]
    command[command.index("--steps") + 1], command[command.index("--model") + 1] = "1000000", "conv"
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 90
    while not (out / "metrics.jsonl").exists() or '"step": 3' not in (out / "metrics.jsonl").read_text():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143 and "Continue by: dmlcore train --resume" in " ".join(error.split()), error
    assert error.count("error: ") == 1  # what it says, and nothing else
