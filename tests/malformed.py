"""Malformed inputs for every reader: seeded mutations of small valid files. What readers must make of them is in
`malformed_readers`.

Each generator yields (name, bytes): the number and kind of the mutation with the file's name as the last word, and the file's
content. The same seed gives the same inputs.
"""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from dmlcore.training.settings import PLACES

CLASSES, SAMPLES = 8, 4
Inputs = Iterator[tuple[str, bytes]]
_ODD = (
    b"\0",
    b"\xff",
    b"\xfe\xff",
    b"\xef\xbb\xbf",
    b"\xe9",
    b"\n",
    b"\r",
    b'"',
    b",",
    b";",
    b"\t",
    b"[",
    b"{",
    b"nan",
    b"-1",
    b"1e999",
    b"9" * 400,
)


def mutated(content: bytes, rng: np.random.Generator, tokens: tuple[bytes, ...] = ()) -> tuple[str, bytes]:
    """One mutation of a file, and what it is called."""
    kinds = ("flip", "cut", "drop", "repeat", "insert", "replace", "zero", "swap", "join")
    kind = kinds[rng.integers(len(kinds))]
    size = len(content)
    start, stop = sorted(int(place) for place in rng.integers(0, size + 1, 2))
    stop = min(stop, start + int(rng.integers(1, 40)))
    words = (*tokens, *_ODD)
    word = words[rng.integers(len(words))]
    data = bytearray(content)
    if kind == "flip":
        for place in rng.integers(0, size, rng.integers(1, 6)):
            data[place] ^= 1 << int(rng.integers(8))
    elif kind == "cut":
        del data[start:]
    elif kind == "drop":
        del data[start:stop]
    elif kind == "repeat":
        data[start:stop] = data[start:stop] * int(rng.integers(2, 200))
    elif kind == "insert":
        data[start:start] = word
    elif kind == "replace":
        data[start:stop] = word
    elif kind == "zero":
        data[start:stop] = bytes(stop - start)
    elif kind == "swap":
        data = data[stop:] + data[:stop]
    else:
        data += word + content[start:]
    return kind, bytes(data)


