"""The index of very many image files: what is read again, what is seen of changes, and damaged or missing indexes."""

from __future__ import annotations

import errno
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dmlcore import plugins
from dmlcore.data import image_tables, index_files, load_table, open_data, open_index, picture_index
from dmlcore.data.path_lists import PathList, TextColumn
from dmlcore.errors import ConfigError, DataError

STREAMED = {"memory_mb": 0}


def photographs(root: Path, classes: int, each: int) -> Path:
    """Tiny pictures of several sizes in folders that were not written to for a while, and one that is damaged."""
    sources = []
    for number in range(5):
        sources.append(root.parent / f"source{number}.png")
        Image.new("RGB", (8 + number, 6), (40 * number, 90, 200)).save(sources[-1])
    for label in range(classes):
        (root / f"c{label:03d}" / "deeper").mkdir(parents=True)
        for number in range(each):
            place = root / f"c{label:03d}" / ("deeper" if number % 7 == 6 else "") / f"{number:05d}.png"
            os.link(sources[number % 5], place)
    (root / "c000" / "broken.png").write_bytes(sources[0].read_bytes()[:50])
    settle(root)
    return root


def settle(root: Path) -> None:
    """Let folders and files look as if nobody had written to them for a while."""
    for folder, _, files in os.walk(root):
        for path in (folder, *(os.path.join(folder, file) for file in files)):
            if os.path.exists(path):  # some links lead nowhere
                os.utime(path, (10**9, 10**9))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DML_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(picture_index, "LEAST", 20)
    monkeypatch.setattr(image_tables, "LEAST", 20)
    return photographs(tmp_path / "photos", 8, 9)


