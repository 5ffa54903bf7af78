"""The samples of a request: pictures as its body, files of a form, or JSON. All of it is checked before the model sees it."""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import json
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from dmlcore.data import UNREADABLE
from dmlcore.data.images import read_header
from dmlcore.errors import DmlcoreError
from dmlcore.serving.http.limits import Limits, Refused
from dmlcore.serving.model import Model

FORM, JSON, RAW = "multipart/form-data", "application/json", "application/octet-stream"
_FIELDS = {"images": "images", "features": "features", "texts": "texts"}


def kind_of(content_type: str) -> str:
    """The type of a request's content without its parameters."""
    return content_type.partition(";")[0].strip().lower()


async def read_body(request: Any, limits: Limits) -> bytes:
    """The body of a request, which is given up where it grows too large.

    Raises:
        Refused: it is too large, or is not what its headers say.
    """
    most = int(limits.megabytes * 1e6)
    length = request.headers.get("content-length", "0")
    if not length.isdecimal():
        raise Refused(400, "the header Content-Length is no number")
    if int(length) > most:
        raise Refused(413, f"the request has {int(length) / 1e6:.1f} MB; at most {limits.megabytes:g} are taken")
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise Refused(413, f"the request has more than {limits.megabytes:g} MB")
        parts.append(part)
    return b"".join(parts)


async def read_samples(request: Any, model: Model, limits: Limits, pool: ThreadPoolExecutor) -> Tensor:
    """The samples of a request as the model takes them, [n, ...].

    Args:
        request: of Starlette.
        model: whose samples they are.
        limits: on what is taken.
        pool: threads that decode pictures.

    Raises:
        Refused: there is no sample, or one cannot be read, or they are too many.
    """
    body = await read_body(request, limits)
    content = kind_of(request.headers.get("content-type", ""))
    if content == JSON:
        samples = _samples_of(_json(body), model.kind)
    elif model.kind != "images":
        raise Refused(415, f"this model takes {model.kind} as {JSON}: {{{_example(model.kind)}}}")
    elif content == FORM:
        samples = await _files(request, body, limits)
    elif content.startswith("image/") or content == RAW:
        samples = [body]
    else:
        raise Refused(415, f"send a picture as the body (image/...), in a form ({FORM}), or base64 in {JSON}")
    if not samples:
        raise Refused(422, "the request holds no sample")
    if len(samples) > limits.samples:
        raise Refused(413, f"the request holds {len(samples):,} samples; at most {limits.samples:,} are taken")
    loop = asyncio.get_running_loop()
    if model.kind == "images":
        return torch.stack(
            await asyncio.gather(*(loop.run_in_executor(pool, _picture, data, model, limits) for data in samples))
        )
    return await loop.run_in_executor(pool, _prepared, samples, model)


def _json(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise Refused(422, "the body must be an object of JSON")
    return value


def _samples_of(value: dict[str, Any], kind: str) -> list[Any]:
    name = _FIELDS[kind]
    samples = value.get(name)
    if not isinstance(samples, list):
        raise Refused(422, f"the body must hold a list: {{{_example(kind)}}}")
    if kind == "features":
        return [_numbers(row) for row in samples]
    for sample in samples:
        if not isinstance(sample, str):
            raise Refused(422, f"{name} must be a list of text: {{{_example(kind)}}}")
    return [_from_base64(sample) for sample in samples] if kind == "images" else samples


def _numbers(row: Any) -> list[float]:
    if not isinstance(row, list) or not all(isinstance(value, int | float) and not isinstance(value, bool) for value in row):
        raise Refused(422, "features must be a list of lists of numbers")
    try:
        return [float(value) for value in row]
    except OverflowError:
        raise Refused(422, "features hold a number that is too large") from None


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(422, "images must be a list of files, each as base64") from None


def _example(kind: str) -> str:
    return {"images": '"images": ["(base64)"]', "features": '"features": [[0.1, 0.2]]', "texts": '"texts": ["a text"]'}[kind]


async def _files(request: Any, body: bytes, limits: Limits) -> list[bytes]:
    """The files of a form, in their order."""
    from starlette.formparsers import MultiPartException, MultiPartParser

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        parser = MultiPartParser(
            request.headers, stream(), max_files=limits.samples, max_fields=limits.samples, max_part_size=len(body) + 1
        )
        form = await parser.parse()
    except MultiPartException as error:
        raise Refused(413 if error.message.startswith("Too many") else 400, error.message) from None
    except (KeyError, ValueError, UnicodeDecodeError) as error:
        raise Refused(400, f"the form cannot be read: {type(error).__name__}") from None
    try:
        return [await value.read() for _, value in form.multi_items() if not isinstance(value, str)]
    finally:
        await form.close()


def _picture(data: bytes, model: Model, limits: Limits) -> Tensor:
    """float32 [C, H, W] in 0..1 of an encoded picture."""
    try:
        header = read_header(io.BytesIO(data))
        if header.height * header.width > limits.megapixels * 1e6:
            raise Refused(413, f"a picture has {header.width:,} x {header.height:,} pixels, which is too large")
        pixels = model.preparation.decoded(io.BytesIO(data))
    except UNREADABLE:
        raise Refused(422, "a picture cannot be read: it is damaged, or of no known format") from None
    return torch.from_numpy(pixels.copy()).float().div_(255)


def _prepared(samples: list[Any], model: Model) -> Tensor:
    try:
        return torch.cat(list(model.preparation.batches(samples, len(samples), 0)))
    except DmlcoreError as error:
        raise Refused(422, str(error)) from None
