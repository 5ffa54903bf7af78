"""The embedded data set `glyphs`: the file, its splits, its font list, and the pure parts of its builder."""

from __future__ import annotations

import csv
import hashlib
import subprocess
import sys
from collections import Counter
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from dmlcore_plugins.data.glyphs import characters as glyphs
from PIL import ImageFont, features

from dmlcore.errors import DataError

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # last: an installed package stays what is tested

from tools.glyphs import build, fonts  # noqa: E402

FOLDER = Path(str(resources.files("dmlcore_plugins.data.glyphs")))
ALLOWED = {"OFL", "Apache-2.0", "MIT", "Bitstream Vera", "public domain", "GUST", "IPA"}
DEBIAN_FONTS = Path("/usr/share/fonts")


@pytest.fixture(scope="module")
def data() -> glyphs.Glyphs:
    return glyphs.load()


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    with (FOLDER / "fonts.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def run_builder(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tools.glyphs.build", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_file_is_the_recorded_one_and_small():
    content = (FOLDER / "glyphs.npz").read_bytes()
    assert hashlib.sha256(content).hexdigest() == glyphs.SHA256
    assert len(content) < 4_000_000


def test_stored_arrays_are_packed_and_need_no_pickle():
    with np.load(FOLDER / "glyphs.npz", allow_pickle=False) as arrays:
        assert arrays["images"].shape[1:] == (512,)
        codepoints = arrays["class_codepoints"]
        assert codepoints.dtype == np.int32
        assert [chr(c) for c in codepoints] == arrays["class_names"].tolist()
        assert arrays["class_scripts"].dtype == np.uint8


def test_shapes_types_and_ranges(data):
    count = len(data.labels)
    assert data.images.shape == (count, 32, 32) and data.images.dtype == np.uint8
    assert data.labels.shape == data.fonts.shape == (count,)
    assert data.labels.dtype == data.fonts.dtype == np.int64
    assert set(np.unique(data.images)) == {17 * level for level in range(16)}
    assert set(data.labels) == set(range(len(data.class_names)))
    assert set(data.fonts) == set(range(len(data.font_names)))
    assert len(data.class_names) == len(set(data.class_names)) == len(data.class_scripts) >= 900
    assert list(dict.fromkeys(data.class_scripts)) == data.script_names and len(data.script_names) == 12


def test_unpacking_puts_pixels_in_reading_order(data):
    """Ink is scaled to 28 of 32 pixels and centred, so a wrong order would reach the margin."""
    margin = np.ones((32, 32), bool)
    margin[2:30, 2:30] = False
    assert not data.images[:, margin].any()
    assert data.images[:, 2:30, 2:30].any(axis=(1, 2)).all()


def test_loading_is_cached_and_read_only(data):
    assert glyphs.load() is data
    with pytest.raises(ValueError, match="read-only"):
        data.images[0, 0, 0] = 1


def test_every_class_has_6_to_16_pictures_each_of_another_font(data):
    counts = np.bincount(data.labels)
    assert counts.min() >= 6 and counts.max() <= 16
    assert max(Counter(zip(data.labels, data.fonts, strict=True)).values()) == 1


def test_no_picture_occurs_twice(data):
    assert len({image.tobytes() for image in data.images}) == len(data.images)


@pytest.mark.parametrize("name", glyphs.SPLITS)
def test_splits_are_disjoint_cover_all_classes_and_repeat(data, name):
    split = glyphs.SPLITS[name]()
    assert list(split) == ["train", "validation", "test"]
    assert sorted(np.concatenate(list(split.values()))) == list(range(len(data.class_names)))
    for part, classes in split.items():
        assert classes.dtype == np.int64
        np.testing.assert_array_equal(classes, glyphs.SPLITS[name]()[part])


def test_unseen_characters_divides_every_script(data):
    scripts = np.array(data.class_scripts)
    split = glyphs.unseen_characters()
    for script in data.script_names:
        total = (scripts == script).sum()
        for part, share in (("train", 0.5), ("validation", 0.15), ("test", 0.35)):
            assert abs((scripts[split[part]] == script).sum() - share * total) <= 1
    assert not np.array_equal(split["train"], glyphs.unseen_characters(seed=1)["train"])


def test_unseen_scripts_tests_on_scripts_that_do_not_train(data):
    scripts = np.array(data.class_scripts)
    split = glyphs.unseen_scripts()
    assert set(scripts[split["test"]]) == set(glyphs.UNSEEN_SCRIPTS)
    assert (
        set(scripts[split["train"]]) == set(scripts[split["validation"]]) == set(data.script_names) - set(glyphs.UNSEEN_SCRIPTS)
    )


def test_font_list_matches_the_font_table(data, rows):
    assert tuple(rows[0]) == fonts.COLUMNS
    assert [row["family"] for row in rows] == data.font_names
    assert len(set(data.font_names)) == len(data.font_names)
    assert all(len(row["sha256"]) == 64 and row["package"] and row["version"] and row["file"] for row in rows)


def test_only_allowed_licences(rows):
    assert set(fonts.LICENCES) == ALLOWED
    assert {row["licence"] for row in rows} <= ALLOWED
    assert {row["licence_read_from"] for row in rows} <= {"face", "Debian copyright file"}


def test_notice_counts_what_the_list_holds(data, rows):
    notice = (FOLDER / "NOTICE.md").read_text(encoding="utf-8")
    assert f"{len(data.labels):,} pictures of {len(data.class_names):,} characters" in notice
    assert f"{len(rows)} freely licensed fonts" in notice and f"{len({row['package'] for row in rows})} packages" in notice
    table = {
        line.split("|")[1].strip(): int(line.split("|")[2])
        for line in notice.splitlines()
        if line.count("|") == 3 and line[-3].isdigit()
    }
    assert sum(table.values()) == len(rows)
    for licence, count in Counter(row["licence"] for row in rows).items():
        assert count in [n for name, n in table.items() if licence.split("-")[0].lower() in name.lower()]


COPYRIGHT = "Format: 1.0\n\nFiles: *\nCopyright: someone\nLicense: {}\n text\n .\n more\n\nFiles: debian/*\nLicense: GPL-3+\n"


@pytest.mark.parametrize(
    ("field", "copyright_file", "expected"),
    [
        ("Licensed under the SIL Open Font License, Version 1.1", "", ("OFL", "face")),
        ("under either the SIL Open Font License or the LGPL", "", ("OFL", "face")),
        ("GPL- General Public License AND OFL-Open Font License", "", None),
        ("GNU General Public License", COPYRIGHT.format("OFL-1.1"), None),
        ("Creative Commons Attribution 3.0", COPYRIGHT.format("OFL-1.1"), None),
        ("Use is subject to the license agreement", COPYRIGHT.format("OFL-1.1"), None),
        ("Copyright 2011 someone", COPYRIGHT.format("OFL-1.1"), ("OFL", "Debian copyright file")),
        ("Copyright 2011 someone", COPYRIGHT.format("OFL-1.1 or BSD-3-clause"), ("OFL", "Debian copyright file")),
        ("Copyright 2011 someone", COPYRIGHT.format("OFL-1.1 and BSD-3-clause"), None),
        ("Copyright 2011 someone", COPYRIGHT.format("GPL-2+"), None),
        ("Copyright 2011 someone", COPYRIGHT.format("BAEKMUK-MIT-LIKE"), None),
        ("Copyright 2011 someone", "", None),
    ],
)
def test_licence_of_a_face(field, copyright_file, expected):
    assert fonts.licence_of(field, copyright_file) == expected


def test_rendering_is_deterministic_centred_and_16_levels():
    font = ImageFont.load_default(72)  # the font inside Pillow
    if not isinstance(font, ImageFont.FreeTypeFont):
        pytest.skip("this Pillow has no FreeType")
    first, second = build.render(font, "R"), build.render(font, "R")
    assert first is not None and second is not None
    np.testing.assert_array_equal(first, second)
    assert first.shape == (32, 32) and first.dtype == np.uint8 and first.max() <= 15
    rows = np.flatnonzero(first.any(axis=1))
    assert (rows[0], rows[-1]) == (2, 29)
    assert build.render(font, " ") is None


def pictures(count: int, seed: int) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 16, (count, 32, 32)).astype(np.uint8)


