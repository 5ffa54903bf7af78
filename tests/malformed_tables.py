"""Malformed inputs for the readers of tables of columns, archives and single arrays. See `malformed`."""

from __future__ import annotations

import io
import tarfile

import numpy as np
from malformed import CLASSES, SAMPLES, Inputs, mutations
from PIL import Image

_LABELS = np.repeat(np.arange(CLASSES), SAMPLES)


def _picture(row: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (6, 6), 5 * row).save(buffer, "PNG")
    return buffer.getvalue()


def arrays(seed: int, count: int) -> Inputs:
    """`.npy` files of features and of images."""
    files = []
    for name, values in (
        ("a.npy", np.random.default_rng(0).normal(size=(len(_LABELS), 3)).astype(np.float32)),
        ("b.npy", np.zeros((len(_LABELS), 4, 4), np.uint8)),
    ):
        buffer = io.BytesIO()
        np.save(buffer, values)
        files.append((name, buffer.getvalue()))
    yield from mutations(files, seed, count, (b"'<f4'", b"'|O'", b"'<U3'", b"(32, -3)", b"(999999999999, 3)", b"True"))


def shards(seed: int, count: int) -> Inputs:
    """Archives of images with labels, in two dialects of tar."""
    files = []
    for name, dialect in (("a.tar", tarfile.USTAR_FORMAT), ("b.tar", tarfile.PAX_FORMAT)):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=dialect) as archive:
            for row, label in enumerate(_LABELS):
                key = f"{'é' * 60}/{row}" if name == "b.tar" else str(row)  # longer than a header has room for
                for ending, content in (("png", _picture(row)), ("cls", str(label).encode())):
                    about = tarfile.TarInfo(f"{key}.{ending}")
                    about.size = len(content)
                    archive.addfile(about, io.BytesIO(content))
        files.append((name, buffer.getvalue()))
    yield from mutations(files, seed, count, (b"ustar", b"99999999999", b"path=", b".json", b".jpg", b"\x80\0\0\0"))


def parquet(seed: int, count: int) -> Inputs:
    """Parquet files of features and of images."""
    import pyarrow.parquet

    files = []
    for name, table in _tables().items():
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(table, buffer)
        files.append((f"{name}.parquet", buffer.getvalue()))
    yield from mutations(files, seed, count, (b"PAR1", b"label", b"\xff\xff\xff\x7f"))


def arrow(seed: int, count: int) -> Inputs:
    """Arrow files of features, as a stream, and of images, as a file."""
    import pyarrow.ipc

    files = []
    for name, table in _tables().items():
        buffer = io.BytesIO()
        new = pyarrow.ipc.new_stream if name == "numbers" else pyarrow.ipc.new_file
        with new(buffer, table.schema) as writer:
            writer.write_table(table, max_chunksize=20)
        files.append((f"{name}.arrow", buffer.getvalue()))
    yield from mutations(files, seed, count, (b"ARROW1", b"label", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f"))


def _tables() -> dict:
    import pyarrow

    numbers = list(np.random.default_rng(0).normal(size=(len(_LABELS), 3)).astype(np.float32))
    texts = [f"c{label}" for label in _LABELS]
    pictures = [_picture(row) for row in range(len(_LABELS))]
    return {
        "numbers": pyarrow.table({"label": texts, "x": numbers}),
        "pictures": pyarrow.table({"label": _LABELS, "image": pictures}),
    }
