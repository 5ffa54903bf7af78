"""What a server takes, and what it says of a request that it does not take."""

from __future__ import annotations

from dataclasses import dataclass

from dmlcore.config import check_range


@dataclass(frozen=True)
class Limits:
    """Limits on requests. Each refusal has the HTTP status named here."""

    megabytes: float = 10.0
    """Size of a request (413)."""
    samples: int = 256
    """Samples of one request (413)."""
    megapixels: float = 50.0
    """Size of a picture, read from its header before it is decoded (413)."""
    neighbours: int = 1000
    """Neighbours that a search may ask for (422)."""
    seconds: float = 30.0
    """From the end of a request's headers to its answer (408 while it is read, 504 after)."""
    waiting: int = 1024
    """Samples that may wait for the model; more requests are told to come again (503)."""
    batch: int = 64
    """Samples that the model takes at a time."""

    def __post_init__(self) -> None:
        for name in ("megabytes", "megapixels", "seconds"):
            check_range(name, getattr(self, name), above=0)
        for name in ("samples", "neighbours", "waiting", "batch"):
            check_range(name, getattr(self, name), least=1)


class Refused(Exception):
    """A request that is not answered.

    Args:
        status: of HTTP.
        text: a line that says why.
        headers: further ones.
    """

    def __init__(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.headers = headers
