"""The split that a run keeps: whatever happens to the data, no class that was trained on is held out."""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_files import image_folder, save_image

from dmlcore import cli
from dmlcore.data import RecordedSplit, load_table, open_data
from dmlcore.errors import DataError
from dmlcore.serving import TrainedRun
from dmlcore.training import start, train
from dmlcore.training.loop import Training

SMALL: dict[str, Any] = {"plugins": "ms", "steps": 4, "eval_every": 2, "embedding_dim": 8, "compress": 0}


def table(names: list[str], samples: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Features that follow from the name of their class, so that a class has the same ones in every file."""
    x = [np.random.default_rng(zlib.crc32(name.encode())).normal(size=(samples, 8)) for name in names]
    return np.concatenate(x).astype(np.float32), np.repeat(names, samples)


NAMES = [f"class {number:02}" for number in range(1, 41)]


def save(path: Path, names: list[str] = NAMES, *, order: np.ndarray | None = None) -> Path:
    x, y = table(names)
    order = np.arange(len(y)) if order is None else order
    np.savez(path, x=x[order], y=y[order])
    return path


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Path, Path, dict[str, Any]]:
    """Data, the run, and the result."""
    data = save(tmp_path / "data.npz")
    return data, tmp_path / "run", train(out=tmp_path / "run", data=str(data), **SMALL)


def interrupted(monkeypatch: pytest.MonkeyPatch, at: int = 2, **values: Any) -> None:
    """Train up to the first checkpoint behind a step, and stop there."""
    real = Training.step

    def step(self: Training, batches: Any) -> None:
        if self.run.step == at:
            raise KeyboardInterrupt
        real(self, batches)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Training, "step", step)
        train(**values)


def test_an_added_class_is_counted_and_left_out(trained: tuple[Path, Path, dict[str, Any]]) -> None:
    data, run, result = trained
    before = TrainedRun(run).open()
    drawn = open_data(str(data))
    assert before.test.class_names == drawn.test.class_names and before.train.rows.tolist() == drawn.train.rows.tolist()
    save(data, ["class 00", *NAMES])
    anew = open_data(str(data))  # what the seed would draw from the larger file: trained classes are among its test classes
    assert set(anew.test.class_names) & set(before.train.class_names)
    after = TrainedRun(run).open()
    for part in ("train", "validation", "test"):
        assert getattr(after, part).class_names == getattr(before, part).class_names
        assert len(getattr(after, part)) == len(getattr(before, part))
    assert after.rest is not None and after.rest.class_names == ["class 00"] and len(after.rest) == 6
    assert "new since the run was made, and left out: 6 samples of 1 new classes ('class 00')" in after.notes
    assert TrainedRun(run).evaluate()["metrics"] == result["metrics"]


def test_embeddings_name_the_part_of_a_new_class(trained: tuple[Path, Path, dict[str, Any]], tmp_path: Path) -> None:
    data, run, _ = trained
    save(data, ["class 00", *NAMES])
    assert cli.main(["embed", str(run), "--data", str(data), "--out", str(tmp_path / "e.npz")]) == 0
    with np.load(tmp_path / "e.npz") as file:
        assert set(file["class_name"][file["split"] == "none"]) == {"class 00"}
        assert set(file["y"][file["split"] == "none"]) == {40} and len(file["x"]) == 246


@pytest.mark.parametrize("order", ["the same", "another"])
def test_a_resumed_run_keeps_its_classes_and_its_bits(order: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = save(tmp_path / "data.npz")
    whole = train(out=tmp_path / "whole", data=str(data), **SMALL)
    interrupted(monkeypatch, out=tmp_path / "run", data=str(data), **SMALL)
    names = ["class 00", *NAMES]
    shuffled = np.random.default_rng(1).permutation(6 * len(names))
    save(data, names, order=None if order == "the same" else shuffled)
    again = train(resume=tmp_path / "run")
    assert again["metrics"]["test"] == whole["metrics"]["test"] and again["data"]["parts"] == whole["data"]["parts"]
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "run")]
    totals = [[json.loads(line)["total"] for line in part if "total" in line] for part in lines]
    assert totals[0] == totals[1]


def test_renamed_and_relabelled_classes_are_refused(
    trained: tuple[Path, Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    data, run, _ = trained
    x, y = table(NAMES)
    test = TrainedRun(run).open().test.class_names
    for wrong in (np.where(y == test[0], "other", y), np.where(np.arange(len(y)) == 0, "class 02", y)):
        np.savez(data, x=x, y=wrong)
        assert cli.main(["eval", str(run)]) == 2
        message = capsys.readouterr().err
        assert "are in another class than when the run was made" in message and message.count("\n") == 1
    swapped = y.copy()
    swapped[y == test[0]], swapped[y == "class 01"] = "class 01", test[0]
    np.savez(data, x=x, y=swapped)
    with pytest.raises(DataError, match=r"such as one of 'class 01' that is now in|is now in 'class 01'"):
        TrainedRun(run).open()


def test_samples_that_are_gone(trained: tuple[Path, Path, dict[str, Any]], tmp_path: Path, monkeypatch: Any) -> None:
    data, run, _ = trained
    parts = TrainedRun(run).open()
    save(data, [name for name in NAMES if name != parts.train.class_names[0]])  # eval has no use for it
    result = TrainedRun(run).evaluate()
    assert any("6 samples that the run was made with are no longer in the data: 6 train" in note for note in result["notes"])
    save(data, parts.train.class_names)
    result = TrainedRun(run).evaluate()
    assert result["metrics"] == {} and any("test: no samples are left" in note for note in result["notes"])
    x, y = table(NAMES)
    np.savez(data, x=x + 1, y=y)
    with pytest.raises(DataError, match="none of the 240 samples that the run was made with"):
        TrainedRun(run).evaluate()
    save(data)
    interrupted(monkeypatch, out=tmp_path / "stopped", data=str(data), **SMALL)
    save(data, NAMES[1:])
    with pytest.raises(DataError, match=r"6 of the 240 samples .*'class 01'.*cannot be continued exactly"):
        train(resume=tmp_path / "stopped")


def test_other_data_that_hold_what_was_trained_on(trained: tuple[Path, Path, dict[str, Any]], tmp_path: Path) -> None:
    _, run, _ = trained
    copy = save(tmp_path / "copy.npz", ["class 00", *NAMES])
    notes = TrainedRun(run).evaluate(str(copy))["notes"]
    assert any(note.startswith("not held out: 120 of these 246 samples, of 20 classes, were trained on (") for note in notes)
    fresh = save(tmp_path / "fresh.npz", ["x", "y", "z"])
    assert not TrainedRun(run).evaluate(str(fresh))["notes"]


def test_folders_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = image_folder(tmp_path / "photos", classes=12)
    result = train(out=tmp_path / "run", data=str(photos), **SMALL)
    test = TrainedRun(tmp_path / "run").open().test.class_names
    interrupted(monkeypatch, out=tmp_path / "stopped", data=str(photos), **SMALL)
    shutil.copytree(tmp_path / "stopped", tmp_path / "renamed")
    for sample in range(4):
        save_image(photos / "a new class" / f"{sample}.png", seed=7000 + sample)
    save_image(photos / test[0] / "another.png", seed=9000)
    parts = TrainedRun(tmp_path / "run").open()
    assert parts.test.class_names == test and len(parts.test) == 4 * len(test)
    assert any("4 samples of 1 new classes ('a new class')" in note for note in parts.notes)
    assert any(f"1 samples of 1 classes of the run ('{test[0]}')" in note for note in parts.notes)
    assert TrainedRun(tmp_path / "run").evaluate()["metrics"] == result["metrics"]
    assert train(resume=tmp_path / "stopped")["metrics"] == result["metrics"]
    (photos / test[0]).rename(photos / "aaa")
    for use in (lambda: TrainedRun(tmp_path / "run").open(), lambda: train(resume=tmp_path / "renamed")):
        with pytest.raises(DataError, match=f"one of '{test[0]}' that is now in 'aaa'"):
            use()


def test_images_are_known_whether_they_fit_into_memory_or_not(tmp_path: Path) -> None:
    photos = image_folder(tmp_path / "photos", classes=6)
    _, in_memory = load_table(str(photos))
    _, as_files = load_table(str(photos), options={"memory_mb": 0})
    assert not as_files.samples.in_memory
    np.testing.assert_array_equal(in_memory.content_digests(), as_files.content_digests())
    assert len(set(in_memory.content_digests().tolist())) == 24
    first, second = (tmp_path / name for name in ("first", "second"))
    for path, middle in ((first, b"a"), (second, b"b")):
        path.write_bytes(b"0" * 50_000 + middle + b"0" * 50_000)
    from dmlcore.data.encoded import file_digests

    digests = file_digests([str(first), str(second), str(first)])
    assert digests[0] == digests[2] != digests[1]
    with pytest.raises(DataError, match="cannot be read: No such file"):
        file_digests([str(tmp_path / "none")])


def test_classes_of_one_name_and_equal_samples_keep_their_parts(tmp_path: Path) -> None:
    y = np.repeat(np.arange(12), 4)
    x = np.zeros((48, 3), np.float32)  # all samples are alike
    names = np.array(["same"] * 4 + [f"c{number}" for number in range(8)])
    np.savez(tmp_path / "data.npz", x=x, y=y, class_name=names)
    splits = open_data(str(tmp_path / "data.npz"))
    assert splits.record is not None
    (tmp_path / "split.json").write_bytes(splits.record())
    again = open_data(str(tmp_path / "data.npz"), recorded=RecordedSplit.read(tmp_path / "split.json"), is_whole=True)
    for part in ("train", "validation", "test"):
        assert getattr(again, part).rows.tolist() == getattr(splits, part).rows.tolist()
        assert getattr(again, part).labels.tolist() == getattr(splits, part).labels.tolist()


def test_a_split_of_the_data_is_kept_by_sample(tmp_path: Path) -> None:
    x, y = table(NAMES[:6])
    split = np.tile(["train", "train", "train", "train", "test", "test"], 6)
    np.savez(tmp_path / "data.npz", x=x, y=y, split=split)
    train(out=tmp_path / "run", data=str(tmp_path / "data.npz"), **SMALL)
    before = TrainedRun(tmp_path / "run").open()
    np.savez(tmp_path / "data.npz", x=x, y=y, split=np.where(split == "train", "test", "train"))
    after = TrainedRun(tmp_path / "run").open()
    assert after.test.rows.tolist() == before.test.rows.tolist()


def test_a_damaged_record_is_refused(trained: tuple[Path, Path, dict[str, Any]], capsys: Any) -> None:
    _, run, _ = trained
    path = run / "split.json"
    whole = path.read_bytes()
    wrong = json.loads(whole)
    wrong["class_names"][0], wrong["class_names"][1] = wrong["class_names"][1], wrong["class_names"][0]
    for content in (whole[:-40], b"", b"[]", b"\xff", b"{}", b"[" * 100_000, json.dumps(wrong).encode()):
        path.write_bytes(content)
        assert cli.main(["eval", str(run)]) == 2
        message = capsys.readouterr().err
        assert "is damaged" in message and message.count("\n") == 1, message


def test_a_run_without_a_record(trained: tuple[Path, Path, dict[str, Any]]) -> None:
    data, run, result = trained
    (run / "split.json").unlink()
    again = TrainedRun(run).evaluate()
    assert again["metrics"] == result["metrics"] and "keeps no split.json" in again["notes"][-1]
    save(data, ["class 00", *NAMES])
    with pytest.raises(DataError, match="classes would be called held out that were trained on"):
        TrainedRun(run).evaluate()


def test_a_search_and_its_run_have_one_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = save(tmp_path / "data.npz")
    values: dict[str, Any] = {**SMALL, "plugins": "auto", "auto_losses": "ms,triplet", "auto_trials": 1, "data": str(data)}
    real, tests = start.validation_score, []

    def score(config: Any, folder: Any, recorded: RecordedSplit, deadline: float | None) -> float:
        tests.append(set(recorded.parts["test"].labels.tolist()))
        if len(tests) == 2:
            raise KeyboardInterrupt
        return real(config, folder, recorded)

    monkeypatch.setattr(start, "validation_score", score)
    with pytest.raises(KeyboardInterrupt):
        train(out=tmp_path / "run", **values)
    save(data, ["class 00", *NAMES])
    result = train(out=tmp_path / "run", **values)
    assert len(tests) == 3 and tests[0] == tests[1] == tests[2]
    assert result["data"]["parts"]["test"] == {"classes": 14, "samples": 84}
    assert "class 00" not in TrainedRun(tmp_path / "run").open().test.class_names


def test_other_data_where_the_own_are_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator, labels = np.random.default_rng(0), np.repeat(np.arange(20), 6)
    for name in ("own", "other"):
        x = (generator.normal(size=(120, 5)) + labels[:, None]).astype(np.float32)
        np.savez(tmp_path / f"{name}.npz", x=x, y=labels)
    run = str(tmp_path / "run")
    assert cli.main(["train", "--data", str(tmp_path / "own.npz"), "--plugins", "ms", "--steps", "1", "--out", run]) == 0
    (tmp_path / "own.npz").unlink()
    assert cli.main(["eval", run, "--data", str(tmp_path / "other.npz"), "--json"]) == 0
    capsys.readouterr()
    assert cli.main(["eval", run]) == 2
    assert "there is no data set" in capsys.readouterr().err


def test_equal_samples_are_matched_in_their_order():
    from dmlcore.data.recorded_splits import _matched

    generator = np.random.default_rng(0)
    for _ in range(200):
        sizes = generator.integers(0, 30, 2)
        entries, rows = ((generator.integers(0, 4, n), generator.integers(0, 3, n).astype(np.uint64)) for n in sizes)
        waiting = list(zip(range(sizes[1]), *map(np.ndarray.tolist, rows), strict=True))
        expected = []
        for label, digest in zip(*map(np.ndarray.tolist, entries), strict=True):
            first = next((row for row in waiting if row[1:] == (label, digest)), None)
            expected.append(-1 if first is None else first[0])
            waiting = [row for row in waiting if row is not first]
        matched, left_over = _matched(entries, rows)
        assert matched.tolist() == expected and left_over.tolist() == [row for row, _, _ in waiting]
