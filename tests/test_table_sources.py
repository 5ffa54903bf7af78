"""Tables of columns and pairs of arrays: Parquet, Arrow, what Hugging Face saves, `.npy`; what each column means."""

from __future__ import annotations

import importlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import class_sets
from PIL import Image

from dmlcore.cli import main
from dmlcore.data import open_data
from dmlcore.errors import DataError

CLASSES, SAMPLES, WIDTH = 9, 4, 5
COUNT = CLASSES * SAMPLES
LABELS = np.repeat(np.arange(CLASSES), SAMPLES)
NAMES = [f"kind {label}" for label in range(CLASSES)]


def numbers() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(COUNT, WIDTH)).astype(np.float32)


def picture(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 8, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def arrow():
    return pytest.importorskip("pyarrow", reason="tables need pyarrow, of the extra `tables`")


def write(arrow, columns: dict, path: Path, **about) -> str:
    """A table as a file of the kind that its name says."""

    for part in ("feather", "parquet"):
        importlib.import_module(f"pyarrow.{part}")
    table = columns if isinstance(columns, arrow.Table) else arrow.table(columns)
    if path.suffix == ".parquet":
        arrow.parquet.write_table(table, path, **about)
    elif path.suffix == ".feather":
        arrow.feather.write_feather(table, path)
    else:
        with arrow.OSFile(str(path), "wb") as file, arrow.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table, max_chunksize=7)
    return str(path)


def same(first, second) -> None:
    assert class_sets(first) == class_sets(second) and first.sample_shape == second.sample_shape
    for part in ("train", "validation", "test"):
        a, b = getattr(first, part), getattr(second, part)
        assert torch.equal(a.batch(range(len(a))), b.batch(range(len(b))))


def reference(tmp_path: Path, **arrays):
    np.savez(tmp_path / "reference.npz", **{"x": numbers(), "y": LABELS, **arrays})
    return open_data(str(tmp_path / "reference.npz"))


@pytest.mark.parametrize("suffix", ["parquet", "feather", "arrow"])
def test_features_in_one_column_or_several(tmp_path, arrow, suffix):
    expected = reference(tmp_path)
    lists = {"label": LABELS, "embedding": list(numbers())}
    fixed = {"label": LABELS, "embedding": arrow.FixedSizeListArray.from_arrays(numbers().reshape(-1), WIDTH)}
    columns = {"label": LABELS, **{f"f{number}": numbers()[:, number] for number in range(WIDTH)}}
    for table in (lists, fixed, columns):
        same(open_data(write(arrow, table, tmp_path / f"t.{suffix}")), expected)


def test_columns_are_chosen_and_the_others_told(tmp_path, arrow):
    columns = {"id": np.arange(COUNT), "kind": [NAMES[label] for label in LABELS], "a": numbers()[:, 0], "b": numbers()[:, 1]}
    columns["split"] = np.where(LABELS < 6, "train", "test")
    path = write(arrow, columns, tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"no column of labels; it has id, kind, a, b, split. Name it by the option `label`"):
        open_data(path)
    splits = open_data(path, options={"label": "kind", "features": "a,b"})
    expected = reference(tmp_path, x=numbers()[:, :2], y=columns["kind"], split=columns["split"])
    same(splits, expected)
    assert "columns not used: id" in splits.notes
    with pytest.raises(DataError, match="has no column 'kinds'.* Did you mean 'kind'"):
        open_data(path, options={"label": "kinds"})


def test_labels_that_are_missing_and_text_that_is_a_dictionary(tmp_path, arrow):
    labels = [None if row == 5 else " " if row == 9 else NAMES[label] for row, label in enumerate(LABELS)]
    encoded = arrow.array(labels).dictionary_encode()
    splits = open_data(write(arrow, {"label": encoded, "x": list(numbers())}, tmp_path / "t.parquet"))
    assert "2 rows without a label (empty or nan) were left out" in splits.notes and len(splits.sample_names) == COUNT - 2
    assert set().union(*class_sets(splits)) == set(NAMES) and "5" not in splits.sample_names
    whole = arrow.array([None if row == 5 else int(label) for row, label in enumerate(LABELS)])
    splits = open_data(write(arrow, {"label": whole, "x": list(numbers())}, tmp_path / "t.parquet"))
    assert "1 rows without a label (empty or nan) were left out" in splits.notes


