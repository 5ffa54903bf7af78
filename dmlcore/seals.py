"""Checksums: what dmlcore writes carries a SHA-256 of itself, which is verified when the file is read.

Archives (checkpoints, embeddings) hold it in the comment of their zip directory, JSON under the key `checksum`. Both stay files
that any reader of their format opens. A file that somebody else made has none, and is accepted where such files are.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

CHECKSUM = "checksum"
_MARK = b"dmlcore sha256 "
_END = b"PK\x05\x06"  # the last record of a zip archive: 22 bytes and a comment, whose length is in its last two bytes
_END_SIZE = 22
_COMMENT_SIZE = len(_MARK) + 64


class SealError(ValueError):
    """The content is not what was written."""


def seal_archive(archive: io.BytesIO) -> None:
    """Put its checksum into the comment of a zip archive, in place: it may be large.

    Args:
        archive: without a comment, as `torch.save` and `numpy.savez` write it.
    """
    with archive.getbuffer() as content:
        assert bytes(content[-_END_SIZE:]).startswith(_END), "no zip archive, or one with a comment"
        content[-2:] = _COMMENT_SIZE.to_bytes(2, "little")
        digest = hashlib.sha256(content).hexdigest()
    archive.seek(0, os.SEEK_END)
    archive.write(_MARK + digest.encode())


def seal_archive_file(path: Path) -> None:
    """`seal_archive` for a file that may be larger than the memory."""
    with open(path, "rb+") as file:
        file.seek(-_END_SIZE, os.SEEK_END)
        assert file.read(4) == _END, "no zip archive, or one with a comment"
        file.seek(-2, os.SEEK_END)
        file.write(_COMMENT_SIZE.to_bytes(2, "little"))
        file.seek(0)
        digest = hashlib.sha256()
        while part := file.read(1 << 22):
            digest.update(part)
        file.write(_MARK + digest.hexdigest().encode())


def check_archive(content: bytes | memoryview) -> bool:
    """Whether a zip archive carries a checksum, which is then right.

    Raises:
        SealError: it is wrong.
    """
    view = memoryview(content)
    if len(view) < _COMMENT_SIZE or bytes(view[-_COMMENT_SIZE:-64]) != _MARK:
        return False
    if hashlib.sha256(view[:-_COMMENT_SIZE]).hexdigest().encode() != bytes(view[-64:]):
        raise SealError("its checksum is wrong: bytes have changed since it was written")
    return True


def check_archive_file(path: Path) -> bool:
    """`check_archive` for a file that may be larger than the memory.

    Raises:
        SealError: it is wrong.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - _COMMENT_SIZE, 0))
        comment = file.read()
        if not comment.startswith(_MARK):
            return False
        file.seek(0)
        digest, left = hashlib.sha256(), size - _COMMENT_SIZE
        while left and (part := file.read(min(left, 1 << 22))):
            digest.update(part)
            left -= len(part)
    if digest.hexdigest().encode() != comment[len(_MARK) :]:
        raise SealError("its checksum is wrong: bytes have changed since it was written")
    return True


def seal(value: dict[str, Any]) -> dict[str, Any]:
    """What JSON is to hold, with its checksum as the last key."""
    return {**value, CHECKSUM: _checksum(value)}


def unseal(value: Any) -> tuple[Any, bool]:
    """What JSON held without its checksum, and whether it had one, which is then right.

    Raises:
        SealError: it is wrong.
    """
    if not isinstance(value, dict) or CHECKSUM not in value:
        return value, False
    rest = {key: entry for key, entry in value.items() if key != CHECKSUM}
    if value[CHECKSUM] != _checksum(rest):
        raise SealError("its checksum is wrong: it has changed since it was written")
    return rest, True


def _checksum(value: dict[str, Any]) -> str:
    """Of the value, not of the text: spaces and the order of keys do not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
