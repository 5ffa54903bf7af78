"""The routes of a server. Annotations are no strings here: FastAPI reads them, and its classes are imported late."""

import asyncio
import contextlib
import importlib
import io
import json
from collections.abc import AsyncIterator, Callable
from importlib import resources
from typing import Any

import numpy as np
from PIL import Image

from dmlcore.data import UNREADABLE, decode
from dmlcore.errors import ConfigError, DmlcoreError
from dmlcore.serving.http.guard import Guard, error_body
from dmlcore.serving.http.limits import Refused
from dmlcore.serving.http.reading import FORM, JSON, RAW, read_samples
from dmlcore.serving.http.service import Service
from dmlcore.version import VERSION

_PICTURE = 192  # pixels of a side of the pictures that the page shows
_LOOK = 1.0  # seconds between looks at the folder of the index
_PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src blob: data:; connect-src 'self'"
)
_QUERY = [
    {"name": "k", "in": "query", "schema": {"type": "integer", "minimum": 1, "default": 10}, "description": "neighbours"},
    {
        "name": "where",
        "in": "query",
        "schema": {"type": "array", "items": {"type": "string"}},
        "description": "conditions that entries must meet, such as label=cup,bowl or price<10",
    },
    {"name": "threshold", "in": "query", "schema": {"type": "number"}, "description": "instead of the server's"},
]


def fastapi() -> Any:
    """FastAPI, imported when a server starts.

    Raises:
        ConfigError: it or what it needs is missing.
    """
    for module, package in (("fastapi", "fastapi"), ("uvicorn", "uvicorn"), ("python_multipart", "python-multipart")):
        try:
            importlib.import_module(module)
        except ModuleNotFoundError:
            raise ConfigError(f"`dmlcore serve` needs {package}: run `pip install 'dmlcore[serve]'`") from None
    return importlib.import_module("fastapi")


