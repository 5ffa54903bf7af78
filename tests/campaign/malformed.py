"""Seeded generators of malformed files, one for each reader. Each yields `(name, content)` without end; the name says what is
wrong in a few words. Some files are whole: what a reader accepts must work too.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from .mutations import Draws, damaged, mutated, pick

Malformed = Iterator[tuple[str, bytes]]

CANARY = "canary"
"""A file that appears where a reader runs code of what it reads."""


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (CANARY, "w"))


def npz(draws: Draws, width: int = 12) -> Malformed:
    """Arrays `x` and `y` of many types and shapes, further arrays, damaged archives."""
    while True:
        count = pick(draws, [0, 1, 2, 3, 40, 72])
        arrays: dict[str, Any] = {"x": draws.normal(size=(count, width)).astype(np.float32), "y": np.arange(count) // 6}
        done = []
        for _ in range(int(draws.integers(0, 3))):
            name, change = pick(draws, _CHANGES)
            arrays = change(draws, arrays, count)
            done.append(name)
        buffer = io.BytesIO()
        pick(draws, [np.savez, np.savez_compressed])(buffer, **arrays)
        content = buffer.getvalue()
        if draws.random() < 0.3:
            kind, content = damaged(draws, content)
            done.append(kind)
        yield ", ".join(done) or "whole", content


def _x(draws: Draws, arrays: dict[str, Any], count: int) -> dict[str, Any]:
    kind = pick(draws, ["f2", "f8", "i8", "u1", "c16", "?", "S3", "U3", "M8[s]", "O", ">f4", "u8"])
    x = np.zeros((count, 12), dtype=kind) if kind in ("S3", "U3", "M8[s]") else arrays.get("x", np.zeros((1, 12))).astype("f8")
    return {**arrays, "x": x if kind in ("S3", "U3", "M8[s]") else np.nan_to_num(x).astype(kind)}


def _shape(draws: Draws, arrays: dict[str, Any], count: int) -> dict[str, Any]:
    shape = pick(
        draws, [(), (0,), (count,), (count, 0), (count, 1), (count, 5, 5), (count, 4, 4, 3), (count, 2, 2, 2, 2), (1, count)]
    )
    return {**arrays, "x": draws.integers(0, 255, shape).astype(pick(draws, [np.uint8, np.float32]))}


def _values(draws: Draws, arrays: dict[str, Any], count: int) -> dict[str, Any]:
    x = np.array(arrays.get("x", np.zeros((1, 12))))
    if x.size and x.dtype.kind == "f":
        x.flat[int(draws.integers(x.size))] = pick(draws, [np.nan, np.inf, -np.inf, 1e38, 1e-42])
    return {**arrays, "x": x}


def _y(draws: Draws, arrays: dict[str, Any], count: int) -> dict[str, Any]:
    labels = np.arange(count) // 6
    return {
        **arrays,
        "y": pick(
            draws,
            [
                labels.astype("f8") + 0.5,
                np.full(count, np.nan),
                labels.astype("f4") + 2.0**63,
                labels.astype("u8") + np.uint64(2**63),
                labels - 5,
                labels[: count // 2],
                labels[:, None],
                np.array([f"c{label} " if label % 2 else f"c{label}" for label in labels], dtype="U8"),
                np.array([b"\xe4\xff"] * count, dtype="S2"),
                np.array(["\x1b[31m"] * count, dtype="U5"),
                np.zeros(count, dtype="?"),
                np.zeros(count, dtype="M8[D]"),
                np.array([None] * count, dtype="O"),
                np.array(3),
                np.arange(count),
                np.zeros(count, dtype="i8"),
            ],
        ),
    }


def _further(draws: Draws, arrays: dict[str, Any], count: int) -> dict[str, Any]:
    name = pick(
        draws, ["class_name", "class_group", "split", "official_split", "z", "X", "labels", "\x1b[31m", "../evil", "a" * 300]
    )
    value = pick(
        draws,
        [
            np.array(["a", "b"]),
            np.array(["train", "test", "val"] * (count // 3)),
            np.arange(count) % 3,
            np.arange(count) % 5,
            np.array([f"n{k}" for k in range(count // 6 + 1)]),
            np.array(["same"] * (count // 6)),
            np.array(["\x1b[2J"] * count),
            np.array([1.5, np.nan]),
            np.array([_Evil()], dtype="O"),
            np.array("x" * 1000),
        ],
    )
    return {**arrays, name: value}


def _missing(draws: Draws, arrays: dict[str, Any], count: int) -> dict[str, Any]:
    return {name: value for name, value in arrays.items() if draws.random() < 0.5}


_CHANGES: list[tuple[str, Callable[[Draws, dict[str, Any], int], dict[str, Any]]]] = [
    ("type of x", _x),
    ("shape of x", _shape),
    ("values of x", _values),
    ("labels", _y),
    ("labels", _y),
    ("a further array", _further),
    ("a further array", _further),
    ("a missing array", _missing),
]


def csv(draws: Draws) -> Malformed:
    """Lists of images: columns, quotes, separators, encodings, names of nothing."""
    rows = [f"pics/{label}/{number}.png,{label}" for label in range(8) for number in range(4)]
    fields = [
        "",
        '"',
        '""',
        '"a',
        "\x00",
        "\x1b[31m",
        "nan",
        "\t",
        ";",
        "pics",
        "/etc/hostname",
        "pics/0/0.png",
        "ä" * 300,
        "x" * 200_000,
    ]
    while True:
        separator = pick(draws, [",", ",", ",", ";", "\t", "|", ", "])
        head = pick(
            draws,
            ["path,label", "path,label", "path,label,split", "label,path", "file,class", "path", "", "path,path", "Path,Label"],
        )
        lines = [separator.join([head.replace(",", separator)])] + [row.replace(",", separator) for row in rows]
        done = [f"separator {separator!r}", f"head {head!r}"]
        for _ in range(int(draws.integers(0, 4))):
            at = int(draws.integers(len(lines) + 1))
            lines.insert(at, separator.join(pick(draws, fields) for _ in range(int(draws.integers(1, 5)))))
            done.append(f"line {at + 1}")
        text = pick(draws, ["\n", "\n", "\r\n", "\r", "\n\n"]).join(lines)
        encoding = pick(draws, ["utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"])
        content = text.encode(encoding, "replace")
        if draws.random() < 0.2:
            kind, content = damaged(draws, content)
            done.append(kind)
        yield ", ".join([*done, encoding]), content


def image(draws: Draws) -> Malformed:
    """Pictures of many formats, modes and sizes, damaged, with trailers, or with heads that promise too much."""
    modes = {"PNG": ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"], "JPEG": ["L", "RGB", "CMYK"], "GIF": ["L", "P"]}
    modes |= {"BMP": ["1", "L", "RGB"], "TIFF": ["1", "L", "RGB", "I;16", "F"], "WEBP": ["RGB", "RGBA"], "PPM": ["L", "RGB"]}
    while True:
        form = pick(draws, list(modes))
        mode = pick(draws, modes[form])
        size = (pick(draws, [1, 2, 16, 17, 300]), pick(draws, [1, 3, 16]))
        buffer = io.BytesIO()
        pixels = draws.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        picture = Image.fromarray(pixels)
        picture = picture.convert("L").convert("I").convert("I;16") if mode == "I;16" else picture.convert(mode)
        try:
            picture.save(buffer, format=form)
        except (OSError, KeyError):
            continue
        content, done = buffer.getvalue(), [form, mode, f"{size[0]} x {size[1]}"]
        if form == "PNG" and draws.random() < 0.2:
            head = struct.pack(">II", pick(draws, [0, 1, 30_000, 2**31 - 1]), pick(draws, [0, 30_000, 2**31 - 1]))
            content = content[:16] + head + content[24:]
            done.append("another size in its head")
        if draws.random() < 0.6:
            kind, content = damaged(draws, content)
            done.append(kind)
        yield ", ".join(done), content


def toml(draws: Draws) -> Malformed:
    """Configurations: keys, types, numbers and nesting that are wrong."""
    base: dict[str, Any] = {"plugins": ["ms"], "steps": 1, "eval_every": 1, "embedding_dim": 4, "data": "x.npz", "compress": 0}
    base |= {"learning_rate": 0.01, "fractions": [0.5, 0.2, 0.3], "ms": {"alpha": 2.0, "beta": 40.0}, "mlp": {"hidden": 8}}
    lines = [
        "[[a]]",
        "a = 1\na = 2",
        "[a]\n[a]",
        'x = "\\x"',
        "x = 1979-05-27",
        "x = '''",
        "= 1",
        "[",
        "x = [1, 'a']",
        "x.y.z = 1",
    ]
    lines += [
        "x = " + "[" * 5000,
        "x = " + "{a=" * 3000,
        "x = " + "9" * 5000,
        "x = " + ".".join("a" * 3000),
        "a" * 300 + " = 1",
    ]
    lines += [
        '"\\u001b[31m" = 1',
        "steps = 0x1F",
        "steps = 1e3",
        "steps = true",
        "plugins = 'ms'",
        "seed = -1",
        "data = ['x.npz']",
    ]
    while True:
        what, value = mutated(draws, base) if draws.random() < 0.7 else ("", base)
        try:
            text = _toml_of(value) if isinstance(value, dict) else str(value)[:1000]
        except RecursionError:  # so deep that it cannot be written
            continue
        for _ in range(int(draws.integers(0, 3)) if what else 1):
            line = pick(draws, lines)
            text = f"{line}\n{text}" if draws.random() < 0.5 else f"{text}\n{line}"
            what += f" {line[:20]!r}"
        content = text.encode(pick(draws, ["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"]), "replace")
        if draws.random() < 0.2:
            kind, content = damaged(draws, content)
            what += f" {kind}"
        yield what.strip(), content


def _toml_of(value: dict[str, Any]) -> str:
    """A dict as TOML, or as something near it."""
    plain, tables = [], []
    for key, entry in value.items():
        name = key if key.isidentifier() and key.isascii() else json.dumps(key)
        if isinstance(entry, dict) and all(not isinstance(inner, dict) for inner in entry.values()):
            tables.append(f"[{name}]\n" + "\n".join(f"{json.dumps(k)} = {_toml_value(v)}" for k, v in entry.items()))
        else:
            plain.append(f"{name} = {_toml_value(entry)}")
    return "\n".join([*plain, *tables]) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml_value(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    if isinstance(value, float):
        return str(value)
    return '""' if value is None else json.dumps(value)


def splits(draws: Draws, base: Any) -> Malformed:
    """Files of splits; `base` is the content of a whole one."""
    while True:
        what, value = mutated(draws, base)
        try:
            content = json.dumps(value, ensure_ascii=bool(draws.integers(2))).encode("utf-8", "surrogatepass")
        except RecursionError:
            continue
        if draws.random() < 0.3:
            kind, content = damaged(draws, content)
            what += f", {kind}"
        if draws.random() < 0.05:
            what, content = "nested", b"[" * pick(draws, [500, 100_000])
        yield what, content


def pickles(draws: Draws, base: Any) -> Malformed:
    """Pickles of splits; `base` is the content of a whole one. Some would run code."""
    while True:
        what, value = mutated(draws, base)
        if draws.random() < 0.2:
            what, value = "code", [value, _Evil()]
        try:
            content = pickle.dumps(value, protocol=int(draws.integers(0, 6)))
        except (UnicodeEncodeError, RecursionError):
            continue
        if draws.random() < 0.5:
            kind, content = damaged(draws, content)
            what += f", {kind}"
        yield what, content


def checkpoints(draws: Draws, base: dict[str, Any]) -> Malformed:
    """Checkpoints; `base` is the state of a whole one. Some would run code."""
    import torch

    from dmlcore.seals import seal_archive

    while True:
        what, value = mutated(draws, _without_tensors(base)) if draws.random() < 0.5 else _other_weights(draws, base)
        value = _with_tensors(value, base) if isinstance(value, dict) else value
        if draws.random() < 0.15:
            what, value = "code", {"format": base.get("format"), "model": _Evil()}
        buffer = io.BytesIO()
        try:
            torch.save(value, buffer, _use_new_zipfile_serialization=bool(draws.integers(4)))
        except (UnicodeEncodeError, RecursionError, OverflowError, RuntimeError):
            continue
        if zipfile.is_zipfile(buffer) and draws.random() < 0.7:
            seal_archive(buffer)  # so that more than its checksum is looked at
        content = buffer.getvalue()
        if draws.random() < 0.3:
            kind, content = damaged(draws, content)
            what += f", {kind}"
        elif draws.random() < 0.05:
            what, content = "an archive of something else", _archive()
        yield what, content


def _without_tensors(state: Any) -> Any:
    """Tensors of nested dicts as texts that name their place, so that a mutation can copy and compare them."""
    return {key: f"tensor:{key}" if key in ("model", "ensemble") else value for key, value in state.items()}


def _with_tensors(value: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    names = {f"tensor:{key}": base[key] for key in ("model", "ensemble") if key in base}
    return {key: names.get(entry, entry) if isinstance(entry, str) else entry for key, entry in value.items()}


def _other_weights(draws: Draws, base: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    import torch

    model = dict(base["model"])
    name = pick(draws, list(model))
    kinds: list[tuple[str, Any]] = [
        ("NaN", torch.full_like(model[name], math.nan) if model[name].is_floating_point() else model[name]),
        ("another shape", torch.zeros(3, 3)),
        ("complex numbers", torch.zeros(model[name].shape, dtype=torch.complex64)),
        ("text", "text"),
        ("None", None),
        ("whole numbers", torch.zeros(model[name].shape, dtype=torch.int64)),
    ]
    kind, value = pick(draws, kinds)
    return f"{name}: {kind}", {**base, "model": {**model, name: value}}


def _archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(_Evil()))
        file.writestr("archive/version", "3\n")
    return buffer.getvalue()
