"""`dmlcore data check`: what is recognised, what cannot be read, and what stands in data twice."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import field_files as files
import numpy as np
import pytest
from data_files import feature_file, save_image
from PIL import Image

from dmlcore.cli import main
from dmlcore.data.check import check_data
from dmlcore.data.copies import SIDE, exact_pairs, near_pairs


def test_a_published_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = files.cub(tmp_path / "birds")
    images = root / "images"
    first = images / "001.Bird_A" / "Bird_A_0000_0.jpg"
    (images / "001.Bird_A" / "Bird_A_0003_3.jpg").write_bytes(b"no picture")
    copy = images / "008.Bird_H" / "Bird_H_0001_1.jpg"
    copy.write_bytes(first.read_bytes())  # of a test class
    with Image.open(images / "002.Bird_B" / "Bird_B_0000_0.jpg") as picture:  # smaller, and much compressed
        picture.resize((32, 24)).save(images / "007.Bird_G" / "Bird_G_0002_2.jpg", quality=40)
    assert main(["data", "check", str(root), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["source"], facts["samples"], facts["classes"]) == ("cub", 31, 8)
    assert list(facts["unreadable"]) == ["images/001.Bird_A/Bird_A_0003_3.jpg"]
    assert facts["smallest_class"] == {"name": "001.Bird_A", "samples": 3}
    assert {part: counts["classes"] for part, counts in facts["parts"].items()} == {"train": 2, "validation": 2, "test": 4}
    assert facts["parts"]["test"]["samples"] == 16
    assert facts["sizes"] == {"width": [32, 40, 40], "height": [24, 30, 30]}
    for key, bird, other in (("exact_copies", "001.Bird_A", "008.Bird_H"), ("near_copies", "002.Bird_B", "007.Bird_G")):
        assert facts[key]["samples"] == facts[key]["of_two_classes"] == 2
        assert [{sample["class"] for sample in pair} for pair in facts[key]["pairs"]] == [{bird, other}]
        (parts, count), *more = facts[key]["between_parts"].items()
        assert parts.endswith(" and test") and count == 1 and not more
    assert main(["data", "check", "cub", "--cub.path", str(root)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "unreadable 1: images/001.Bird_A/Bird_A_0003_3.jpg" in said and "32 to 40 pixels, median 40" in said
    assert "2 samples; 1 stand in both" in said and "same: images/001.Bird_A/Bird_A_0000_0.jpg (001.Bird_A, " in said


def test_queries_and_a_gallery_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(files.in_shop(tmp_path / "shop"))]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "test 16 samples of 4 classes" in said and "; 8 queries, a gallery of 8" in said


def test_a_folder_with_names_from_outside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for label, name in enumerate(["\x1b[31mred", "b", "c", "d", "e", "f"]):
        for n in range(3):
            save_image(tmp_path / name / f"{n}.png", seed=10 * label + n)
    (tmp_path / "b" / "0.png").write_bytes((tmp_path / "\x1b[31mred" / "0.png").read_bytes())
    (tmp_path / "c" / "\x1b[31m.png").write_bytes(b"")
    assert main(["data", "check", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said and "unreadable" in said and "2 are in two classes" in said


@pytest.mark.parametrize("has_labels", [True, False])
def test_features(has_labels: bool, tmp_path: Path) -> None:
    file = feature_file(tmp_path / "f.npz")
    arrays: dict[str, Any] = dict(np.load(file))
    arrays["x"][7] = arrays["x"][40]
    np.savez(file, **(arrays if has_labels else {"x": arrays["x"]}))
    facts = check_data(str(file))
    assert facts["exact_copies"]["samples"] == 2 and facts["near_copies"] is None and facts["sizes"] is None
    assert facts["exact_copies"]["of_two_classes"] == (2 if has_labels else 0)
    assert list(facts["parts"]) == (["train", "validation", "test"] if has_labels else ["all"])


def test_data_that_training_refuses_are_looked_at_all_the_same(tmp_path: Path) -> None:
    for n in range(3):
        save_image(tmp_path / f"{n % 2}" / f"{n}.png", seed=n)
    facts = check_data(str(tmp_path))
    assert facts["samples"] == 3 and any("training would refuse these data" in note for note in facts["notes"])


def test_pictures_in_memory_and_different_ones() -> None:
    facts = check_data("glyphs")
    assert facts["sizes"]["width"] == [32, 32.0, 32]
    assert facts["near_copies"]["samples"] < 0.1 * facts["samples"]


def test_exact_pairs_by_hand() -> None:
    digests = np.array([5, 1, 5, 5, 2, 1, 9], dtype=np.uint64)
    parts = np.array([0, 0, 0, 1, 1, 1, 1])
    assert exact_pairs(digests, parts).tolist() == [[0, 2], [0, 3], [1, 5], [2, 3]]
    assert exact_pairs(digests[:0], parts[:0]).tolist() == []


def test_near_pairs_are_found_among_very_many() -> None:
    draw = np.random.default_rng(0)
    greys = draw.integers(0, 256, (100_000, SIDE, SIDE), dtype=np.uint8)
    greys[500] = 200  # flat ones look like one another, and are left out
    greys[501] = 201
    copies = draw.permutation(100_000)[:400].reshape(200, 2)
    copies = copies[~np.isin(copies, [500, 501]).any(1)]
    noise = draw.integers(-1, 2, (len(copies), SIDE, SIDE))
    greys[copies[:, 1]] = np.clip(greys[copies[:, 0]].astype(int) + noise, 0, 255).astype(np.uint8)
    has_grey = np.ones(100_000, dtype=bool)
    has_grey[copies[0, 0]] = False
    begin = time.process_time()
    pairs = near_pairs(greys, has_grey)
    assert time.process_time() - begin < 20
    assert pairs.tolist() == np.unique(np.sort(copies[1:], axis=1), axis=0).tolist()
    assert near_pairs(greys[:0], has_grey[:0]).tolist() == near_pairs(greys[:1], has_grey[:1]).tolist() == []


@pytest.mark.parametrize("words", [["check"], ["check", "nowhere"], ["check", "glyphs", "--a.b", "1"]])
def test_mistakes_are_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", *words]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
