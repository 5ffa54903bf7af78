"""Manifests: CSV files that list images."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_files import class_sets, image_folder, save_image

from dmlcore.data import (
    open_data,
)
from dmlcore.errors import DataError


def write_manifest(root: Path, rows: list[str], header: str = "path,label") -> str:
    file = root / "list.csv"
    file.write_text("\n".join([header, *rows]), encoding="utf-8-sig")
    return str(file)


def test_manifest_respects_its_split(tmp_path):
    image_folder(tmp_path)
    part = {0: "train", 1: "train", 2: "train", 3: "train", 4: "val", 5: "val", 6: "test", 7: "test"}
    rows = [f"class {c}/{s}.png,Größe {c},{part[c]}" for c in range(8) for s in range(4)]
    splits = open_data(write_manifest(tmp_path, rows, "path,label,split"))
    assert class_sets(splits)[1] == {"Größe 4", "Größe 5"}
    assert not any("class-disjoint" in note for note in splits.notes)


def test_manifest_split_without_validation_takes_training_classes(tmp_path):
    image_folder(tmp_path)
    rows = [f"class {c}/{s}.png,{c},{'test' if s == 3 else 'train'}" for c in range(8) for s in range(4)]
    rows += [f"class {c}/extra.png,{c},test" for c in range(8)]
    for c in range(8):
        save_image(tmp_path / f"class {c}" / "extra.png")
    splits = open_data(write_manifest(tmp_path, rows, "path,label,split"))
    train, validation, test = class_sets(splits)
    assert len(test) == 8 and not train & validation
    assert any("not class-disjoint: 6 of 8 test classes" in note for note in splits.notes)
    assert any("no validation part: 2 of 8" in note for note in splits.notes)


def test_manifest_reports_what_it_skips(tmp_path):
    image_folder(tmp_path)
    rows = [f"class {c}/{s}.png,{c},me" for c in range(8) for s in range(4)]
    rows += ["gone.png,0,me", "class 0/0.png,0,me", "class 0/0.png,1,me", "class 0/1.png,,me"]
    notes = " ".join(open_data(write_manifest(tmp_path, rows, "path,label,author")).notes)
    for text in (
        "1 listed images do not exist",
        "gone.png",
        "1 rows that repeat",
        "a second label",
        "1 rows without",
        "columns not used: author",
    ):
        assert text in notes


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ("", [], "must name the columns"),
        ("path,labl", ["a.png,1"], "no column 'label'; it has path, labl. Did you mean to name 'labl'"),
        ("path,label", [], "lists no images"),
        ("path,label", ["a.png,1", "b.png,2"], "2 of 2 images .* do not exist"),
        (
            "path,label,split",
            ["class 0/0.png,1,training set"],
            "is 'training set', but must be train, validation, test, query or gallery",
        ),
        ("path,label,split", ["class 0/0.png,1,train", "class 1/0.png,2,"], "split of sample 1 .* is empty"),
        ("path,label,split", ["class 0/0.png,1,train", "class 1/0.png,2,train"], "has only train"),
    ],
)
def test_manifest_errors(tmp_path, header, rows, message):
    image_folder(tmp_path)
    with pytest.raises(DataError, match=message):
        open_data(write_manifest(tmp_path, rows, header))


def test_binary_file_named_csv(tmp_path):
    (tmp_path / "x.csv").write_bytes(bytes(range(256)))
    with pytest.raises(DataError, match=r"cannot be read as a UTF-8 CSV"):
        open_data(str(tmp_path / "x.csv"))


ROWS = [f"class {c}/{s}.png,{c}" for c in range(8) for s in range(4)]


def open_bytes(root: Path, content: bytes, name: str = "list.csv"):
    (root / name).write_bytes(content)
    return open_data(str(root / name))


@pytest.fixture
def images(tmp_path):
    return image_folder(tmp_path)


def test_a_quote_that_is_never_closed_is_refused_with_its_line(images):
    rows = [*ROWS]
    rows[19] = rows[19].replace(",", ',"')
    with pytest.raises(DataError, match=r"line 21 of .*list\.csv' cannot be read: a quote .* not closed in the same line"):
        open_data(write_manifest(images, rows))
    rows[25] = rows[25].replace(",", ',"')  # a second one closes it: the rows between would be one label
    with pytest.raises(DataError, match=r"line 21 of"):
        open_data(write_manifest(images, rows))
    rows[19] = 'class 4/3.png,"a"b'
    with pytest.raises(DataError, match=r"line 21 of"):
        open_data(write_manifest(images, rows))


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_separators_line_ends_and_marks(images, separator, end, mark):
    lines = ["path,label", *ROWS[:9], "", *ROWS[9:], '"class 0/a, b; c.png","Ü ""x"" , ; y"', ""]
    save_image(images / "class 0" / "a, b; c.png")
    text = end.join(line if '"' in line else line.replace(",", separator) for line in lines)
    text = text.replace('png","', f'png"{separator}"')
    splits = open_bytes(images, mark + text.encode(), "list.tsv" if separator == "\t" else "list.csv")
    assert sum(len(part) for part in (splits.train, splits.validation, splits.test)) == 33
    assert 'Ü "x" , ; y' in set().union(*class_sets(splits))


def test_missing_labels_are_counted_and_no_class(images):
    rows = [row.replace(",0", ",nan").replace(",1", ",") if row[-2:] in (",0", ",1") else row for row in ROWS]
    splits = open_data(write_manifest(images, [*rows[:-1], rows[-1].replace(",7", ",<NA>"), "class 0/0.png", " , "]))
    assert set().union(*class_sets(splits)) == {str(label) for label in range(2, 8)}
    assert "11 rows without a path or a label (empty or nan) were skipped" in splits.notes


def test_blanks_accents_and_capitals_of_labels(images):
    labels = [" a", "a ", "Cafe\N{COMBINING ACUTE ACCENT}", "Café", "B", "b", "6", "7"]
    rows = [f'class {c}/{s}.png,"{label}"' for c, label in enumerate(labels) for s in range(4)]
    splits = open_data(write_manifest(images, rows))
    assert set().union(*class_sets(splits)) == {"a", "Café", "B", "b", "6", "7"}
    assert any("only in capitals" in note for note in splits.notes) and any("'Café'" in note for note in splits.notes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,label\nclass 0/0.png,a,b\n", r"line 2 of .* has 3 fields, but the first line names 2 columns"),
        ("path,label,label\nclass 0/0.png,a,b\n", r"has the column 'label' twice"),
        ("path,label\nclass 0/0.png,a\0\n", r"line 2 holds a NUL byte"),
        ("path,label\nclass 0/0.png,é\n".encode("latin-1"), r"byte 0xe9 is no UTF-8 .*Save it as UTF-8"),
        ("path,label\nclass 0/0.png,é\n".encode("utf-16"), r"byte 0xff is no UTF-8"),
        ("path,label\n" + "x" * 200_000 + ",a\n", r"line 2 of .* field larger than field limit"),
        ("path,label\n" + "x" * 5000 + ",a\n", r"do not exist"),
        ("path|label\nclass 0/0.png|a\n", r"no column 'path'; it has path.label"),
    ],
)
def test_malformed_manifests_give_one_line(images, content, message):
    with pytest.raises(DataError, match=message) as caught:
        open_bytes(images, content if isinstance(content, bytes) else content.encode())
    assert "\n" not in str(caught.value)


def test_short_rows_and_empty_fields_at_the_end(images):
    splits = open_data(write_manifest(images, [*(row + ",,," for row in ROWS[:16]), *ROWS[16:]], "path,label,author"))
    assert len(set().union(*class_sets(splits))) == 8
