"""Around every request: who may ask, how long it may take, what is counted, and errors as one line of JSON."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

from dmlcore.serving.http.counting import Counts

OPEN_TO_ALL = ("/", "/health")  # the page asks for the token itself
_PROTECTION = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]


def error_body(text: str) -> bytes:
    """What a refusal says."""
    return json.dumps({"error": text}).encode()


class Guard:
    """Wraps an application of ASGI.

    Args:
        app: the application.
        counts: of requests.
        seconds: that a request may take.
        token: that requests must bring. None: none.
        routes: whose names are counted; others are counted as one.
        fail: receives an unexpected error.
    """

    def __init__(
        self, app: Any, counts: Counts, seconds: float, token: str | None, routes: set[str], fail: Callable[[Exception], None]
    ) -> None:
        self._app, self._counts, self._seconds, self._token = app, counts, seconds, token
        self._routes, self._fail = routes, fail

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, is_read = time.perf_counter(), 0, False

        async def received() -> Any:
            nonlocal is_read
            message = await receive()
            is_read = is_read or (message["type"] == "http.request" and not message.get("more_body", False))
            return message

        async def sent(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), *_PROTECTION]
            await send(message)

        try:
            if self._is_stranger(scope):
                await _refuse(
                    sent, 401, "this server needs a token: Authorization: Bearer TOKEN", [(b"www-authenticate", b"Bearer")]
                )
            else:
                async with asyncio.timeout(self._seconds):
                    await self._app(scope, received, sent)
        except TimeoutError:
            late = 504 if is_read else 408
            if not status:
                await _refuse(sent, late, f"no answer within {self._seconds:g} s", [(b"connection", b"close")])
        except Exception as error:
            self._fail(error)
            if not status:
                await _refuse(sent, 500, "the server failed on this request", [])
        finally:
            # 499: whoever asked has gone before the answer began
            route = scope["path"] if scope["path"] in self._routes else "other"
            self._counts.add(route, status or 499, time.perf_counter() - began)

    def _is_stranger(self, scope: Any) -> bool:
        if self._token is None or scope["path"] in OPEN_TO_ALL:
            return False
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        return not hmac.compare_digest(given, b"Bearer " + self._token.encode())


async def _refuse(send: Any, status: int, text: str, headers: list[tuple[bytes, bytes]]) -> None:
    body = error_body(text)
    known = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*known, *headers]})
    await send({"type": "http.response.body", "body": body})