def test_homoglyphs_finds_a_planted_one_and_keeps_the_earlier():
    glyph_sets = [dict(enumerate(pictures(5, font))) for font in range(10)]
    for font in range(4):  # 40 % of the fonts draw class 3 as class 1
        glyph_sets[font][3] = glyph_sets[font][1]
    for font in range(3):  # 30 % is not more than 30 %
        glyph_sets[font][4] = glyph_sets[font][2]
    assert build.homoglyphs(glyph_sets, 5) == {3}


def test_misdrawn_finds_the_font_with_shuffled_letters():
    letters = pictures(6, 0)
    glyph_sets = [dict(enumerate(letters)) for _ in range(9)] + [dict(enumerate(np.roll(letters, 1, axis=0)))]
    assert build.misdrawn(glyph_sets, ["Latin"] * 6) == {(9, "Latin")}


def test_unicase_fonts_are_recognised():
    capitals = dict(zip("ABDEGHNQR", pictures(9, 0), strict=True))
    ordinary = capitals | dict(zip("abdeghnqr", np.rot90(pictures(9, 1), axes=(1, 2)) // 5 * 5, strict=True))
    unicase = capitals | {capital.lower(): image for capital, image in capitals.items()}
    striped = {c: image * (np.arange(32) // 4 % 2 == (c.islower())).astype(np.uint8) for c, image in ordinary.items()}
    assert build.is_unicase(unicase)
    assert not build.is_unicase(striped)
    assert not build.is_unicase({})


def test_distinct_skips_near_copies_and_stops_at_16():
    blocks = np.zeros((20, 32, 32), np.uint8)
    for index in range(20):  # 20 blocks that do not touch, even blurred
        row, column = divmod(index, 5)
        blocks[index, 8 * row : 8 * row + 2, 6 * column : 6 * column + 2] = 15
    assert build.distinct(blocks) == list(range(16))
    assert build.distinct(np.concatenate([blocks[:3], blocks[:3], blocks[3:5]])) == [0, 1, 2, 6, 7]


def test_blur_is_exact_and_keeps_the_mass():
    image = np.zeros((1, 32, 32), np.uint8)
    image[0, 10, 10] = 15
    blurred = build.blur(image)
    assert blurred.dtype == np.float64 and blurred.sum() == 15 * 64 * 64
    assert blurred.reshape(32, 32)[10, 10] == 15 * 32 * 32


def test_inventory_has_no_character_twice():
    characters = [character for _, character in build.inventory()]
    assert len(set(characters)) == len(characters)
    assert len({script for script, _ in build.inventory()}) == 12


def test_help_and_package_list_of_the_documented_commands(rows):
    shown = run_builder("--help")
    assert shown.returncode == 0 and "--fonts" in shown.stdout
    listed = run_builder("--print-packages")
    assert listed.returncode == 0
    assert listed.stdout.split() == sorted({f"{row['package']}={row['version']}" for row in rows})


def test_loader_and_builder_do_not_import_torch():
    code = "import sys, tools.glyphs.build as b; b.inventory(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_missing_and_different_fonts_are_one_line_and_status_2(tmp_path, rows):
    out = str(tmp_path / "glyphs.npz")
    missing = run_builder("--fonts", str(tmp_path), "--out", out)
    assert missing.returncode == 2 and missing.stderr.count("\n") == 1 and rows[0]["file"] in missing.stderr
    (tmp_path / rows[0]["file"]).write_bytes(b"another font")
    different = run_builder("--fonts", str(tmp_path), "--out", out)
    assert different.returncode == 2 and different.stderr.count("\n") == 1 and "sha256" in different.stderr
    nothing = run_builder()
    assert nothing.returncode == 2 and nothing.stderr.count("\n") == 1


@pytest.mark.slow
def test_rebuild_gives_the_same_file(tmp_path, rows):
    if features.version("pil") != build.PILLOW or features.version("freetype2") != build.FREETYPE:
        pytest.skip(f"needs Pillow {build.PILLOW} with FreeType {build.FREETYPE}: others move pixels")
    try:
        fonts.recorded(rows, [DEBIAN_FONTS])
    except DataError as error:
        pytest.skip(f"the recorded fonts are not installed: {error}")
    out = tmp_path / "glyphs.npz"
    assert run_builder("--fonts", str(DEBIAN_FONTS), "--out", str(out)).returncode == 0
    assert out.read_bytes() == (FOLDER / "glyphs.npz").read_bytes()
