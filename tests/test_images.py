"""Pixels of image files: every kind of file against values that are worked out here, and files that are damaged or cut off."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import image_folder
from PIL import Image

from dmlcore.data import UNREADABLE, decode, open_data
from dmlcore.data.images import read_header

SIDE = 8
GREYS = np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE) * 4
COLOURS = np.stack([GREYS, 255 - GREYS, GREYS.T], 2)


def saved(folder: Path, image: Image.Image, name: str, **options) -> str:
    path = folder / name
    image.save(path, **options)
    return str(path)


def pixels(path: str, channels: int = 3, side: tuple[int, int] = (SIDE, SIDE)) -> np.ndarray:
    """[H, W, C] as whole numbers."""
    return decode(path, side, channels).transpose(1, 2, 0).astype(int)


def on_white(values: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return values * share + 255 * (1 - share)


@pytest.mark.parametrize("name", ["deep.png", "deep.tiff", "deep.pgm"])
@pytest.mark.parametrize("further", [0, 1, 40000, 65535])  # what else the picture holds does not matter
def test_sixteen_bit_greys_are_divided_by_257(tmp_path, name, further):
    values = np.array([[0, 128, 129, 255], [256, 257, 385, 386], [32767, 32768, 65279, 65535], [1000, 2000, 3000, further]])
    path = saved(tmp_path, Image.fromarray(values.astype(np.uint16)), name)
    right = [[int(value / 257 + 0.5) for value in row] for row in values.tolist()]
    assert pixels(path, 1, (4, 4))[..., 0].tolist() == right
    assert read_header(path).is_grey


def test_neighbouring_sixteen_bit_pictures_are_alike(tmp_path):
    for value in (255, 256):
        path = saved(tmp_path, Image.fromarray(np.full((8, 8), value, np.uint16)), f"{value}.png")
        assert (pixels(path, 1) == 1).all()


def test_big_endian_and_32_bit_greys(tmp_path):
    values = np.array([[0, 257], [25700, 65535]])
    right = [[0, 1], [100, 255]]
    for name, kind in (("big.tiff", ">u2"), ("long.tiff", np.int32)):
        path = saved(tmp_path, Image.fromarray(values.astype(kind)), name)
        assert pixels(path, 1, (2, 2))[..., 0].tolist() == right
    for value in (-1, 65536, 2**31 - 1):
        with pytest.raises(ValueError, match=r"not all in 0\.\.65535"):
            decode(saved(tmp_path, Image.fromarray(np.full((2, 2), value, np.int32)), "beyond.tiff"), (2, 2), 1)


def test_sixteen_bit_clear_colour_is_white(tmp_path):
    path = saved(tmp_path, Image.fromarray(np.array([[1000, 2570]], np.uint16)), "clear.png", transparency=1000)
    assert pixels(path, 1, (1, 2))[..., 0].tolist() == [[255, 10]]


def test_sixteen_bit_colours_give_the_upper_bits(tmp_path):
    import struct
    import zlib

    values = np.array([[[0, 255, 256], [511, 512, 65535]]], ">u2")  # [1, 2, 3]
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0" + values.tobytes())),
        (b"IEND", b""),
    ]
    parts = [struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks]
    (tmp_path / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    assert pixels(str(tmp_path / "deep.png"), 3, (1, 2)).tolist() == [[[0, 0, 1], [1, 2, 255]]]


def test_floats_are_0_to_255_or_refused(tmp_path):
    values = np.array([[0, 1.4], [99.6, 255]], np.float32)
    path = saved(tmp_path, Image.fromarray(values), "float.tiff")
    assert pixels(path, 1, (2, 2))[..., 0].tolist() == [[0, 1], [100, 255]]
    for bad, reason in ((-1, "0..255"), (255.1, "0..255"), (np.nan, "0..255"), (np.inf, "0..255"), (0.5, "lie in 0..1")):
        path = saved(tmp_path, Image.fromarray(np.full((2, 2), bad, np.float32)), "bad.tiff")
        with pytest.raises(ValueError, match=reason):
            decode(path, (2, 2), 1)


def test_few_colours(tmp_path):
    bits = GREYS > 100
    assert np.array_equal(pixels(saved(tmp_path, Image.fromarray(bits), "bits.png"), 1)[..., 0], bits * 255)
    palette = Image.fromarray((GREYS // 64).astype(np.uint8)).convert("P")
    table = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 8, 7]])
    palette.putpalette(table.astype(np.uint8).tobytes())
    assert np.array_equal(pixels(saved(tmp_path, palette, "palette.png")), table[GREYS // 64])
    clear = table.copy()
    clear[1] = 255
    assert np.array_equal(pixels(saved(tmp_path, palette, "clear.png", transparency=1)), clear[GREYS // 64])
    assert np.array_equal(pixels(saved(tmp_path, palette, "clear.gif", transparency=1)), clear[GREYS // 64])


def test_transparency_is_laid_on_white(tmp_path):
    alpha = GREYS.T.copy()
    four = Image.fromarray(np.dstack([COLOURS, alpha]))
    assert np.abs(pixels(saved(tmp_path, four, "four.png")) - on_white(COLOURS, alpha)).max() <= 1
    two = Image.merge("LA", [Image.fromarray(GREYS), Image.fromarray(alpha)])
    assert np.abs(pixels(saved(tmp_path, two, "two.png"), 1) - on_white(GREYS[..., None], alpha)).max() <= 1


def test_printing_colours(tmp_path):
    inks = np.dstack([COLOURS, GREYS // 2])
    path = saved(tmp_path, Image.fromarray(inks, mode="CMYK"), "inks.tiff")
    right = (255 - inks[..., :3].astype(float)) * (255 - inks[..., 3:]) / 255
    assert np.abs(pixels(path) - right).max() <= 1


@pytest.mark.parametrize("turn", range(1, 9))
def test_orientation_of_cameras(tmp_path, turn):
    stored = np.arange(15, dtype=np.uint8).reshape(3, 5) * 16
    upright = {1: stored, 2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1], 5: stored.T}
    upright |= {6: stored[::-1].T, 7: stored[::-1, ::-1].T, 8: stored.T[::-1]}
    marks = Image.Exif()
    marks[0x0112] = turn
    path = saved(tmp_path, Image.fromarray(stored), "turned.png", exif=marks)
    header = read_header(path)
    assert (header.height, header.width) == upright[turn].shape
    assert np.array_equal(pixels(path, 1, upright[turn].shape)[..., 0], upright[turn])


def test_of_several_pictures_the_first_is_read(tmp_path):
    first, second = Image.new("RGB", (SIDE, SIDE), (200, 40, 40)), Image.new("RGB", (SIDE, SIDE), (0, 0, 250))
    moving = saved(tmp_path, first, "moving.gif", save_all=True, append_images=[second])
    assert (pixels(moving) == [200, 40, 40]).all()
    double = saved(tmp_path, first, "double.jpg", format="MPO", save_all=True, append_images=[second])
    assert np.abs(pixels(double) - [200, 40, 40]).max() <= 3


def with_noise(kind: str, **options) -> bytes:
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((80, 60))
    if options.pop("thumbnail", False):  # which has an end marker of its own, long before that of the file
        small = io.BytesIO()
        picture.resize((40, 30)).save(small, "JPEG")
        options["exif"] = b"Exif\0\0" + bytes(64) + small.getvalue()
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


KINDS = [("JPEG", {}), ("JPEG", {"progressive": True}), ("JPEG", {"thumbnail": True}), ("PNG", {})]


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_what_follows_a_photograph_does_not_matter(tmp_path, kind, options):
    whole = with_noise(kind, **options)
    path = tmp_path / f"photo.{kind.lower()}"
    path.write_bytes(whole)
    alone = pixels(str(path), 3, (60, 80))
    for tail in (bytes(5000), b"\xff\xd9" * 3000, whole * 3, b"ftypmp42" + bytes(range(256)) * 400):
        path.write_bytes(whole + tail)
        assert np.array_equal(pixels(str(path), 3, (60, 80)), alone)


@pytest.mark.parametrize(
    ("kind", "options"), [*KINDS, ("GIF", {}), ("WEBP", {}), ("TIFF", {}), ("BMP", {}), ("PPM", {}), ("TGA", {})]
)
def test_cut_files_are_never_half_read(tmp_path, kind, options):
    whole = with_noise(kind, **options)
    path = tmp_path / f"photo.{kind.lower()}"
    path.write_bytes(whole)
    sizes = ((60, 80), (1, 1), (15, 20))
    right = [decode(str(path), size, 3) for size in sizes]
    for length in [*range(1, len(whole), max(1, len(whole) // 40)), len(whole) - 30]:
        path.write_bytes(whole[:length])
        for size, values in zip(sizes, right, strict=True):
            try:
                cut = decode(str(path), size, 3)
            except UNREADABLE:
                continue
            assert np.array_equal(cut, values)  # nothing but padding or an end marker is missing


def test_no_program_is_started_for_a_picture(tmp_path, monkeypatch):
    """Pillow runs Ghostscript on EPS, whatever the file is called."""
    ran = tmp_path / "ran"
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {ran}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    path = tmp_path / "a.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(UNREADABLE):
        decode(str(path), (8, 8), 3)
    assert not ran.exists()


def damaged_folder(root: Path) -> Path:
    """Eight classes of five colour images, of which three are damaged in ways that only show when they are decoded."""
    image_folder(root, samples=5, size=(40, 30), mode="RGB")
    flipped = bytearray((root / "class 4" / "0.png").read_bytes())
    flipped[len(flipped) // 2] ^= 255
    (root / "class 4" / "0.png").write_bytes(flipped)
    whole = (root / "class 5" / "0.png").read_bytes()
    (root / "class 5" / "0.png").write_bytes(whole[: len(whole) // 2] + whole[-12:])  # with its end marker
    Image.fromarray(np.full((40, 30), np.nan, np.float32)).save(root / "class 6" / "nan.tiff")
    return root


def test_damaged_images_are_left_out_whether_or_not_data_fit_in_memory(tmp_path):
    folder = str(damaged_folder(tmp_path))
    kept_parts = []
    for megabytes in (512, 0):
        splits = open_data(folder, options={"memory_mb": megabytes})
        line = next(note for note in splits.notes if "cannot be read" in note)
        assert line.startswith("3 images that cannot be read were skipped: 'class 4/0.png'") and "nan.tiff" in line
        batches = [part.batch(range(len(part))) for part in (splits.train, splits.validation, splits.test)]
        kept_parts.append((list(splits.sample_names), batches))
    assert kept_parts[0][0] == kept_parts[1][0] and len(kept_parts[0][0]) == 38
    assert all(torch.equal(a, b) for a, b in zip(kept_parts[0][1], kept_parts[1][1], strict=True))