def mutations(files: list[tuple[str, bytes]], seed: int, count: int, tokens: tuple[bytes, ...] = ()) -> Inputs:
    """Mutations of each of some files in turn, given by name and content."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        name, content = files[number % len(files)]
        kind, content = mutated(content, rng, tokens)
        if rng.random() < 0.3:
            kind, content = mutated(content or b"x", rng, tokens)
        yield f"{number:05d} {kind} {name}", content


def _saved(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(CLASSES), SAMPLES)
    return {"x": rng.normal(size=(len(y), 3)).astype(np.float32), "y": np.array([f"c{label}" for label in y])}


def _odd_array(rng: np.random.Generator, count: int) -> np.ndarray:
    """Whole, but not what is asked for: other types, shapes and values."""
    numbers = np.array([0, 1, -1, 2.0**24, 2.0**53, 2.0**63, 2.0**64, 0.5, np.nan, np.inf, -0.0])[rng.integers(0, 11, count)]
    words = [
        "",
        " ",
        "nan",
        "c0",
        "c0 ",
        "C0",
        "train",
        "val",
        "test",
        "0",
        "2",
        "e\u0301",
        "\xe9",
        "\udce9",
        "\x1b[31m",
        "x" * 300,
    ]
    texts = np.array(words)[rng.integers(0, len(words), count)]
    kinds = [np.float16, np.float32, np.float64, np.longdouble, complex, "S3", "M8[D]", "V4", ">f8", ">U4", ">i2", bool]
    with np.errstate(all="ignore"):
        choices = [
            numbers.round(),
            numbers,
            texts,
            texts.reshape(-1, 1),
            numbers[:, None].repeat(3, 1),
            np.array(3),
            numbers[:0],
            numbers[:-1],
        ]
        choices += [np.zeros(count, kind) for kind in kinds] + [np.zeros((count, 3), kind) for kind in kinds]
        choices += [
            np.arange(count, dtype=np.uint64) + 2**63,
            np.arange(count) - 2**62,
            rng.integers(0, 256, (count, 4, 4, 4), np.uint8),
        ]
    return choices[rng.integers(len(choices))]


def npz(seed: int, count: int) -> Inputs:
    """`.npz` files: the archive's bytes mutated, those of an array inside a whole archive, and arrays of odd values."""
    arrays = _arrays()
    pictures = np.zeros((CLASSES * SAMPLES, 4, 4), np.uint8)
    numbers = np.repeat(np.arange(float(CLASSES)), SAMPLES)
    files = [("text.npz", _saved(**arrays)), ("pictures.npz", _saved(x=pictures, y=numbers))]
    tokens = (
        b"'<f4'",
        b"'|O'",
        b"'>f8'",
        b"'<U3'",
        b"(32, 3)",
        b"(32, -3)",
        b"(999999999999, 3)",
        b"(,)",
        b"True",
        b"PK\3\4",
        b"PK\1\2",
    )
    for number, (name, content) in enumerate(mutations(files, seed, count, tokens)):
        if number % 2:
            yield name, content
    rng = np.random.default_rng((seed, 1))
    for number in range(count // 4):
        with zipfile.ZipFile(io.BytesIO(files[number % 2][1])) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        target = sorted(parts)[rng.integers(len(parts))]
        head = parts[target][:128]  # the description of an array, where mutations are seen by the parser
        kind, head = mutated(head, rng, tokens)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, content in {**parts, target: head + parts[target][128:]}.items():
                archive.writestr(name, content)
        yield f"{number:05d} inner {kind} {target}.npz", buffer.getvalue()
    names = ("x", "y", "split", "official_split", "class_name", "class_group")
    for number in range(count - count // 2 - count // 4):
        target = names[rng.integers(len(names))]
        yield f"{number:05d} odd {target} text.npz", _saved(**{**arrays, target: _odd_array(rng, CLASSES * SAMPLES)})


def manifests(seed: int, count: int) -> Inputs:
    """CSV files that list the images of `malformed_readers.write_images`."""
    rows = [(f"{label}/{sample}.png", f"c{label}") for label in range(CLASSES) for sample in range(SAMPLES)]
    plain = "path,label\n" + "".join(f"{path},{label}\n" for path, label in rows)
    parts = "path;label;split\r\n" + "".join(
        f'"{path}";{label};{("train", "val", "test")[row % 3]}\r\n' for row, (path, label) in enumerate(rows)
    )
    tokens = (b'""', b",,", b"\n\n", b"path", b"label", b"split", b"train", b"../", b"/dev/zero", b"/etc", b"<NA>")
    yield from mutations([("plain.csv", plain.encode()), ("parts.csv", parts.encode())], seed, count, tokens)


def images(seed: int, count: int) -> Inputs:
    """Image files of many kinds. The name's suffix is that of the kind."""
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((20, 16))
    deep = Image.fromarray(rng.integers(0, 65536, (16, 20)).astype(np.uint16))
    kinds = [
        ("a.jpg", colour, {}),
        ("b.jpg", colour, {"progressive": True}),
        ("a.png", colour, {}),
        ("b.png", deep, {}),
        ("c.png", colour.convert("P"), {}),
    ]
    kinds += [
        ("a.gif", colour.convert("P"), {}),
        ("a.webp", colour, {}),
        ("a.tiff", colour, {}),
        ("b.tiff", deep, {"compression": "tiff_deflate"}),
    ]
    kinds += [
        ("a.bmp", colour, {}),
        ("a.ppm", colour, {}),
        ("a.tga", colour, {"compression": "tga_rle"}),
        ("a.jp2", colour, {}),
    ]
    kinds += [("c.tiff", Image.fromarray(rng.random((16, 20), dtype=np.float32) * 255), {})]
    files = []
    for name, picture, options in kinds:
        buffer = io.BytesIO()
        picture.save(buffer, {"jpg": "JPEG", "tiff": "TIFF", "jp2": "JPEG2000"}.get(name[2:], name[2:].upper()), **options)
        files.append((name, buffer.getvalue()))
    yield from mutations(files, seed, count, (b"IEND", b"IHDR", b"\xff\xd9", b"\xff\xd8", b"\x7f\xff\xff\xff"))


def settings(seed: int, count: int) -> Inputs:
    """TOML files of settings."""
    text = (
        b'plugins = ["ms", "proxy_anchor"]\nsteps = 20\ndata = "glyphs"\n[optimiser]\nlearning-rate = 0.01\n[ms]\nalpha = 4\n'
        b"[model]\ncompress = 0\n[run]\nseed = 7\n"
    )
    tokens = (
        b"[[a]]",
        b"[ms]",
        b"steps = 3",
        b"a.b.c = 1",
        b"1979-05-27",
        b"inf",
        b"0x",
        b'"""',
        b"'",
        b"true",
        b"[" * 3000,
        b"a = {" * 500,
        b"\\ud800",
        b"9" * 30,
    )
    yield from mutations([("settings.toml", text)], seed, count // 2, tokens)
    rng = np.random.default_rng((seed, 1))
    keys = sorted(PLACES)
    values = (
        "-1",
        "0",
        "1e400",
        "nan",
        "inf",
        "9" * 40,
        '""',
        '"x"',
        '"none"',
        "[]",
        '["ms"]',
        "[1, [2]]",
        "{}",
        "{a = 1}",
        "true",
        "1979-05-27",
        '"\\u0000"',
    )
    for number in range(count - count // 2):
        key, value = keys[rng.integers(len(keys))], values[rng.integers(len(values))]
        table = ("", "", "[ms]\n", "[optimiser]\n", "[[run]]\n", "[a.b]\n")[rng.integers(6)]
        yield f"{number:05d} value settings.toml", f"{table}{key} = {value}\n".encode()


def splits(seed: int, count: int) -> Inputs:
    """Files of class splits."""
    names = [f"c{label}" for label in range(CLASSES)]
    split = {
        "id": "0", "fid": 1.5, "swapped": 0, "removed": 0, "train": names[:5], "test": names[5:],
        "train_part": names[:3], "validation_part": names[3:5], "episodes": {"1": [{"c5": ["0"], "c6": ["1"]}]},
    }  # fmt: skip
    file = {
        "format": "dmlcore-splits-1",
        "data": "glyphs",
        "options": {},
        "default": "0",
        "splits": [split],
        "made_by": {},
        "progress": [],
    }
    tokens = (
        b"null",
        b"true",
        b"[]",
        b"{}",
        b'"c1"',
        b"NaN",
        b"Infinity",
        b"1e400",
        b"[" * 3000,
        b"\\ud800",
        b'"fid":',
        b'"0"',
        b"9" * 30,
    )
    texts = [("one.json", json.dumps(file).encode()), ("two.json", json.dumps(file, indent=1).encode())]
    yield from mutations(texts, seed, count // 2, tokens)
    rng = np.random.default_rng((seed, 1))
    values = [
        None,
        True,
        -1,
        0,
        0.5,
        float("inf"),
        float("nan"),
        10**30,
        "",
        "0",
        "c1",
        "\ud800",
        "\x1b[31m",
        [],
        ["c1", "c1"],
        ["c9"],
        {},
        {"0": []},
        [[[]]],
    ]
    for number in range(count - count // 2):
        content = json.loads(texts[0][1])
        holder, key = _places(content)[rng.integers(len(_places(content)))]
        kind = ("value", "gone", "further")[rng.integers(3)]
        if kind == "gone":
            del holder[key]
        elif isinstance(holder, dict) and kind == "further":
            holder[("", "id", "x", "\ud800", "1", "-1", "\xb2")[rng.integers(7)]] = values[rng.integers(len(values))]
        else:
            holder[key] = values[rng.integers(len(values))]
        yield f"{number:05d} {kind} splits.json", json.dumps(content).encode()


def _places(content: Any) -> list[tuple[Any, Any]]:
    """Every container in a nested value, with each of its keys."""
    if not isinstance(content, dict | list):
        return []
    keys = list(content) if isinstance(content, dict) else range(len(content))
    return [place for key in keys for place in [(content, key), *_places(content[key])]]


def pickles(seed: int, count: int) -> Inputs:
    """Pickles of plain data in all protocols."""
    value = {"train": [1, 2, 3], "test": ["a", "é", None], "fid": np.float64(1.5), "parts": {"0": (True, 2.5, 2**70)}}
    files = [(f"protocol{protocol}.pkl", pickle.dumps(value, protocol=protocol)) for protocol in range(6)]
    tokens = (b"(", b".", b"R", b"c__builtin__\neval\n", b"\x8a\xff", b"h\0", b"2", b"b", b"\x96", b"e" * 9, b"]" * 300, b"s")
    yield from mutations(files, seed, count, tokens)
