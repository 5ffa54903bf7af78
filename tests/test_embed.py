"""`dmlcore embed`: forms of files, order and identity of samples, and going on after the process was killed."""

from __future__ import annotations

import csv
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
from data_files import image_folder, save_image

import dmlcore
from dmlcore import cli
from dmlcore.data import open_data
from dmlcore.errors import ConfigError, DataError
from dmlcore.serving import embed, write_embeddings
from dmlcore.training import train

QUICK: dict[str, Any] = {"steps": 1, "eval_every": 1, "report": False, "embedding_dim": 8, "compress": 0}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("photos") / "all", classes=8, samples=4, mode="RGB", size=(16, 16))


@pytest.fixture(scope="module")
def run(photos: Path) -> Path:
    train(data=str(photos), out=photos.parent / "run", classes_per_batch=2, **QUICK)
    return photos.parent / "run"


@pytest.fixture(scope="module")
def model(run: Path) -> Any:
    return dmlcore.load(run, device="cpu")


def test_a_flat_folder_of_pictures_and_one_picture(
    run: Path, model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(5):
        save_image(tmp_path / "flat" / f"{number}.png", seed=number, mode="RGB", size=(20, 18))
    (tmp_path / "flat" / "broken.png").write_bytes(b"no picture")
    assert cli.main(["embed", str(run), str(tmp_path / "flat"), "--out", str(tmp_path / "e.npz")]) == 0
    done = capsys.readouterr()
    assert "5 embeddings of 8" in done.out and "1 image that cannot be read was skipped: 'broken.png'" in done.err
    with np.load(tmp_path / "e.npz") as file:
        assert sorted(file.files) == ["model", "path", "row", "split", "x"]
        assert [Path(path).name for path in file["path"]] == [f"{number}.png" for number in range(5)]
        assert np.array_equal(file["x"], model.encode(list(file["path"]))) and file["row"].tolist() == list(range(5))
    one = tmp_path / "flat" / "3.png"
    assert cli.main(["embed", str(run), str(one), "--out", str(tmp_path / "one.npy"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 1
    assert np.array_equal(np.load(tmp_path / "one.npy"), model.encode([one]))
    assert list(csv.reader((tmp_path / "one.csv").open())) == [["row", "path", "split"], ["0", str(one), "all"]]


def test_every_form_holds_the_same(model: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow", reason="Parquet and Arrow need pyarrow")
    monkeypatch.setattr(embed, "_BLOCK", 8)
    monkeypatch.setattr("dmlcore.serving.embedding_files._CHUNK", 5)
    expected = model.embed(str(photos), batch_size=4)
    assert expected.splits is not None and set(expected.splits) >= {"train", "test"}
    for ending in ("npz", "npy", "parquet", "arrow"):
        result = write_embeddings(model, str(photos), tmp_path / f"e.{ending}", batch_size=4)
        assert result["samples"] == 32 and sum(result["parts"].values()) == 32
    assert np.array_equal(np.load(tmp_path / "e.npy", mmap_mode="r"), expected.embeddings)
    with np.load(tmp_path / "e.npz") as file:
        assert np.array_equal(file["x"], expected.embeddings)
        assert file["path"].tolist() == expected.paths and file["class_name"].tolist() == expected.labels
        assert file["split"].tolist() == expected.splits
    rows = list(csv.DictReader((tmp_path / "e.csv").open()))
    assert [row["path"] for row in rows] == expected.paths and [row["label"] for row in rows] == expected.labels
    for ending in ("parquet", "arrow"):  # as data again
        table = open_data(tmp_path / f"e.{ending}", options={"features": "embedding"})
        assert table.sample_shape == (8,)
        part = table.train
        assert [part.class_names[label] for label in part.dense_labels] == [expected.labels[row] for row in part.rows]
        assert np.array_equal(part.batch(range(len(part))).numpy(), expected.embeddings[part.rows])
    assert not list(tmp_path.glob(".*"))


def test_what_is_refused(run: Path, model: Any, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for out in ("e.txt", "e"):
        with pytest.raises(ConfigError, match="must end in"):
            write_embeddings(model, str(photos), tmp_path / out)
    (tmp_path / "e.csv").write_text("kept")
    with pytest.raises(ConfigError, match=r"e\.csv exists already"):
        write_embeddings(model, str(photos), tmp_path / "e.npy")
    for words, message in (
        (["--out", "e.npz"], "nothing to embed is given"),
        ([str(photos), "--data", str(photos), "--out", "e.npz"], "leave one out"),
        (["nowhere", "--out", str(tmp_path / "e.npz")], "there is no data set 'nowhere'"),
        (["nowhere.png", "--out", str(tmp_path / "e.npz")], "there is no file 'nowhere.png'"),
    ):
        assert cli.main(["embed", str(run), *words]) == 2
        assert message in capsys.readouterr().err
    assert cli.main(["embed", str(run), str(photos), "--folder.memory_mb", "0", "--out", str(tmp_path / "e.npz")]) == 0


def test_pictures_that_break_while_they_are_read(model: Any, photos: Path, tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "p", classes=2, samples=3, mode="RGB", size=(16, 16))
    parts = model.parts(str(folder), {"memory_mb": 0})
    for path in (parts.paths[1], parts.paths[4]):
        Path(path).write_bytes(b"now it is broken")
    expected = model.encode([parts.paths[row] for row in (0, 2, 3, 5)])
    model.parts, real = lambda data, options: parts, model.parts
    try:
        result = write_embeddings(model, "p", tmp_path / "e.npz")
        write_embeddings(model, "p", tmp_path / "e.npy")
        for path in parts.paths:
            Path(path).unlink()
        with pytest.raises(DataError, match="none of 6 samples can be read"):
            write_embeddings(model, "p", tmp_path / "none.npz")
    finally:
        model.parts = real
    assert result["samples"] == 4 and any("2 samples that cannot be read were left out" in note for note in result["notes"])
    with np.load(tmp_path / "e.npz") as file:
        assert np.allclose(file["x"], expected, atol=1e-6) and file["row"].tolist() == [0, 2, 3, 5]
    assert np.allclose(np.load(tmp_path / "e.npy"), expected, atol=1e-6)


_SLOW = """
import sys, time
from dmlcore import cli
from dmlcore.serving import embed, growing
embed._BLOCK = 8
append = growing.GrowingMatrix.append
def slow(self, block, failed):
    append(self, block, failed)
    time.sleep(float(sys.argv[1]))
growing.GrowingMatrix.append = slow
sys.exit(cli.main(["embed", *sys.argv[2:], "--batch-size", "4"]))
"""


def test_it_goes_on_after_an_interruption(model: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed, "_BLOCK", 8)
    append, notes = embed.GrowingMatrix.append, list[str]()

    def interrupted(self: Any, block: np.ndarray, failed: dict[int, str]) -> None:
        append(self, block, failed)
        if self.rows == 16:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(embed.GrowingMatrix, "append", interrupted)
        write_embeddings(model, str(photos), tmp_path / "e.npy", batch_size=4)
    assert not (tmp_path / "e.npy").exists()
    write_embeddings(model, str(photos), tmp_path / "e.npy", batch_size=4, note=notes.append)
    assert notes == ["16 embeddings are there already, intact: going on from these"]
    assert np.array_equal(np.load(tmp_path / "e.npy"), model.embed(str(photos), batch_size=4).embeddings)


@pytest.mark.slow
def test_it_goes_on_after_kill_9(model: Any, run: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "e.npy"
    words = [str(run), str(photos), "--out", str(out)]
    with subprocess.Popen([sys.executable, "-P", "-c", _SLOW, "60", *words], stderr=subprocess.DEVNULL) as process:
        part, limit = tmp_path / ".e.npy.part", time.monotonic() + 60
        progress, values = part / "progress.jsonl", part / "rows.f32"
        while not (progress.exists() and progress.read_bytes().count(b"\n") > 1) and time.monotonic() < limit:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    assert not out.exists()
    with values.open("ab") as file:
        file.write(b"half a row")  # as a block that was cut off
    done = subprocess.run([sys.executable, "-P", "-c", _SLOW, "0", *words], capture_output=True, text=True)
    assert done.returncode == 0 and "8 embeddings are there already, intact" in done.stderr, done.stderr
    assert np.array_equal(np.load(out), model.embed(str(photos), batch_size=4).embeddings)
    assert not list(tmp_path.glob(".*"))


def test_rows_that_are_damaged_or_of_another_model_are_not_taken(tmp_path: Path) -> None:
    from dmlcore.serving.growing import GrowingMatrix

    notes: list[str] = []
    block = np.arange(12, dtype=np.float32).reshape(4, 3)
    with GrowingMatrix(tmp_path / "m", 3, {"model": "a"}, notes.append) as matrix:
        matrix.append(block, {})
        matrix.append(block + 1, {2: "no picture"})
        with pytest.raises(ConfigError, match="in use"):
            done = subprocess.run(
                [sys.executable, "-P", "-c", _OTHER, str(tmp_path / "m")], capture_output=True, text=True, check=False
            )
            raise ConfigError(done.stderr)
    with GrowingMatrix(tmp_path / "m", 3, {"model": "a"}, notes.append) as matrix:
        assert matrix.rows == 8 and matrix.failed == {6: "no picture"}
        assert np.array_equal(matrix.values(), np.concatenate([block, block + 1]))
    with (tmp_path / "m" / "rows.f32").open("r+b") as file:
        file.seek(4 * 3 * 5)
        file.write(b"\x01")
    with GrowingMatrix(tmp_path / "m", 3, {"model": "a"}, notes.append) as matrix:
        assert matrix.rows == 4 and np.array_equal(matrix.values(), block)
    with GrowingMatrix(tmp_path / "m", 3, {"model": "b"}, notes.append) as matrix:
        assert matrix.rows == 0
        matrix.remove()
    assert not (tmp_path / "m").exists()
    assert "8 embeddings are there" in notes[0] and "begun anew" in notes[-1]


_OTHER = """
import sys
from pathlib import Path
from dmlcore.serving.growing import GrowingMatrix
GrowingMatrix(Path(sys.argv[1]), 3, {"model": "a"}, print)
"""
