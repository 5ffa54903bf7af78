"""Tar shards as WebDataset has them: files, folders, patterns, labels in each form, and what is refused or left out."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import class_sets, image_folder
from PIL import Image

from dmlcore.cli import main
from dmlcore.data import ImageFiles, PixelStore, image_tables, open_data
from dmlcore.errors import DataError


def encoded(seed: int, kind: str = "JPEG", size: tuple[int, int] = (12, 10)) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def write_shard(path: Path, files: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    return path


def samples(classes: range, label: str = "cls", count: int = 3) -> list[tuple[str, bytes]]:
    """Files of some samples of each class, which go through the classes in turn."""
    files = []
    for number in range(count):
        for name in classes:
            key = f"{name:03d}-{number}"
            content = json.dumps({"label": f"kind {name}", "caption": "x"}).encode() if label == "json" else str(name).encode()
            files += [(f"{key}.jpg", encoded(100 * name + number)), (f"{key}.{label}", content)]
    return files


def counts(splits) -> dict[str, int]:
    parts = (splits.train, splits.validation, splits.test)
    return {name: int(n) for part in parts for name, n in zip(part.class_names, np.bincount(part.dense_labels), strict=True)}


def test_a_file_a_folder_and_a_pattern(tmp_path):
    write_shard(tmp_path / "all.tar", [*samples(range(6)), *samples(range(6, 12))])
    write_shard(tmp_path / "shards" / "s-00.tar", samples(range(6)))
    write_shard(tmp_path / "shards" / "s-01.tar", samples(range(6, 12)))
    (tmp_path / "shards" / "readme.txt").write_text("no shard")
    first = open_data(str(tmp_path / "all.tar"))
    assert first.sample_shape == (3, 12, 10) and isinstance(first.train.samples, PixelStore)
    assert counts(first) == {str(label): 3 for label in range(12)}
    for place in ("shards", "shards/s-{00..01}.tar", "shards/s-0{0,1}.tar"):
        splits = open_data(str(tmp_path / place))
        assert class_sets(splits) == class_sets(first)
        assert torch.equal(splits.test.batch(range(6)), first.test.batch(range(6)))
    whole = open_data(str(tmp_path / "shards"), options={"memory_mb": 0})  # read by their places
    assert isinstance(whole.train.samples, ImageFiles)
    assert torch.equal(whole.test.batch(range(6)), first.test.batch(range(6)))
    assert whole.sample_names[0].startswith("s-00.tar:")


def test_an_archive_beside_the_folders_of_classes_is_no_shard(tmp_path):
    image_folder(tmp_path)
    write_shard(tmp_path / "backup.tar", samples(range(3)))
    assert set().union(*class_sets(open_data(str(tmp_path)))) == {f"class {label}" for label in range(8)}


@pytest.mark.parametrize("label", ["cls", "json", "txt"])
def test_labels_in_each_form(tmp_path, label):
    splits = open_data(str(write_shard(tmp_path / "a.tar", samples(range(8), label))))
    assert counts(splits) == {f"kind {name}" if label == "json" else str(name): 3 for name in range(8)}


def test_labels_that_are_named(tmp_path):
    files = [(name.replace(".json", ".meta.json"), content) for name, content in samples(range(8), "json")]
    files += [(f"{name:03d}-0.cls", b"7") for name in range(8)]
    path = str(write_shard(tmp_path / "a.tar", sorted(files)))
    splits = open_data(path, options={"label": "meta.json", "key": "label"})
    assert counts(splits) == {f"kind {name}": 3 for name in range(8)}
    with pytest.raises(DataError, match=r"has no 'kind'; it has label, caption"):
        open_data(path, options={"label": "meta.json", "key": "kind"})


def test_what_is_left_out_is_counted(tmp_path):
    files = samples(range(8))
    files += [("lonely.cls", b"3"), ("unnamed.jpg", encoded(1)), ("blank.jpg", encoded(2)), ("blank.cls", b" ")]
    files += [("damaged.jpg", encoded(3)[:40]), ("damaged.cls", b"3"), ("._0.jpg", b"x"), ("__key__", b"x")]
    files += [("a/b.c/deep.png", encoded(4, "PNG")), ("a/b.c/deep.cls", b"\xef\xbb\xbf3\n")]
    splits = open_data(str(write_shard(tmp_path / "a.tar", files)))
    assert counts(splits) == {str(label): 3 + (label == 3) for label in range(8)}
    notes = " ".join(splits.notes)
    assert "1 samples without an image were skipped: 'lonely'" in notes
    assert "2 samples without a label were skipped: 'unnamed', 'blank'" in notes
    assert "1 image that cannot be read was skipped: 'a.tar:" in notes


def test_images_without_labels_can_be_embedded_only(tmp_path):
    from dmlcore.data import load_table

    path = str(write_shard(tmp_path / "a.tar", [file for file in samples(range(8)) if file[0].endswith(".jpg")]))
    with pytest.raises(DataError, match="has no labels: a sample needs"):
        open_data(path)
    _, table = load_table(path, needs_labels=False)
    assert not table.has_labels and len(table.samples) == 24


def test_of_very_many_images_some_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(image_tables, "MOST_LOOKED_AT", 10)
    splits = open_data(str(write_shard(tmp_path / "a.tar", samples(range(8)))))
    assert "10 of 24 images were looked at, evenly spread: a damaged one ends the training" in splits.notes
    assert counts(splits) == {str(label): 3 for label in range(8)} and isinstance(splits.train.samples, ImageFiles)
    assert len({*splits.sample_names}) == 24 and splits.sample_names[-1] == splits.sample_names[23]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tar", b"", "no .tar file, or a damaged one"),
        ("a.tar", b"no archive at all" * 60, "no .tar file, or a damaged one"),
        ("a.tar", b"\x1f\x8b" + b"0" * 600, "it is compressed"),
        ("s-{0..3}.tar", None, "means 4 files, but there is no"),
        ("s-{3..0}.tar", None, "means no files"),
        ("s-{0..9999999}.tar", None, "means too many files"),
        ("s-{0,1}.jpg", None, "there is no data set"),
    ],
)
def test_what_is_no_shard_is_one_line(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        open_data(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_a_shard_that_is_cut_off_or_damaged_inside_is_refused(tmp_path):
    path = write_shard(tmp_path / "a.tar", samples(range(8)))
    whole = path.read_bytes()
    for content in (whole[:3000], whole[:4096] + b"x" * 512 + whole[4608:]):
        path.write_bytes(content)
        with pytest.raises(DataError, match="or a damaged one"):
            open_data(str(path))


def test_a_run_on_shards(tmp_path, capsys):
    for number in range(2):
        write_shard(tmp_path / f"s-{number}.tar", samples(range(6 * number, 6 * number + 6)))
    out, pattern = str(tmp_path / "run"), str(tmp_path / "s-{0..1}.tar")
    words = ["train", "--data", pattern, "--plugins", "ms", "--steps", "2", "--compress", "0", "--out", out]
    assert main([*words, "--webdataset.memory_mb", "0", "--workers", "1"]) == 0
    assert f'data = "{pattern}"' in (tmp_path / "run" / "config.toml").read_text()
    capsys.readouterr()
    assert main(["eval", out, "--json"]) == 0
    first = json.loads(capsys.readouterr().out)["metrics"]
    files = [*samples(range(6, 12)), *samples(range(6))]  # the same samples elsewhere: known by names and sizes
    write_shard(tmp_path / "s-0.tar", files[:30])
    write_shard(tmp_path / "s-1.tar", files[30:])
    assert main(["eval", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == first