def test_images_as_bytes_as_structs_and_by_their_paths(tmp_path, arrow):
    content = [picture(row) for row in range(COUNT)]
    (tmp_path / "images").mkdir()
    for row in range(COUNT):
        (tmp_path / "images" / f"{row}.png").write_bytes(content[row])
    paths = [f"images/{row}.png" for row in range(COUNT)]
    columns = [
        {"image": content},
        {"image": [{"bytes": one, "path": None} for one in content]},
        {"image": [{"bytes": None, "path": path} for path in paths]},
        {"path": paths},
    ]
    first = open_data(write(arrow, {**columns[0], "label": LABELS}, tmp_path / "t.parquet"))
    assert first.kind == "images" and first.sample_shape == (3, 9, 8)
    for column in columns[1:]:
        same(open_data(write(arrow, {**column, "label": LABELS}, tmp_path / "t.parquet")), first)
    mapped = open_data(write(arrow, {**columns[0], "label": LABELS}, tmp_path / "t.arrow"), options={"memory_mb": 0})
    assert not mapped.train.in_memory
    same(mapped, first)
    content[3], content[7] = None, b"no image"
    splits = open_data(write(arrow, {"image": content, "label": LABELS}, tmp_path / "t.parquet"))
    assert any("2 images that cannot be read were skipped: 'row 3'" in note for note in splits.notes)
    with pytest.raises(DataError, match=r"images of .* do not exist, or are no files, the first is"):
        open_data(write(arrow, {"path": [f"gone/{row}" for row in range(COUNT)], "label": LABELS}, tmp_path / "t.parquet"))


def test_names_of_classes_by_hugging_face(tmp_path, arrow):
    about = {"info": {"features": {"label": {"names": NAMES, "_type": "ClassLabel"}}}}
    table = arrow.table({"label": LABELS, "x": list(numbers())}).replace_schema_metadata({"huggingface": json.dumps(about)})
    splits = open_data(write(arrow, table, tmp_path / "t.parquet"))
    assert set().union(*class_sets(splits)) == set(NAMES)


def save_like_hugging_face(arrow, folder: Path, table, shards: int = 2) -> None:
    """What `Dataset.save_to_disk` writes, as far as it matters."""
    folder.mkdir(parents=True)
    names = [f"data-{number:05d}-of-{shards:05d}.arrow" for number in range(shards)]
    size = -(-len(table) // shards)
    for number, name in enumerate(names):
        write(arrow, table.slice(number * size, size), folder / name)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")


def test_folders_that_hugging_face_saved(tmp_path, arrow):
    table = arrow.table({"label": LABELS, "x": list(numbers())})
    save_like_hugging_face(arrow, tmp_path / "saved", table)
    same(open_data(str(tmp_path / "saved")), reference(tmp_path))
    for word, rows in (("train", slice(0, 24)), ("test", slice(24, COUNT))):
        save_like_hugging_face(arrow, tmp_path / "parts" / word, table.slice(rows.start, rows.stop - rows.start))
    (tmp_path / "parts" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    same(open_data(str(tmp_path / "parts")), reference(tmp_path, split=np.where(LABELS < 6, "train", "test")))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("state.json", b"{", "'.*state.json' is damaged"),
        ("state.json", b"{}", "it has no '_data_files'"),
        ("state.json", b'{"_data_files": []}', "names no Arrow files"),
        ("state.json", b'{"_data_files": [{"filename": "../x.arrow"}]}', "are no names"),
        ("state.json", b'{"_data_files": [{"filename": "gone.arrow"}]}', "there is no file"),
        ("data-00001-of-00002.arrow", b"\xff\xff\xff\xff", "or a damaged one"),
    ],
)
def test_a_damaged_folder_of_hugging_face_is_one_line(tmp_path, arrow, file, content, message):
    save_like_hugging_face(arrow, tmp_path / "saved", arrow.table({"label": LABELS, "x": list(numbers())}))
    (tmp_path / "saved" / file).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        open_data(str(tmp_path / "saved"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"x": [[1.0]] * COUNT}, "has no column of labels; it has x"),
        ({"label": LABELS}, "no column of images or numbers beside its labels; it has label"),
        ({"label": LABELS, "x": [[1.0] * (1 + row % 2) for row in range(COUNT)]}, "have the lengths 1, 2, but must all"),
        ({"label": LABELS, "x": [None, *[[1.0]] * (COUNT - 1)]}, "have the lengths none, 1"),
        ({"label": LABELS, "x": [None, *[1.0] * (COUNT - 1)]}, "NaN or infinite in 1 rows, the first is row 0"),
        ({"label": LABELS / 7, "x": [1.0] * COUNT}, "fractions or infinite"),
        ({"label": [[[1]]] * COUNT, "x": [1.0] * COUNT}, "holds list.*but labels are whole numbers or text"),
        ({"label": [None] * COUNT, "x": [1.0] * COUNT}, "labels are whole numbers or text|has no label"),
        ({"label": [""] * COUNT, "x": [1.0] * COUNT}, "has no label"),
        ({"label": [], "x": []}, "has no rows"),
        ({"label": LABELS, "x": [1.0] * COUNT, "split": ["what"] * COUNT}, "what"),
    ],
)
def test_columns_that_cannot_be_used_are_one_line(tmp_path, arrow, columns, message):
    with pytest.raises(DataError, match=message) as caught:
        open_data(write(arrow, columns, tmp_path / "t.parquet"))
    assert "\n" not in str(caught.value)


