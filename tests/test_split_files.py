"""Files of class splits: what is written is read, what contradicts itself is refused, and training keeps to it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmlcore.data import ClassSplit, SplitFile, open_data
from dmlcore.errors import ConfigError, DataError
from dmlcore.protocols.shift.episodes import support_rows
from dmlcore.serving import TrainedRun
from dmlcore.training import train


def names(numbers: range) -> tuple[str, ...]:
    return tuple(map(str, numbers))


def small_file(per_class: int = 6) -> SplitFile:
    """Twelve classes of rows 0.., six each side."""
    support = tuple({str(c): tuple(str(c * per_class + e + i) for i in range(2)) for c in range(6, 12)} for e in range(3))
    default = ClassSplit("default", 1.5, 0, 0, names(range(6)), names(range(6, 12)), names(range(4)), ("4", "5"), {2: support})
    harder = ClassSplit("swap1", 2.5, 1, 1, ("0", "1", "2", "3", "11"), names(range(5, 10)), ("0", "1", "2"), ("3", "11"))
    progress = ({"stage": "swap", "swapped": 1, "removed": 0, "fid": 2.0},)
    return SplitFile("features.npz", {}, "default", (default, harder), {"seed": 0}, progress)


@pytest.fixture
def features(tmp_path: Path) -> Path:
    y = np.repeat(np.arange(12), 6)
    x = np.random.default_rng(0).normal(size=(12, 8))[y] + np.random.default_rng(1).normal(size=(72, 8))
    np.savez(tmp_path / "features.npz", x=x.astype(np.float32), y=y)
    return tmp_path / "features.npz"


def write(path: Path, file: SplitFile) -> Path:
    path.write_bytes(file.to_json())
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = small_file()
    assert SplitFile.read(write(tmp_path / "splits.json", file)) == file and file.to_json() == file.to_json()
    assert file.find(None).id == "default" and file.find("swap1").removed == 1
    with pytest.raises(DataError, match=r"no split 'swap2'\. Did you mean 'swap1'"):
        file.find("swap2")


def broken(change: Any) -> bytes:
    content = json.loads(small_file().to_json())
    del content["checksum"]  # as one who edits the file by hand does
    change(content)
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c["splits"][0]["test"].append("3"), "class '3' is on both sides"),
        (lambda c: c["splits"][0]["train_part"].append("5"), "must divide the classes"),
        (lambda c: c["splits"][0]["train_part"].remove("2"), "must divide the classes"),
        (lambda c: c["splits"][0]["episodes"]["2"][0].update({"0": ["1"]}), "class '0', which is no test class"),
        (lambda c: c["splits"][0]["episodes"]["2"][0].update({"7": ["1", "2", "3"]}), "has 3 samples of class '7'"),
        (lambda c: c["splits"][0]["episodes"]["2"][0].update({"7": ["1", "1"]}), "names '1' twice"),
        (lambda c: c["splits"][0]["episodes"].update({"x": []}), "has the key 'x'"),
        (lambda c: c["splits"][0].update(fid=float("nan")), "fid is nan"),
        (lambda c: c["splits"][0].update(fid="1"), "fid is '1'"),
        (lambda c: c["splits"][0].pop("test"), "has no 'test'"),
        (lambda c: c["splits"][0].update(more=1), "unknown key 'more'"),
        (lambda c: c["splits"][1].update(id="default"), "two splits have the id 'default'"),
        (lambda c: c.update(default="other"), "no split 'other'"),
        (lambda c: c.update(format="dmlcore-splits-9"), "format is 'dmlcore-splits-9'"),
        (lambda c: c.update(splits={}), "splits is dict, but must be list"),
    ],
)
def test_what_contradicts_itself_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    path.write_bytes(broken(change))
    with pytest.raises(DataError, match=message) as error:
        SplitFile.read(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize(
    "content, message",
    [
        (small_file().to_json()[:-40], "cut off"),
        (b"\x80\x04}.", "is a pickle"),
        (b"[]", "format is 'list'"),
        (b"\xff", "no JSON"),
    ],
)
def test_other_files_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "splits.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        SplitFile.read(tmp_path / "splits.json")
    with pytest.raises(DataError, match="there is no file"):
        SplitFile.read(tmp_path / "none.json")


def test_the_data_are_opened_as_the_split_says(features: Path) -> None:
    splits = open_data(features, class_split=small_file().find("swap1"))
    assert splits.train.class_names == ["0", "1", "2"] and splits.validation.class_names == ["3", "11"]
    assert splits.test.class_names == ["5", "6", "7", "8", "9"]
    assert any("12 samples are of classes that this split leaves out" in note for note in splits.notes)
    other = dataclasses.replace(small_file().find("swap1"), test=("5", "6", "new"))
    with pytest.raises(DataError, match=r"names 1 classes that '.*' lacks, the first is 'new'"):
        open_data(features, class_split=other)


def test_support_is_found_and_never_overlaps_the_query(features: Path) -> None:
    split = small_file().find(None)
    splits = open_data(features, class_split=split)
    test = splits.test

    def positions(split: ClassSplit, shots: int = 2) -> list[np.ndarray]:
        return support_rows(split, shots, test.rows, splits.sample_names, test.dense_labels, test.class_names)

    episodes = positions(split)
    assert len(episodes) == 3
    for number, rows in enumerate(episodes):
        assert sorted(test.rows[rows]) == sorted(c * 6 + number + i for c in range(6, 12) for i in range(2))
        assert np.bincount(test.dense_labels[np.setdiff1d(np.arange(len(test)), rows)]).tolist() == [4] * 6
    with pytest.raises(DataError, match="no episodes of 5 shots; it has: 2"):
        positions(split, 5)
    strange = dataclasses.replace(split, episodes={2: ({"7": ("42", "0")},)})
    with pytest.raises(DataError, match="asks for sample '0' of class '7'"):
        positions(strange)
    greedy = dataclasses.replace(split, episodes={6: ({"7": tuple(str(42 + i) for i in range(6))},)})
    with pytest.raises(DataError, match="takes all 6 samples of class '7'"):
        positions(greedy, 6)


def test_a_run_keeps_to_its_split_and_can_be_repeated(features: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "splits.json", small_file())
    settings: dict[str, Any] = {"data": str(features), "plugins": "ms", "steps": 2, "embedding_dim": 4, "compress": 0}
    result = train(out=tmp_path / "run", splits=str(path), split="swap1", **settings)
    assert result["data"]["parts"]["test"] == {"classes": 5, "samples": 30}
    trained = TrainedRun(tmp_path / "run")
    assert trained.config.settings.data.splits == str(path)
    assert trained.open().test.class_names == ["5", "6", "7", "8", "9"]
    assert trained.evaluate()["metrics"]["test"]["map@r"] == pytest.approx(result["metrics"]["test"]["map@r"])
    with pytest.raises(ConfigError, match="split is 'swap1', but there is no file"):
        train(out=tmp_path / "other", split="swap1", **settings)
    with pytest.raises(DataError, match="no split 'swap9'"):
        train(out=tmp_path / "other", splits=str(path), split="swap9", **settings)
