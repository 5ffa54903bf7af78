"""What every reader must make of the inputs of `malformed`: one line of error, or all rows accounted for.

`READERS` has, by kind, the generator and a function that reads one file as a user's command would. `attempt` reads one input.
"""

from __future__ import annotations

import importlib.util
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import malformed
import malformed_tables
import numpy as np
from malformed import CLASSES, SAMPLES, Inputs
from PIL import Image

from dmlcore.data import SplitFile, Splits, open_data
from dmlcore.errors import DmlcoreError
from dmlcore.protocols.shift.pickles import read_pickle
from dmlcore.training import RunConfig


def write_images(folder: Path) -> None:
    """The images that `manifests` lists, in one folder per class, 6 x 6 pixels."""
    for label in range(CLASSES):
        for sample in range(SAMPLES):
            path = folder / str(label) / f"{sample}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (6, 6), 30 * label + sample).save(path)


def _count(notes: list[str], pattern: str) -> int:
    return sum(int(match[1].replace(",", "")) for note in notes if (match := re.match(rf"([\d,]+) {pattern}", note)))


def _samples(data: Splits) -> int:
    return sum(len(part) for part in (data.train, data.validation, data.test))


def read_npz(file: Path) -> None:
    """No row is lost without a note."""
    data = open_data(str(file))
    with np.load(file, allow_pickle=False) as arrays:
        assert _samples(data) + _count(data.notes, "rows without a label") == len(arrays["x"])


def read_manifest(file: Path) -> None:
    """Every line that holds something is a sample or is counted in a note."""
    data = open_data(str(file))
    with open(file, encoding="utf-8-sig", newline="") as opened:
        lines = sum(bool(line.strip("\r\n")) for line in opened) - 1
    skipped = (
        _count(data.notes, r"rows (without|that)")
        + _count(data.notes, "listed images")
        + _count(data.notes, "images? that cannot")
    )
    assert _samples(data) + skipped == lines, (lines, data.notes)


def read_rows(file: Path) -> None:
    """A table that is read has samples, all of which can be fetched; none is lost without a note."""
    data = open_data(str(file), options={"memory_mb": 0})
    for part in (data.train, data.validation, data.test):
        part.batch(range(len(part)))
    assert _samples(data) + _count(data.notes, r"(rows|samples|images?) (without|that)") > 0


def read_pair(file: Path) -> None:
    """No row of an array is lost without a note."""
    np.save(file.with_name(f"{file.stem}_y.npy"), np.repeat(np.arange(CLASSES), SAMPLES))
    assert _samples(open_data(str(file))) == CLASSES * SAMPLES


def read_image(file: Path) -> None:
    """An image among whole ones is read, or counted in a note, in memory and as a file alike."""
    counts = set()
    for megabytes in (64, 0):
        data = open_data(str(file.parent.parent), options={"memory_mb": megabytes}, image_size=8)
        skipped = _count(data.notes, "images? that cannot")
        assert _samples(data) + skipped == CLASSES * SAMPLES + 1
        for part in (data.train, data.validation, data.test):
            part.batch(range(len(part)))
        counts.add(skipped)
    assert len(counts) == 1


def read_settings(file: Path) -> None:
    """What is read can be written and read again."""
    config = RunConfig.read(file)
    text = config.toml().encode()
    file.write_bytes(text)
    RunConfig.read(file)


def read_splits(file: Path) -> None:
    """What is read can be written and read again, with the same content."""
    first = SplitFile.read(file)
    file.write_bytes(first.to_json())
    assert SplitFile.read(file) == first


def read_plain_pickle(file: Path) -> None:
    """The value is plain: JSON takes it."""
    json.dumps(read_pickle(file), default=repr).encode()


READERS: dict[str, tuple[Callable[[int, int], Inputs], Callable[[Path], None]]] = {
    "npz": (malformed.npz, read_npz),
    "csv": (malformed.manifests, read_manifest),
    "images": (malformed.images, read_image),
    "toml": (malformed.settings, read_settings),
    "splits": (malformed.splits, read_splits),
    "pickles": (malformed.pickles, read_plain_pickle),
    "npy": (malformed_tables.arrays, read_pair),
    "tar": (malformed_tables.shards, read_rows),
}
if importlib.util.find_spec("pyarrow") is not None:
    READERS |= {"parquet": (malformed_tables.parquet, read_rows), "arrow": (malformed_tables.arrow, read_rows)}


def attempt(kind: str, name: str, content: bytes, folder: Path) -> str:
    """Let a reader read one input.

    Args:
        kind: of `READERS`.
        name: of the input.
        content: of the file.
        folder: an empty one, or that of the call before.

    Returns:
        The reader's one line of error, or nothing where the input was read.

    Raises:
        Exception: anything but an error that is raised on purpose, a message of several lines or with characters that no
            terminal takes, and lost rows.
    """
    read = READERS[kind][1]
    if kind in ("csv", "images") and not (folder / "0").exists():
        write_images(folder)
    file = folder / "0" / f"mutated.{name.rpartition('.')[2]}" if kind == "images" else folder / name[name.rfind(" ") + 1 :]
    file.write_bytes(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # of numpy: a number that became another
            read(file)
    except DmlcoreError as error:
        message = str(error)
        assert message and "\n" not in message, repr(message)
        message.encode()
        return message
    finally:
        file.unlink()
    return ""
