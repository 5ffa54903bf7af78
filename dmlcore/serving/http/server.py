"""The process that serves: its socket, its signals, its end."""

from __future__ import annotations

import importlib
import ipaddress
import socket
from collections.abc import Callable

import torch

from dmlcore.config import check_range
from dmlcore.errors import ConfigError
from dmlcore.serving.http.app import fastapi, make_app
from dmlcore.serving.http.service import Service
from dmlcore.serving.model import default_threads

_BACKLOG = 2048  # connections that wait to be accepted


def is_loopback(host: str) -> bool:
    """Whether only this computer reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Args:
        host: an address of this computer.
        port: 0: any that is free.

    Raises:
        ConfigError: the address cannot be used.
    """
    check_range("port", port, least=0, most=65535)
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"cannot listen at {host}:{port}: {getattr(error, 'strerror', None) or error}") from None


def run_server(service: Service, listening: socket.socket, *, token: str | None = None, tell: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM, which let begun requests end.

    Args:
        service: what is served; it is closed at the end.
        listening: of `bound`.
        token: that requests must bring. None: none.
        tell: receives lines about what happens under way.

    Raises:
        ConfigError: a package is missing.
        Interrupted: after the end, by the signal that asked for it.
    """
    fastapi()
    torch.set_num_threads(max(1, default_threads() - 1))  # one core is for reading requests
    uvicorn = importlib.import_module("uvicorn")
    config = uvicorn.Config(
        make_app(service, token, tell),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(service.limits.seconds) + 1,
    )
    uvicorn.Server(config).run(sockets=[listening])