def make_app(service: Service, token: str | None = None, tell: Callable[[str], None] = lambda text: None) -> Any:
    """The application of ASGI.

    Args:
        service: what it serves.
        token: that requests must bring as `Authorization: Bearer TOKEN`. None: none.
        tell: receives a line about what happens under way.
    """
    framework = fastapi()
    responses = importlib.import_module("fastapi.responses")
    Request = framework.Request

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        looking = asyncio.create_task(_look(service, tell))
        yield
        looking.cancel()
        await asyncio.to_thread(service.close)

    app = framework.FastAPI(
        title="dmlcore", version=VERSION, docs_url=None, redoc_url=None, lifespan=lifespan, description="Embed, search, verify."
    )
    body = _body_of(service.model.kind)

    def answer(value: dict[str, Any]) -> Any:
        return responses.Response(json.dumps(value, allow_nan=False), media_type=JSON)

    async def embedded(request: Any) -> np.ndarray:
        samples = await read_samples(request, service.model, service.limits, service.pool)
        return await service.batcher.embed(samples)

    async def embed(request: Request) -> Any:  # type: ignore[valid-type]
        """Embeddings of samples, as JSON, or with `Accept: application/octet-stream` as float32 numbers, row by row."""
        rows = await embedded(request)
        if RAW in request.headers.get("accept", ""):
            shape = {"X-Shape": f"{rows.shape[0]},{rows.shape[1]}"}
            return responses.Response(rows.astype("<f4").tobytes(), media_type=RAW, headers=shape)
        return answer({"embeddings": rows.tolist()})

    async def search(request: Request) -> Any:  # type: ignore[valid-type]
        """The nearest entries of the index for each sample. `answer` is the label of the nearest, null where it is too far."""
        k = _number(request.query_params.get("k", "10"), "k", int, 1, service.limits.neighbours)
        threshold = request.query_params.get("threshold")
        limit = service.threshold if threshold is None else _number(threshold, "threshold", float, -1, 1)
        where = request.query_params.getlist("where")
        service.searched()
        rows = await embedded(request)
        results = await asyncio.get_running_loop().run_in_executor(service.pool, service.search, rows, k, where, limit)
        return answer({"results": results, "generation": service.searched().about["generation"], "threshold": limit})

    async def verify(request: Request) -> Any:  # type: ignore[valid-type]
        """Whether two samples are of one class: their cosine, and `same` where the server has a threshold."""
        rows = await embedded(request)
        if len(rows) != 2:
            raise Refused(422, f"verify compares two samples, but the request holds {len(rows)}")
        unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        score = float(np.clip(unit[0] @ unit[1], -1, 1))
        limit = service.threshold
        return answer({"score": score, "threshold": limit, "same": None if limit is None else score >= limit})

    async def health() -> Any:
        """What is served."""
        return answer({"status": "ok", **service.describe()})

    async def metrics() -> Any:
        """Counts in the text format of Prometheus."""
        return responses.Response(service.counts.text(service.gauges()), media_type="text/plain; version=0.0.4")

    async def picture(position: int, generation: int) -> Any:
        """A small picture of an entry of the index."""
        path = service.picture_of(position, generation)
        loop = asyncio.get_running_loop()
        return responses.Response(await loop.run_in_executor(service.pool, _thumbnail, str(path)), media_type="image/jpeg")

    async def page() -> Any:
        text = resources.files("dmlcore.serving.http").joinpath("page/search.html").read_text(encoding="utf-8")
        return responses.HTMLResponse(text, headers={"Content-Security-Policy": _PAGE_POLICY})

    for path, route in (("/embed", embed), ("/search", search), ("/verify", verify)):
        parameters = {"parameters": _QUERY} if route is search else {}
        app.add_api_route(path, route, methods=["POST"], openapi_extra={"requestBody": body, **parameters})
    app.add_api_route("/health", health, methods=["GET"])
    app.add_api_route("/metrics", metrics, methods=["GET"])
    app.add_api_route("/entries/{position}/picture", picture, methods=["GET"])
    app.add_api_route("/", page, methods=["GET"], include_in_schema=False)

    async def refused(request: Any, error: Any) -> Any:
        return responses.Response(error_body(str(error)), error.status, error.headers, JSON)

    async def mistaken(request: Any, error: Any) -> Any:
        return responses.Response(error_body(" ".join(str(error).split())), 422, media_type=JSON)

    async def unknown(request: Any, error: Any) -> Any:
        return responses.Response(error_body(str(error.detail)), error.status_code, error.headers, JSON)

    app.add_exception_handler(Refused, refused)
    app.add_exception_handler(DmlcoreError, mistaken)
    app.add_exception_handler(importlib.import_module("fastapi.exceptions").RequestValidationError, mistaken)
    app.add_exception_handler(importlib.import_module("starlette.exceptions").HTTPException, unknown)
    routes = {"/", "/embed", "/search", "/verify", "/health", "/metrics"}
    return Guard(app, service.counts, service.limits.seconds, token, routes, lambda error: tell(_described(error)))


async def _look(service: Service, tell: Callable[[str], None]) -> None:
    """Follow the folder of the index."""
    told = ""
    while True:
        await asyncio.sleep(_LOOK)
        try:
            if await asyncio.to_thread(service.renewed):
                tell(f"the index has changed: {service.describe()['entries']:,} entries")
            told = ""
        except DmlcoreError as error:
            if str(error) != told:  # the same is not said every second
                tell(f"the new state of the index is not used: {error}")
            told = str(error)


def _number(text: str, name: str, kind: type, least: float, most: float) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not least <= value <= most:
        raise Refused(422, f"{name} must be a number from {least} to {most}")
    return value


def _thumbnail(path: str) -> bytes:
    try:
        pixels = decode(path, (_PICTURE, _PICTURE), 3)
    except UNREADABLE:
        raise Refused(404, "the picture of this entry cannot be read") from None
    out = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(out, "JPEG", quality=85)
    return out.getvalue()


def _body_of(kind: str) -> dict[str, Any]:
    """What OpenAPI says of a request's body."""
    rows = {"type": "array", "items": {"type": "number"}}
    item = {"images": {"type": "string", "format": "byte"}, "features": rows, "texts": {"type": "string"}}[kind]
    known = {"type": "object", "properties": {kind: {"type": "array", "items": item}}, "required": [kind]}
    content: dict[str, Any] = {JSON: {"schema": known}}
    if kind == "images":
        file = {"type": "string", "format": "binary"}
        content |= {"image/*": {"schema": file}, RAW: {"schema": file}}
        content[FORM] = {"schema": {"type": "object", "properties": {"files": {"type": "array", "items": file}}}}
    return {"required": True, "content": content}


def _described(error: Exception) -> str:
    return f"a request failed: {type(error).__name__}: {' '.join(str(error).split())}"