def test_files_that_are_no_tables(tmp_path, arrow):
    for name in ("a.parquet", "a.arrow", "a.feather"):
        (tmp_path / name).write_bytes(b"no table")
        with pytest.raises(DataError, match="no Parquet or Arrow file, or a damaged one"):
            open_data(str(tmp_path / name))


def test_without_pyarrow_a_line_says_what_to_install(tmp_path, monkeypatch):
    import sys

    for name in [name for name in sys.modules if name.partition(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"need the package pyarrow .*Run `pip install pyarrow`"):
        open_data(str(tmp_path / "a.parquet"))


def test_a_run_on_a_table(tmp_path, arrow, capsys):
    path = write(arrow, {"label": LABELS, "x": list(numbers())}, tmp_path / "t.parquet")
    out = str(tmp_path / "run")
    words = ["train", "--data", path, "--parquet.label", "label", "--plugins", "ms", "--steps", "2", "--compress", "0"]
    assert main([*words, "--out", out]) == 0 and main(["eval", out]) == 0
    assert main(["train", "--data", path, "--parquet.label", "lable", "--out", str(tmp_path / "b")]) == 2
    assert "Did you mean 'label'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("x", "y"), [("x", "y"), ("features", "labels"), ("birds", "birds_y"), ("birds", "birds.labels"), ("x_new", "y_new")]
)
def test_pairs_of_arrays(tmp_path, x, y):
    np.save(tmp_path / f"{x}.npy", numbers())
    np.save(tmp_path / f"{y}.npy", LABELS)
    same(open_data(str(tmp_path / f"{x}.npy")), reference(tmp_path))


def test_further_arrays_beside_a_pair(tmp_path):
    split = np.where(LABELS < 6, "train", "test")
    for name, values in {"x": numbers(), "y": LABELS, "split": split, "class_name": np.array(NAMES)}.items():
        np.save(tmp_path / f"{name}.npy", values)
    same(open_data(str(tmp_path / "x.npy")), reference(tmp_path, split=split, class_name=np.array(NAMES)))


def test_arrays_that_cannot_be_used(tmp_path):
    np.save(tmp_path / "birds.npy", numbers())
    np.save(tmp_path / "y.npy", LABELS)  # of something else
    with pytest.raises(DataError, match=r"no labels beside .*birds.npy': none of 'birds_y.npy', 'birds.y.npy', 'birds_labels"):
        open_data(str(tmp_path / "birds.npy"))
    np.save(tmp_path / "birds_y.npy", np.array([{}] * COUNT), allow_pickle=True)
    with pytest.raises(DataError, match="birds_y.npy' holds Python objects, which are not read because they can run code"):
        open_data(str(tmp_path / "birds.npy"))
    (tmp_path / "birds.npy").write_bytes(b"no array")
    with pytest.raises(DataError, match=r"no \.npy file, or a damaged one: it does not begin like one"):
        open_data(str(tmp_path / "birds.npy"))


def write_csv(path: Path, *, mark: str = ",", **columns) -> str:
    lines = [mark.join(columns), *(mark.join(map(str, row)) for row in zip(*columns.values(), strict=True))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(("name", "mark"), [("f.csv", ","), ("f.csv", ";"), ("f.tsv", "\t")])
def test_features_in_a_text_file(tmp_path, name, mark):
    texts = np.array(NAMES)[LABELS]
    split = np.where(LABELS < 6, "train", "test")
    values = {f"f{number}": [repr(float(value)) for value in numbers()[:, number]] for number in range(WIDTH)}
    path = write_csv(tmp_path / name, mark=mark, id=[f"n{row}" for row in range(COUNT)], **values, label=texts, split=split)
    splits = open_data(path)
    same(splits, reference(tmp_path, y=texts, split=split))
    assert "columns not used, since they hold no numbers: id" in splits.notes


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": range(COUNT), "kind": LABELS}, "has no column 'label'; it has a, kind"),
        ({"a": [1, "x", *[2] * (COUNT - 2)], "label": LABELS}, r"line 3 of .*: 'a' is 'x', but features are numbers"),
        ({"a": [1, "", *[2] * (COUNT - 2)], "label": LABELS}, r"line 3 of .*: 'a' is '', but features are numbers"),
        ({"a": [1, "1e39", *[2] * (COUNT - 2)], "label": LABELS}, r"line 3 of .*: 'a' is '1e39'"),
        ({"a": ["x"] * COUNT, "label": LABELS}, "has no column 'path'; it has a, label"),
        ({"a": range(COUNT), "label": [""] * COUNT}, "'y' in .* has no label"),
    ],
)
def test_features_in_a_text_file_that_cannot_be_used(tmp_path, columns, message):
    with pytest.raises(DataError, match=message) as caught:
        open_data(write_csv(tmp_path / "f.csv", **columns))
    assert "\n" not in str(caught.value)