def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files and folders may be opened no more to learn what there is."""

    def refuse(*arguments: object, **named: object) -> None:
        raise AssertionError("it was read again")

    for name in ("read_header", "decode"):
        monkeypatch.setattr(image_tables, name, refuse)
    monkeypatch.setattr("dmlcore.data.image_search.ImageSearch.images", refuse)
    monkeypatch.setattr("dmlcore.data.encoded.file_digests", refuse)


def facts(table) -> tuple:
    return (
        list(table.paths),
        list(table.sample_names),
        table.labels.tolist(),
        table.class_names,
        table.sample_shape,
        table.content_digests().tolist(),
        dict(table.unreadable),
    )


def is_known(root: Path) -> bool:
    """Whether the next start takes what is in the cache."""
    source = plugins.find("data", "folder").component
    return open_index(source(source.Options(path=str(root))), str(root)).is_known


def entries(root: Path) -> list[Path]:
    return list((root.parent / "cache" / "pictures").glob("*.index"))


def test_the_second_start_reads_no_picture(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, first = load_table(str(root), options=STREAMED)
    expected = facts(first)
    assert len(expected[0]) == 72 and len(expected[6]) == 1 and len(entries(root)) == 1
    _, plain = load_table(str(root), options={**STREAMED, "index": "none"})
    assert facts(plain) == expected
    forbid_reading(monkeypatch)
    _, again = load_table(str(root), options=STREAMED)
    assert facts(again) == expected
    assert any("index in the cache" in note for note in again.skipped)
    assert [note for note in again.skipped if "index" not in note] == first.skipped
    parts = open_data(str(root), options=STREAMED, seed=3)
    assert parts.train.samples.images.opened(0).endswith(".png")
    with pytest.raises(AssertionError, match="read again"):
        load_table(str(root), options={**STREAMED, "index": "renew"})


def test_pictures_in_memory_are_the_same(root: Path) -> None:
    before = open_data(str(root), seed=1)
    after = open_data(str(root), seed=1)
    for part in ("train", "validation", "test"):
        first, second = getattr(before, part), getattr(after, part)
        assert np.array_equal(first.rows, second.rows)
        assert np.array_equal(first.batch(range(len(first))).numpy(), second.batch(range(len(second))).numpy())


@pytest.mark.parametrize("change", ["added", "removed", "renamed", "class", "deeper"])
def test_changes_of_folders_are_seen(root: Path, change: str) -> None:
    _, before = load_table(str(root), options=STREAMED)
    picture = root / "c001" / "00000.png"
    if change == "added":
        os.link(picture, root / "c001" / "more.png")
    elif change == "removed":
        picture.unlink()
    elif change == "renamed":
        picture.rename(root / "c001" / "other.png")
    elif change == "class":
        (root / "c001").rename(root / "d001")
    else:
        os.link(picture, root / "c001" / "deeper" / "more.png")
    _, now = load_table(str(root), options=STREAMED)
    _, right = load_table(str(root), options={**STREAMED, "index": "none"})
    assert list(now.paths) == list(right.paths) != list(before.paths) and now.class_names == right.class_names


def test_indexes_that_cannot_be_used(root: Path) -> None:
    _, table = load_table(str(root), options=STREAMED)
    expected = facts(table)
    (file,) = entries(root)
    content = file.read_bytes()
    for place in (0, 20, 40, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])
        assert not is_known(root)
    for damaged in (b"", content[:10], content[:40], content[: len(content) // 2]):
        file.write_bytes(damaged)
        assert facts(load_table(str(root), options=STREAMED)[1]) == expected
        file.unlink()
    file.write_bytes(content)
    assert is_known(root)


def test_a_cache_that_cannot_be_written(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root.parent / "file").write_text("no folder")
    monkeypatch.setenv("DML_CACHE", str(root.parent / "file"))
    for _ in range(2):
        assert len(load_table(str(root), options=STREAMED)[1].labels) == 72


def test_young_folders_and_room(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.utime(root / "c001")
    load_table(str(root), options=STREAMED)
    assert not entries(root)
    settle(root)
    load_table(str(root), options=STREAMED)
    (file,) = entries(root)
    old = file.with_name("old.index")
    old.write_bytes(bytes(1000))
    os.utime(old, (1, 1))
    monkeypatch.setattr(index_files, "LARGEST", file.stat().st_size + 500)
    load_table(str(root), options={**STREAMED, "index": "renew"})
    assert entries(root) == [file]


def test_unlabelled_pictures_have_an_index_of_their_own(root: Path) -> None:
    flat = root / "c001"
    with pytest.raises(DataError):
        load_table(str(flat), options=STREAMED)
    assert len(load_table(str(root), options=STREAMED, needs_labels=False)[1].labels) == 72


def test_texts_and_paths_come_back() -> None:
    texts = ["", "a", "früh", "b" * 300, "\udce9"]
    column = TextColumn.of(texts)
    assert list(column) == texts and column[-1] == "\udce9" and column[1:3] == ["a", "früh"]
    paths = ["/r/a/1.png", "/r/2.png", "/r/a/b/3.png", "/r/a/4.png"]
    listed = PathList.of(paths, "/r")
    assert list(listed) == paths and list(listed.select(np.array([2, 0]))) == [paths[2], paths[0]]
    assert list(listed.select(np.array([3, 1, 0])).select(np.array([1]))) == ["/r/2.png"]
    with pytest.raises(IndexError):
        listed[4]


@pytest.mark.slow
def test_twenty_thousand_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DML_CACHE", str(tmp_path / "cache"))
    root = photographs(tmp_path / "photos", 100, 200)
    _, first = load_table(str(root), options=STREAMED)
    digests = first.content_digests()
    forbid_reading(monkeypatch)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    _, again = load_table(str(root), options=STREAMED)
    held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert np.array_equal(again.content_digests(), digests) and len(again.labels) == 20_000
    assert held / 20_000 < 200  # bytes a sample
    assert list(again.paths[:5]) == list(first.paths[:5])


def link_later(root: Path) -> None:
    (root.parent / "elsewhere").mkdir()
    os.link(root / "c001" / "00001.png", root.parent / "elsewhere" / "00001.png")


def part_later(root: Path) -> None:
    (root / "val" / "c000").mkdir(parents=True)
    os.link(root / "train" / "c000" / "00001.png", root / "val" / "c000" / "00001.png")


def as_parts(root: Path) -> None:
    """The classes below folders of parts, of which one has no classes yet."""
    for part in ("train", "test", "val"):
        (root / part).mkdir()
    for folder in sorted(root.glob("c*")):
        folder.rename(root / ("train" if folder.name < "c004" else "test") / folder.name)


def overwrite(root: Path) -> None:
    """Another picture of the same size and time."""
    file = root / "c002" / "00002.png"
    content, before = file.read_bytes(), file.stat()
    file.write_bytes(content[:40] + bytes(len(content) - 40))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    "before, change",
    [
        (lambda root: (root / "linked").symlink_to(root.parent / "elsewhere"), link_later),
        (lambda root: (root / "c003" / "linked").symlink_to(root.parent / "elsewhere"), link_later),
        (as_parts, part_later),
        (lambda root: None, overwrite),
        (lambda root: None, lambda root: os.chmod(root / "c001", 0o711)),
        (lambda root: None, lambda root: os.chmod(root / "c001" / "00003.png", 0o400)),
    ],
    ids=["a link to a class", "a link in a class", "a part", "content of the same time", "rights", "rights of a picture"],
)
def test_changes_that_no_folder_above_tells(root: Path, before: Any, change: Any) -> None:
    before(root)
    settle(root)
    load_table(str(root), options=STREAMED)
    assert is_known(root)
    change(root)
    assert not is_known(root)
    _, now = load_table(str(root), options=STREAMED)
    _, right = load_table(str(root), options={**STREAMED, "index": "none"})
    assert facts(now) == facts(right) and now.skipped == right.skipped


def test_links_that_lead_nowhere_are_told(root: Path) -> None:
    (root / "c100").symlink_to(root.parent / "elsewhere")
    _, table = load_table(str(root), options=STREAMED)
    assert "1 links beside the folders of classes lead nowhere and were skipped: 'c100'" in table.skipped


def test_what_fails_for_a_while_is_not_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = image_tables.read_header

    def fail(opened: Any) -> Any:
        if str(opened).endswith("c001/00001.png"):
            raise OSError(errno.EIO, "Input/output error", str(opened))
        return read(opened)

    monkeypatch.setattr(image_tables, "read_header", fail)
    assert len(load_table(str(root), options=STREAMED)[1].unreadable) == 2
    assert not entries(root)
    monkeypatch.undo()


def test_no_place_for_a_cache(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Path:
        raise ConfigError("there is no folder for what is compiled and kept")

    monkeypatch.setattr(index_files, "cache_folder", refuse)
    assert len(load_table(str(root), options=STREAMED)[1].labels) == 72
